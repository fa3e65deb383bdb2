"""Whether an output is what its manifest says; `pipelines.verify.repair` fixes it."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.verify.options import Options
    from pipelines.verify.verify import run

__all__ = ["Options", "run"]
__getattr__ = lazily("verify")
