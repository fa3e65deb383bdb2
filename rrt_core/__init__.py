"""The science: extractors, the Reranking Transformer, rerankers, indexes, metrics, training."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core import (
        ensemble,
        extractors,
        indexes,
        metrics,
        products,
        rerankers,
        synthetic,
        training,
        transformer,
    )
    from rrt_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
    from rrt_core.images import Image, decode

__all__ = [
    "Checkpoint",
    "Image",
    "decode",
    "ensemble",
    "extractors",
    "indexes",
    "load_checkpoint",
    "metrics",
    "products",
    "rerankers",
    "save_checkpoint",
    "synthetic",
    "training",
    "transformer",
]
__getattr__ = lazily(
    __name__,
    {
        "": [
            "ensemble",
            "extractors",
            "indexes",
            "metrics",
            "products",
            "rerankers",
            "synthetic",
            "training",
            "transformer",
        ],
        "checkpoints": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
        "images": ["Image", "decode"],
    },
)
