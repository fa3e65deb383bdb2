"""Mutual nearest neighbours: the baseline, without weights, that a learned reranker must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrt_core.options import check_number, check_whole
from rrt_core.rerankers import Locals, Reranker, check_same_width


class MutualNNReranker(Reranker):
    """Counts locals that are each other's nearest neighbour by cosine similarity, and alike enough.

    logit = count + 0.999 * (1 + s) / 2, with s in [-1, 1] the mean similarity of the counted
    couples: the count decides, s orders equal counts. 0 where nothing is counted.

    The default floor of similarity is DELG's for putative matches (distance at most 1.0, its
    perform_retrieval.py). Without one the count misleads: between unrelated images about half of
    all locals are mutual neighbours by chance, and fewer where many locals show one thing.
    """

    name = "mutual_nn"
    revision = 1

    def __init__(
        self, query_tokens: int = 500, gallery_tokens: int = 500, min_similarity: float = 0.5
    ) -> None:
        """Check and keep the options.

        Args:
            query_tokens, gallery_tokens: strongest locals used of each image.
            min_similarity: -1..1, couples below are not counted.
        """
        check_whole("Reranker option query_tokens", query_tokens, 1)
        check_whole("Reranker option gallery_tokens", gallery_tokens, 1)
        self.query_tokens, self.gallery_tokens = query_tokens, gallery_tokens
        self.min_similarity = check_number(
            "Reranker option min_similarity", min_similarity, -1.0, 1.0
        )
        self.weights_sha256 = ""
        self.config = {
            "query_tokens": query_tokens,
            "gallery_tokens": gallery_tokens,
            "min_similarity": self.min_similarity,
        }

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """As Reranker.score; 0..min(query_tokens, gallery_tokens) + 1."""
        return np.asarray(
            [self._score_pair(query, gallery) for query, gallery in pairs], np.float32
        )

    def _score_pair(self, query: Locals, gallery: Locals) -> float:
        left = query.first(self.query_tokens).descriptors
        right = gallery.first(self.gallery_tokens).descriptors
        if not len(left) or not len(right):
            return 0.0
        check_same_width(left, right)
        similarity = left @ right.T
        forward = similarity.argmax(axis=1)
        backward = similarity.argmax(axis=0)
        own = np.arange(len(left))
        best = similarity[own, forward]
        counted = best[(backward[forward] == own) & (best >= self.min_similarity)]
        if not len(counted):
            return 0.0
        # 0.999 keeps the tie-break below the next whole count.
        return float(len(counted) + 0.999 * (1.0 + np.clip(counted.mean(), -1.0, 1.0)) / 2.0)
