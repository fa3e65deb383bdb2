"""Evaluation of the products variant: Recall@K and mAP of a global ranking and of its reranked top.

The protocol of Stanford Online Products: a query is a hit at K if any image of its product is among
the first K. Where queries are images of the gallery, each is left out of its own list. mAP is the
plain average
precision over the whole list: the mean of the precisions at each image of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrt_core.products.model import MapMatcher

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
RECALL_AT = (1, 10, 100)


@dataclass(frozen=True)
class Described:
    """Images as the matcher takes them.

    descriptors: float32 [n, D], L2 = 1. local: float32 [n, d_model, h, w].
    """

    descriptors: Floats
    local: Tensor

    def take(self, rows: Ints) -> Described:
        """Some of the images."""
        return Described(self.descriptors[rows], self.local[torch.from_numpy(rows)])


def rank(queries: Floats, gallery: Floats, own: Ints | None = None) -> Ints:
    """Gallery positions by falling inner product, int64 [queries, gallery].

    Ties go to the earlier one.

    own: int64 [queries], a query's own place in the gallery, which is put last; None where it has
        none.
    """
    similarity = queries @ gallery.T
    if own is not None:
        similarity[np.arange(len(own)), own] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")


def score(
    matcher: MapMatcher,
    queries: Tensor,
    gallery: Tensor,
    candidates: Ints,
    batch: int = 50,
    precision: str = "float32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """Logits of each query with its candidates, float32 [queries, k].

    Args:
        queries, gallery: float32 [n, d_model, h, w].
        candidates: int64 [queries, k], gallery positions.
        batch: pairs at once. precision: float32, or bfloat16 by autocast.
    """
    logits = np.empty(candidates.shape, np.float32)
    device = next(matcher.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with torch.inference_mode(), autocast:
        for number, chosen in enumerate(candidates):
            for first in range(0, len(chosen), batch):
                these = gallery[torch.from_numpy(chosen[first : first + batch])].to(device)
                query = queries[number : number + 1].to(device).expand_as(these)
                logits[number, first : first + batch] = matcher(query, these).float().cpu().numpy()
            progress(number + 1, len(candidates))
    return logits


def reordered(order: Ints, scores: Floats) -> Ints:
    """`order` [queries, n] with its first scores.shape[1] sorted by falling score (stable).

    Each row is a permutation.
    """
    top = scores.shape[1]
    again = np.argsort(-scores, axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(order[:, :top], again, 1), order[:, top:]], axis=1)


def average_precisions(hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Average precision float64 [queries] of hits, bool [queries, n].

    A hit is a place of a ranking that holds the query's product.

    NaN for a query without any.
    """
    rising = np.cumsum(hits, axis=1)
    precision = rising / np.arange(1, hits.shape[1] + 1)
    positives = rising[:, -1]
    total = (precision * hits).sum(axis=1)
    return np.where(positives > 0, total / np.maximum(positives, 1), np.nan)


def figures(
    order: Ints,
    query_labels: Ints,
    gallery_labels: Ints,
    own: Ints | None = None,
    at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """mAP and Recall@K, 0..1, of rankings over the whole gallery.

    own: as in `rank`; the query itself is no hit. Queries without another image of their product
        are left out.
    """
    hits = gallery_labels[order] == query_labels[:, None]
    if own is not None:
        hits &= order != own[:, None]
    precision = average_precisions(hits)
    counted = ~np.isnan(precision)
    values = {"map": float(precision[counted].mean()) if counted.any() else float("nan")}
    for k in at:
        values[f"recall_{k}"] = (
            float(hits[counted, :k].any(axis=1).mean()) if counted.any() else float("nan")
        )
    return values
