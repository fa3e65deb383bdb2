"""Stores and labels to weights; `pipelines.train.products` trains for products."""

from typing import TYPE_CHECKING

from pipelines.stages import lazily

if TYPE_CHECKING:
    from pipelines.train.options import Options
    from pipelines.train.stage import run

__all__ = ["Options", "run"]
__getattr__ = lazily("train")
