"""A shortlist to scores and rankings."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.rerank.options import Options
    from pipelines.rerank.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("rerank")
