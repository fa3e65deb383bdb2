"""Which images meet in a step: identities for the global descriptor, triplets for the reranker.

Everything is a function of (seed, step), so that a resumed run sees what an unbroken one sees.
Source: RandomReplacedIdentitySampler and TripletSampler of the paper's repository
    (RRT_SOP/utils/data/utils.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Images of a step, int64 [B] each: rows, their augmented copies, their identities (labels)."""

    rows: Ints
    copies: Ints
    labels: Ints


def neighbours(descriptors: npt.NDArray[np.float32], k: int, block: int = 2048) -> Ints:
    """The k nearest other images of each by inner product, int64 [n, min(k, n - 1)], nearest first.

    descriptors: float32 [n, D]. Ties go to the earlier image.
    """
    count = len(descriptors)
    nearest = np.empty((count, min(k, count - 1)), np.int64)
    for first in range(0, count, block):
        similarity = descriptors[first : first + block] @ descriptors.T
        own = np.arange(len(similarity))
        similarity[own, first + own] = -np.inf
        nearest[first : first + block] = np.argsort(-similarity, axis=1, kind="stable")[
            :, : nearest.shape[1]
        ]
    return nearest


class Sampler:
    """Draws batches from labelled images.

    labels: int64 [n], >= 0; an image whose label no other has is an instance of its own, and is its
        own positive in another augmented copy.
    copies: number of augmented copies; 0: plain crops only.
    lone_share: share of the anchors, or of the identities of a batch, that are such instances
        (where there are both kinds).
    """

    def __init__(self, labels: Ints, copies: int, seed: int, lone_share: float = 0.3) -> None:
        self.labels, self.copies, self.seed = labels, copies, seed
        order = np.argsort(labels, kind="stable")
        _, first = np.unique(labels[order], return_index=True)
        groups = np.split(order, first[1:])
        self._groups = [group for group in groups if len(group) > 1]
        self._lone = np.sort(
            np.concatenate(
                [group for group in groups if len(group) == 1] or [np.zeros(0, np.int64)]
            )
        )
        if copies == 0:
            self._lone = self._lone[:0]  # one crop cannot be compared with itself

        if not self._groups and not len(self._lone):
            raise UserError(
                "No two training images show the same product: nothing can be learned from these "
                "labels."
            )

        self._of = {int(row): group for group in self._groups for row in group}
        self._crowd = np.sort(np.concatenate(self._groups)) if self._groups else self._lone[:0]
        self._lone_share = (
            lone_share if len(self._lone) and len(self._crowd) else float(len(self._crowd) == 0)
        )

    def identities(self, step: int, size: int) -> Batch:
        """Two images each of size / 2 identities.

        An identity comes again only when all were drawn.
        """
        rng = np.random.default_rng([self.seed, step, 1])
        wanted = size // 2
        lone = round(self._lone_share * wanted)
        pairs = [(int(row), int(row)) for row in _draw(rng, self._lone, lone)]
        for number in _draw(rng, np.arange(len(self._groups)), wanted - lone):
            one, other = rng.choice(self._groups[number], 2, replace=False)
            pairs.append((int(one), int(other)))
        rows = np.array(pairs, np.int64).reshape(-1)
        return Batch(rows, self._other_copies(rng, rows, 2), self.labels[rows])

    def triplets(self, step: int, count: int, near: Ints) -> Batch:
        """(anchor, positive, negative) x count, in a row: rows 0, 3, 6 ... are the anchors.

        near: int64 [n, k] from `neighbours`; the negative is one of an anchor's that has another
            label.
        """
        rng = np.random.default_rng([self.seed, step, 2])
        rows = np.empty(3 * count, np.int64)
        for place in range(count):
            while True:
                pool = self._lone if rng.random() < self._lone_share else self._crowd
                anchor = int(rng.choice(pool))
                others = near[anchor][self.labels[near[anchor]] != self.labels[anchor]]
                if len(others):
                    break
            group = self._of.get(anchor)
            positive = anchor if group is None else int(rng.choice(group[group != anchor]))
            rows[3 * place : 3 * place + 3] = anchor, positive, int(rng.choice(others))
        return Batch(rows, self._other_copies(rng, rows, 3), self.labels[rows])

    def _other_copies(self, rng: np.random.Generator, rows: Ints, group: int) -> Ints:
        """An augmented copy of each image; anchor and positive of one image get different ones."""
        if self.copies == 0:
            return np.zeros(len(rows), np.int64)
        copies = rng.integers(1, self.copies, len(rows), endpoint=True)
        for first in range(0, len(rows), group):
            if rows[first] == rows[first + 1] and copies[first] == copies[first + 1]:
                copies[first + 1] = copies[first + 1] % self.copies + 1 if self.copies > 1 else 0
        return copies


def _draw(rng: np.random.Generator, pool: Ints, count: int) -> Ints:
    """`count` of the pool, each as often as any other, give or take one."""
    drawn = [rng.permutation(pool) for _ in range(-(-count // max(1, len(pool))))]
    return np.concatenate(drawn)[:count] if drawn else pool[:0]
