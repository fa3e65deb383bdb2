"""A run to one HTML page."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.report.options import Options
    from pipelines.report.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("report")
