"""Geometric verification as DELG does it: the classical reranker that a learned one must beat."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from rrt_core.options import check_number, check_whole
from rrt_core.rerankers import Locals, Reranker, check_same_width

_SAMPLE = 3  # couples that fix an affine transform; DELG asks for more than that


class GeometricReranker(Reranker):
    """Counts the couples of locals that one affine transform explains.

    Each query local is coupled with its nearest gallery local where that is nearer than
    `max_distance`; RANSAC looks for the affine transform from gallery to query under which most
    couples lie within `residual` pixels of each other. logit = that number of inliers, a whole
    number; 0 with three couples or fewer, or where all of them lie on a line. Many pairs share a
    count: replaying a ranking keeps equal logits in global order, which is DELG's (inliers, initial
    score).

    Source: tensorflow/models, research/delf, image_reranking.py, with the values of DELG's
    perform_retrieval.py (distance 1.0, residual 20 pixels, 1,000 trials). There scikit-image does
    the RANSAC, from a seed; here OpenCV does, whose generator starts anew in each call, so that a
    pair has one score wherever it is scored. It gives up before the last trial once it has found
    the best transform with probability `confidence`; the transform is not refined, which would
    change no count.
    """

    name = "geometric"
    revision = 1

    def __init__(
        self,
        query_tokens: int = 500,
        gallery_tokens: int = 500,
        max_distance: float = 1.0,
        residual: float = 20.0,
        trials: int = 1000,
        confidence: float = 0.999,
    ) -> None:
        """Check and keep the options.

        Args:
            query_tokens, gallery_tokens: strongest locals used of each image.
            max_distance: 0..2, Euclidean, between descriptors of L2 = 1; couples as far apart or
                farther are not used.
            residual: pixels of the query's upright original, above 0.
            trials: most samples that RANSAC tries, at least 1.
            confidence: above 0, below 1.
        """
        check_whole("Reranker option query_tokens", query_tokens, 1)
        check_whole("Reranker option gallery_tokens", gallery_tokens, 1)
        self.query_tokens, self.gallery_tokens = query_tokens, gallery_tokens
        self.max_distance = check_number("Reranker option max_distance", max_distance, 0.0, 2.0)
        self.residual = check_number("Reranker option residual", residual, 1e-3, 1e6)
        check_whole("Reranker option trials", trials, 1)
        self.trials = trials
        self.confidence = check_number("Reranker option confidence", confidence, 1e-6, 1 - 1e-6)
        self.weights_sha256 = ""
        self.config = {
            "query_tokens": query_tokens,
            "gallery_tokens": gallery_tokens,
            "max_distance": self.max_distance,
            "residual": self.residual,
            "trials": trials,
            "confidence": self.confidence,
        }

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """As Reranker.score; whole numbers 0..query_tokens."""
        return np.asarray([self._inliers(query, gallery) for query, gallery in pairs], np.float32)

    def _inliers(self, query: Locals, gallery: Locals) -> int:
        left, right = query.first(self.query_tokens), gallery.first(self.gallery_tokens)
        used, nearest = couples(left.descriptors, right.descriptors, self.max_distance)
        if len(used) <= _SAMPLE:
            return 0
        transform, inliers = cv2.estimateAffine2D(
            np.ascontiguousarray(right.xy[nearest], np.float32),
            np.ascontiguousarray(left.xy[used], np.float32),
            method=cv2.RANSAC,
            ransacReprojThreshold=self.residual,
            maxIters=self.trials,
            confidence=self.confidence,
            refineIters=0,
        )
        return 0 if transform is None else int(np.count_nonzero(inliers))


def couples(
    query: np.ndarray, gallery: np.ndarray, max_distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The putative matches: rows of the query, and their nearest gallery rows.

    Rows of the query without a gallery row near enough are left out.

    Args:
        query, gallery: float32 [n, L] and [m, L], L2 = 1; n, m >= 0. Of equally near rows the first
            is taken.
    Returns:
        int64 [k] rising, int64 [k].
    Raises:
        UserError: different L.
    """
    if not len(query) or not len(gallery):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    check_same_width(query, gallery)
    similarity = query @ gallery.T
    nearest = similarity.argmax(axis=1)
    # |a - b|^2 = 2 - 2 ab for L2 = 1.
    near = 2.0 - 2.0 * similarity[np.arange(len(query)), nearest] < max_distance**2
    used = np.flatnonzero(near)
    return used, nearest[used]
