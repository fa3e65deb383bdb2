"""Indexes of global descriptors."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.indexes.faiss_index import (
        add,
        exact_scores,
        merge,
        order,
        sample_order,
        search,
        train,
    )
    from rrt_core.indexes.kinds import choose_key, empty_index, metric_of

__all__ = [
    "add",
    "choose_key",
    "empty_index",
    "exact_scores",
    "merge",
    "metric_of",
    "order",
    "sample_order",
    "search",
    "train",
]
__getattr__ = lazily(
    __name__,
    {
        "faiss_index": [
            "add",
            "exact_scores",
            "merge",
            "order",
            "sample_order",
            "search",
            "train",
        ],
        "kinds": ["choose_key", "empty_index", "metric_of"],
    },
)
