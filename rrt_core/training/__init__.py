"""Training of the Reranking Transformer for landmarks."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.training.loop import PairBatch, Side, TrainingOptions, train
    from rrt_core.training.mining import TripletSampler, choose_anchors, nearest

__all__ = [
    "PairBatch",
    "Side",
    "TrainingOptions",
    "TripletSampler",
    "choose_anchors",
    "nearest",
    "train",
]
__getattr__ = lazily(
    __name__,
    {
        "loop": ["PairBatch", "Side", "TrainingOptions", "train"],
        "mining": ["TripletSampler", "choose_anchors", "nearest"],
    },
)
