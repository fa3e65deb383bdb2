"""Metrics of the rankings; `pipelines.evaluate.tune` chooses an ensemble."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.evaluate.options import Options
    from pipelines.evaluate.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("evaluate")
