"""Pairs to train the transformer on, from described images: a function of seed and step alone.

Positives are pictures of one instance. Negatives are drawn as the paper draws them, among the
nearest by global descriptor that show another instance, and (for rendered views) among other
regions of the same photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.quality.rendered_views import Views, entangled
from rrt_core.training.loop import PairBatch, Side
from rrt_core.transformer.model import RerankingTransformer
from rrt_core.transformer.scorer import PairScorer, TokenSet

NEIGHBOURS = 50  # negatives are drawn from so many nearest of other instances
LOOKALIKES = 0.15  # share of the negatives from the same photograph, where it has any


@dataclass
class Pool:
    """Described images and what may be paired with each.

    descriptor  f32 [n, D]
    local       f16 [n, k, L], zeros behind `count` i32 [n]
    rows        u8 [n, k], of the scale embedding
    same        of each image, the indices of its instance's other images
    near        of each image, the nearest of other instances
    alike       of each image, its look-alikes (may be empty)
    weight      f64 [n]: how often an image is an anchor, relative; 0 where it has no partner
    """

    descriptor: np.ndarray
    local: np.ndarray
    count: np.ndarray
    rows: np.ndarray
    same: list[np.ndarray]
    near: list[np.ndarray]
    alike: list[np.ndarray]
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def tokens(self, i: int, most: int) -> TokenSet:
        """An image's strongest locals as the scorer takes them."""
        n = min(most, int(self.count[i]))
        return TokenSet(
            self.descriptor[i],
            self.local[i, :n].astype(np.float32),
            self.rows[i, :n].astype(np.int64),
        )


def rendered_pool(views: Views) -> Pool:
    """All views; a couple that is `entangled` by its backgrounds is no negative."""
    by_instance = {i: np.flatnonzero(views.instance == i) for i in np.unique(views.instance)}
    by_photo = {p: np.flatnonzero(views.photo == p) for p in np.unique(views.photo)}
    same, near, alike = [], [], []
    for i, candidates in enumerate(nearest(views.descriptor, 4 * NEIGHBOURS)):
        own = by_instance[views.instance[i]]
        same.append(own[own != i])
        near.append(_others(views, i, candidates)[:NEIGHBOURS])
        alike.append(_others(views, i, by_photo[views.photo[i]]))
    weight = np.array([float(len(own) > 0) for own in same])
    return Pool(views.descriptor, views.local, views.count, views.rows, same, near, alike, weight)


def labelled_pool(
    descriptor: np.ndarray,
    local: np.ndarray,
    count: np.ndarray,
    rows: np.ndarray,
    label: np.ndarray,
) -> Pool:
    """Images with a label each, int [n]; below 0: a distractor, which is never an anchor."""
    same, near = [], []
    for i, candidates in enumerate(nearest(descriptor, len(descriptor))):
        own = np.flatnonzero((label == label[i]) & (label[i] >= 0))
        same.append(own[own != i])
        near.append(
            candidates[(label[candidates] != label[i]) | (label[candidates] < 0)][:NEIGHBOURS]
        )
    # Each label is an anchor as often as any other, however many photographs it has.
    weight = np.array([1.0 / (len(own) + 1) if len(own) else 0.0 for own in same])
    return Pool(
        descriptor, local, count, rows, same, near, [np.zeros(0, np.int64)] * len(label), weight
    )


def joined(first: Pool, second: Pool, share: float) -> Pool:
    """One pool of two; `share` of the anchors come from the second."""
    shift = len(first)
    both = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("descriptor", "local", "count", "rows")
    }
    lists = {
        name: getattr(first, name) + [entry + shift for entry in getattr(second, name)]
        for name in ("same", "near", "alike")
    }
    weights = [
        (1 - share) * first.weight / first.weight.sum(),
        share * second.weight / second.weight.sum(),
    ]
    return Pool(**both, **lists, weight=np.concatenate(weights))


def nearest(descriptor: np.ndarray, most: int) -> list[np.ndarray]:
    """For each image the indices of its nearest by global descriptor; ties by index.

    An image is none of its own nearest.
    """
    chosen: list[np.ndarray] = []
    for first in range(0, len(descriptor), 1024):
        similarity = descriptor[first : first + 1024] @ descriptor.T
        for i, row in enumerate(similarity, first):
            order = np.argsort(-row, kind="stable")[: most + 1]
            chosen.append(order[order != i][:most])
    return chosen


def _others(views: Views, i: int, candidates: np.ndarray) -> np.ndarray:
    return candidates[
        (views.instance[candidates] != views.instance[i]) & ~entangled(views, i, candidates)
    ]


@dataclass(frozen=True)
class Budget:
    """Tokens a side, drawn log-uniformly from low..high for each step, and pairs.

    pairs * tokens of a step stays about pairs * typical, within least..most pairs. From `long_from`
    of the steps on, low..high is long_low..long_high.
    """

    low: int = 32
    high: int = 160
    long_low: int = 48
    long_high: int = 400
    long_from: float = 0.8
    pairs: int = 32
    typical: int = 90
    least: int = 16
    most: int = 48


class PairSampler:
    """Draws the pairs of a step."""

    def __init__(
        self, pool: Pool, steps: int, seed: int, budget: Budget, lookalikes: float
    ) -> None:
        """lookalikes: share of the negatives from the same photograph, where there are any."""
        self.pool, self.steps, self.seed = pool, steps, seed
        self.budget, self.lookalikes = budget, lookalikes
        self._chance = pool.weight / pool.weight.sum()

    def pairs(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query and gallery images int64 [count], label float32 [count]; half of them positive."""
        query, gallery, label = [], [], []
        for anchor in rng.choice(len(self._chance), count // 2, p=self._chance):
            positive = rng.choice(self.pool.same[anchor])
            alike = self.pool.alike[anchor]
            negatives = (
                alike if len(alike) and rng.uniform() < self.lookalikes else self.pool.near[anchor]
            )
            for other, truth in ((positive, 1.0), (rng.choice(negatives), 0.0)):
                # Not symmetric: each couple serves in either order.
                pair = (anchor, other) if rng.uniform() < 0.5 else (other, anchor)
                query.append(pair[0])
                gallery.append(pair[1])
                label.append(truth)
        return np.asarray(query), np.asarray(gallery), np.asarray(label, np.float32)

    def batch_of(self, step: int) -> PairBatch:
        """The pairs of a step."""
        rng = np.random.default_rng((self.seed, step))
        tokens, count = self._size(rng, step)
        query, gallery, label = self.pairs(rng, count)
        sides = [
            self._side(index, int(n), rng)
            for index, n in ((query, tokens[0]), (gallery, tokens[1]))
        ]
        return PairBatch(*sides, torch.from_numpy(label))

    def pair_count(self, step: int) -> int:
        """How many pairs a step has."""
        return self._size(np.random.default_rng((self.seed, step)), step)[1]

    def _size(self, rng: np.random.Generator, step: int) -> tuple[np.ndarray, int]:
        """Tokens of both sides, pairs."""
        budget = self.budget
        long = step >= budget.long_from * self.steps
        low, high = (budget.long_low, budget.long_high) if long else (budget.low, budget.high)
        tokens = np.exp(rng.uniform(np.log(low), np.log(high), 2)).astype(int)
        count = (
            int(np.clip(budget.pairs * budget.typical / tokens.mean(), budget.least, budget.most))
            // 2
            * 2
        )
        return tokens, count

    def _side(self, index: np.ndarray, tokens: int, rng: np.random.Generator) -> Side:
        pool = self.pool
        # Half of the time some of the strongest are left out, as another image lacks some.
        reach = min(
            int(tokens * rng.uniform(1.0, 1.4)) if rng.uniform() < 0.5 else tokens,
            pool.local.shape[1],
        )
        chosen = np.sort(rng.permutation(reach)[:tokens])
        chosen = chosen[chosen < pool.count[index].max()]
        mask = torch.from_numpy(chosen[None] >= pool.count[index][:, None])
        return Side(
            torch.from_numpy(pool.descriptor[index]),
            torch.from_numpy(pool.local[index[:, None], chosen[None]].astype(np.float32)),
            torch.from_numpy(pool.rows[index[:, None], chosen[None]].astype(np.int64)),
            mask if bool(mask.any()) else None,
        )


def pair_figures(
    model: RerankingTransformer, pool: Pool, sampler: PairSampler, tokens: int, count: int
) -> dict[str, float]:
    """Area under the ROC curve and loss on fixed pairs of the pool."""
    query, gallery, label = sampler.pairs(np.random.default_rng(12345), count)
    pairs = [
        (pool.tokens(q, tokens), pool.tokens(g, tokens))
        for q, g in zip(query, gallery, strict=True)
    ]
    logits = PairScorer(model).score(pairs)
    positive, negative = logits[label > 0.5], logits[label < 0.5]
    higher = (positive[:, None] > negative[None]).mean() + 0.5 * (
        positive[:, None] == negative[None]
    ).mean()
    loss = np.logaddexp(0, np.where(label > 0.5, -logits, logits)).mean()
    return {"val_auc": float(higher), "val_loss": float(loss)}
