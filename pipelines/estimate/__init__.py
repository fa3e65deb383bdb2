"""What a stage would take in time, memory and on disk."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.estimate.estimate import run
    from pipelines.estimate.options import Options

__all__ = ["Options", "run"]
__getattr__ = lazily("estimate")
