"""Exact scores of many queries at once, the best rows by them, and how many come before others.

The order is that of a shortlist: score falling, then record id by its UTF-8 bytes, then row id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from rrt_core.indexes.faiss_index import exact_scores

ROWS_AT_ONCE = 1_024  # of float64: 16 MB of 2,048 dimensions

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores, record ids, row ids
Key = tuple[bytes, int]  # record id, row id: the order among equal scores


def score_matrix(queries: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
    """float32 [q, n]: what `exact_scores` gives for queries [q, D] and descriptors [n, D], bit for
    bit, by matrix products in float64.

    A product sums in an order of its own. Its result is within `slack` of the fixed order's; where
    the two could round to different float32, the pair is computed in the fixed order.
    """
    queries = np.asarray(queries)
    wide = queries.astype(np.float64)
    scores = np.zeros((len(queries), len(descriptors)), np.float32)
    lengths = np.linalg.norm(wide, axis=1)
    for first in range(0, len(descriptors), ROWS_AT_ONCE):
        block = np.ascontiguousarray(descriptors[first : first + ROWS_AT_ONCE])
        rows = block.astype(np.float64)
        products = wide @ rows.T

        # each of two sums of D products is off by D * 2^-53 * |q| * |g| at most; doubled
        longest = np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0.0))
        slack = (2 * wide.shape[1] * np.finfo(np.float64).eps * longest * lengths)[:, None]
        least, most = (products - slack).astype(np.float32), (products + slack).astype(np.float32)
        scores[:, first : first + len(block)] = least
        unsure = least != most
        for number in np.flatnonzero(unsure.any(axis=1)):
            places = np.flatnonzero(unsure[number])
            scores[number, first + places] = exact_scores(queries[number], block[places])
    return scores


class Best:
    """The best k rows of one query, of any number that are added piece by piece.

    Twice as many are held at most, or 4,096 more.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._least = -np.inf  # what is worse is none of them
        self._held = (np.zeros(0, np.float32), np.zeros(0, object), np.zeros(0, np.int64))
        self._new: list[Rows] = []

    def add(self, scores: np.ndarray, record_ids: np.ndarray, row_ids: np.ndarray) -> None:
        """Add rows: float32 [n], texts (dtype object) [n], int64 [n]."""
        taken = np.flatnonzero(scores >= self._least)
        if len(taken):
            self._new.append((scores[taken], record_ids[taken], row_ids[taken]))
        if sum(len(new[0]) for new in self._new) > max(self.k, 4_096):
            self._cut()

    def _cut(self) -> None:
        held = [np.concatenate(columns) for columns in zip(self._held, *self._new, strict=True)]
        if len(held[0]) > self.k:
            self._least = -np.partition(-held[0], self.k - 1)[self.k - 1]
            kept = np.flatnonzero(held[0] >= self._least)
            if len(kept) > self.k:  # of equal scores the first by id
                kept = kept[_order(*(column[kept] for column in held))[: self.k]]
            held = [column[kept] for column in held]
        self._held, self._new = (held[0], held[1], held[2]), []

    def rows(self) -> Rows:
        """Scores, record ids and row ids of the best, in order."""
        self._cut()
        order = _order(*self._held)
        scores, record_ids, row_ids = self._held
        return scores[order], record_ids[order], row_ids[order]


def _order(scores: np.ndarray, record_ids: np.ndarray, row_ids: np.ndarray) -> np.ndarray:
    keys = list(zip((-scores).tolist(), record_ids, row_ids.tolist(), strict=True))
    return np.array(
        sorted(range(len(keys)), key=lambda i: (keys[i][0], keys[i][1].encode(), keys[i][2])),
        np.int64,
    )


def rows_before(
    scores: np.ndarray,
    record_ids: Sequence[str],
    row_ids: np.ndarray,
    marks: np.ndarray,
    keys: Sequence[Key],
) -> np.ndarray:
    """int64 [m]: how many of n rows come before each of m marks, for one query.

    scores, record_ids, row_ids   float32 [n], n texts, int64 [n]: the rows
    marks, keys                   float32 [m] and m (record id as bytes, row id): what is placed
    """
    levels, of_mark = np.unique(marks, return_inverse=True)
    reached = np.searchsorted(levels, scores, side="right")  # levels at or below each score
    counts = np.bincount(reached, minlength=len(levels) + 1)
    at_least = counts[::-1].cumsum()[::-1][1:]  # rows of a level's score or a higher one

    equal: dict[int, list[Key]] = {}
    touched = np.flatnonzero(reached)
    for row in touched[levels[reached[touched] - 1] == scores[touched]]:
        key = (record_ids[row].encode(), int(row_ids[row]))
        equal.setdefault(int(reached[row]) - 1, []).append(key)
    for rivals in equal.values():
        rivals.sort()

    before = at_least[of_mark].astype(np.int64)
    for number, level in enumerate(of_mark.tolist()):
        rivals = equal.get(level, [])
        before[number] -= len(rivals) - bisect_left(rivals, keys[number])
    return before
