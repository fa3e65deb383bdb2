"""The demo: photographs that packages ship, through all stages."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.demo.options import Options
    from pipelines.demo.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("demo")
