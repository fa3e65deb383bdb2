"""Retrieval metrics of Revisited Oxford and Paris."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.metrics.revisited import (
        PROTOCOLS,
        Evaluation,
        Protocol,
        average_precision,
        evaluate,
        positions_of,
        positive_places,
        precision_at,
        protocols_of,
        replay,
        required_depth,
        shortlist_positions,
    )

__all__ = [
    "Evaluation",
    "PROTOCOLS",
    "Protocol",
    "average_precision",
    "evaluate",
    "positions_of",
    "positive_places",
    "precision_at",
    "protocols_of",
    "replay",
    "required_depth",
    "shortlist_positions",
]
__getattr__ = lazily(
    __name__,
    {
        "revisited": [
            "Evaluation",
            "PROTOCOLS",
            "Protocol",
            "average_precision",
            "evaluate",
            "positive_places",
            "positions_of",
            "precision_at",
            "protocols_of",
            "replay",
            "required_depth",
            "shortlist_positions",
        ]
    },
)
