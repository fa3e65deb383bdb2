"""Mining of training pairs: nearest neighbours by global descriptor, anchors, triplets.

Source: section 4 of the paper and its repository (RRT_GLD/tools/prepare_topk_gldv2.py,
utils/data/utils.py): of each record's 100 nearest by global descriptor those of its label are
positives, the others negatives; it is an anchor if it has at least five positives. A triplet is an
anchor, a random positive and a random negative. Every anchor comes once an epoch. Here a step's
triplets depend on the seed and the step's number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from schemas.errors import UserError

NONE = -1  # fills the rows of records with fewer neighbours
_LOW = 2**32 - 1


def nearest(
    descriptors: np.ndarray,
    queries: np.ndarray,
    pool: np.ndarray,
    count: int,
    *,
    device: torch.device | None = None,
    block: int = 8_192,
) -> np.ndarray:
    """The nearest of a pool by inner product, exactly, in blocks.

    Args:
        descriptors: float32 or float16 [n, D], L2 = 1; may be a memory map.
        queries: int64 [q], rows. The product with a block is in memory at once, some 30 * q * block
            bytes.
        pool: int64 [p], rows, rising. A query's own row is left out of its neighbours.
        count: neighbours a query.
        device: where to multiply; None: the CPU.
        block: rows of the pool at once.
    Returns:
        int32 [q, count], product falling, equal ones by row; NONE where the pool is too small.
    """
    device = device or torch.device("cpu")
    left = _matrix(descriptors, queries, device)
    own = torch.from_numpy(np.asarray(queries, np.int64)).to(device)
    best = torch.zeros(len(queries), 0, dtype=torch.int64, device=device)

    for first in range(0, len(pool), block):
        rows = np.asarray(pool[first : first + block], np.int64)
        candidates = torch.from_numpy(rows).to(device)
        # + 0.0 makes -0.0 to 0.0. The bits of a float32, negative ones turned round, rise as the
        # number does; with the row behind them no two keys are equal, so that the order is one on
        # every device.
        bits = (left @ _matrix(descriptors, rows, device).T + 0.0).view(torch.int32)
        rising = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(torch.int64)
        keys = (rising << 32) | (_LOW - candidates)
        keys[own[:, None] == candidates] = torch.iinfo(torch.int64).min
        best = torch.cat([best, keys], dim=1)
        best = best.topk(min(count, best.shape[1]), dim=1).values

    neighbours = np.full((len(queries), count), NONE, np.int32)
    best_keys = best.cpu().numpy()
    best_rows = np.where(best_keys == np.iinfo(np.int64).min, NONE, _LOW - (best_keys & _LOW))
    neighbours[:, : best_rows.shape[1]] = best_rows

    return neighbours


def _matrix(descriptors: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.asarray(descriptors[rows], np.float32)).to(device)


@dataclass(frozen=True)
class Anchors:
    """Which records serve as anchors, and why the others do not.

    rows: int64 [a], rising.
    too_few: records with fewer positives than required.
    without_negative: with enough of them, but all neighbours positive.
    """

    rows: np.ndarray
    too_few: int
    without_negative: int


def choose_anchors(
    neighbours: np.ndarray, labels: np.ndarray, rows: np.ndarray, least: int
) -> Anchors:
    """The anchors among some records.

    Args:
        neighbours: int32 [n, k], rows, NONE at the end. labels: int64 [n].
        rows: int64 [m], the records in question, rising.
        least: fewest positives of an anchor, at least 1 (the paper: 5 of 100).
    """
    enough, negative = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    # in blocks: the comparison takes as much memory as the neighbours
    for first in range(0, len(rows), 65_536):
        some = rows[first : first + 65_536]
        same, exists = _same(neighbours, labels, some)
        enough[first : first + len(some)] = same.sum(axis=1) >= least
        negative[first : first + len(some)] = (exists & ~same).any(axis=1)
    return Anchors(rows[enough & negative], int((~enough).sum()), int((enough & ~negative).sum()))


def _same(
    neighbours: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two masks, bool [m, k]: the neighbour has the record's label; the neighbour exists."""
    near = neighbours[rows]
    exists = near != NONE
    return exists & (labels[near] == labels[rows][:, None]), exists


class TripletSampler:
    """Triplets of a step, a function of the seed and the step's number alone."""

    def __init__(
        self, neighbours: np.ndarray, labels: np.ndarray, anchors: np.ndarray, seed: int
    ) -> None:
        """As in choose_anchors; anchors: int64 [a], each with a positive and a negative.

        Raises:
            UserError: there is no anchor.
        """
        if not len(anchors):
            raise UserError("Mining: there is no anchor to make a triplet of.")
        self.neighbours, self.labels, self.anchors, self.seed = neighbours, labels, anchors, seed
        self._order = lru_cache(2)(self._new_order)  # a step may span two epochs

    def anchors_of(self, step: int, count: int) -> np.ndarray:
        """The step's anchors, int64 [count].

        They come epoch after epoch in a new order, each anchor once an epoch.
        """
        places = np.arange(step * count, (step + 1) * count)
        epochs = places // len(self.anchors)
        rows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self.anchors[self._order(int(epoch))[places[here] % len(self.anchors)]]
        return rows

    def triplets(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Anchors, positives, negatives: int64 [count] rows each."""
        rows = self.anchors_of(step, count)
        same, exists = _same(self.neighbours, self.labels, rows)
        rng = np.random.default_rng((self.seed, 1, step))

        def draw(fitting: np.ndarray) -> np.ndarray:
            places = np.where(fitting, rng.random(fitting.shape), -1.0).argmax(axis=1)
            return self.neighbours[rows, places].astype(np.int64)

        return rows, draw(same), draw(exists & ~same)

    def _new_order(self, epoch: int) -> np.ndarray:
        """A permutation of the anchors."""
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.anchors))
