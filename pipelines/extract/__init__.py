"""Images to global and local descriptors."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.extract.options import Options
    from pipelines.extract.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("extract")
