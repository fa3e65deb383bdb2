"""All stages of a YAML configuration."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.run.options import Options
    from pipelines.run.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("run")
