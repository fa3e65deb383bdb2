"""Globals of stores to a faiss index."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.index.options import Options
    from pipelines.index.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("index")
