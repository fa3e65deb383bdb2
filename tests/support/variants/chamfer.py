"""A reranker: Chamfer similarity of the local descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrt_core.options import check_whole
from rrt_core.rerankers import Locals, Reranker, check_same_width


class Chamfer(Reranker):
    """logit = mean over the query's locals of the similarity of the most similar gallery local, in
    [-1, 1]; -1 where one of the two has none.
    """

    name = "chamfer"
    revision = 1

    def __init__(self, tokens: int = 500) -> None:
        """tokens: strongest locals used of each image."""
        check_whole("The reranker's option tokens", tokens, 1)
        self.tokens = tokens
        self.weights_sha256 = ""
        self.config = {"tokens": tokens}

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """As the contract says: float32 [len(pairs)]."""
        return np.asarray([self._one(query, gallery) for query, gallery in pairs], np.float32)

    def _one(self, query: Locals, gallery: Locals) -> float:
        left = query.first(self.tokens).descriptors
        right = gallery.first(self.tokens).descriptors
        if not len(left) or not len(right):
            return -1.0

        check_same_width(left, right)
        return float((left @ right.T).max(axis=1).mean())
