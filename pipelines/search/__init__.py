"""Query globals and an index to a shortlist."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.search.options import Options
    from pipelines.search.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("search")
