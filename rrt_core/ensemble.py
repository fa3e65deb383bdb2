"""Score ensembling: the global similarity and the reranker's logit in one score.

It is replayed from stored raw logits, over the first k of a shortlist:

    final = lambda * global + (1 - lambda) * sigmoid(gamma * logit)

lambda = 0 is the reranker's own order, lambda = 1 the global one. Source: the formula of AMES
(Suma, Kordopatis-Zilos, Iscen, Tolias, ECCV 2024), `src/utils/metrics.py` of its repository; ELViS
uses it too. RRT sorts by the logit alone.

`search` tries a grid of (lambda, gamma, k) for any metric that is a mean over queries. It is meant
for a validation set: weights that were chosen on the queries that they are then reported on prove
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rrt_core.metrics.revisited import FloatArray, IntArray, positive_places, replay

BoolArray = npt.NDArray[np.bool_]
# of a query, in the global order: global scores [n], raw logits [n]
Candidates = tuple[npt.ArrayLike, npt.ArrayLike]
# query number, orders [g, n] of its candidates -> values [g]
Metric = Callable[[int, IntArray], FloatArray]

LAMBDAS = tuple(round(step * 0.05, 2) for step in range(21))
GAMMAS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True)
class Ensemble:
    """Weight of the global score, steepness of the sigmoid, and how many are reordered.

    lambda_ lies in [0, 1], gamma is above 0, k counts the first of a shortlist.

    Raises:
        ValueError: a value out of its range.
    """

    lambda_: float
    gamma: float
    k: int

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda is {self.lambda_:g}; it must be between 0 and 1")
        if not (self.gamma > 0 and np.isfinite(self.gamma)):
            raise ValueError(f"gamma is {self.gamma:g}; it must be a finite number above 0")
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be at least 1")

    def __str__(self) -> str:
        return f"lambda {self.lambda_:g}, gamma {self.gamma:g}, k {self.k}"


@dataclass(frozen=True)
class Grid:
    """What `search` tries: every lambda with every gamma and every k.

    Each tuple rises, without repetition.

    Raises:
        ValueError: a tuple is empty, not rising, or holds a value that `Ensemble` refuses.
    """

    lambdas: tuple[float, ...]
    gammas: tuple[float, ...]
    ks: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, values in (("lambda", self.lambdas), ("gamma", self.gammas), ("k", self.ks)):
            if not values or any(a >= b for a, b in pairwise(values)):
                raise ValueError(
                    f"the values of {name} are {list(values)}; each must be larger than the one "
                    "before"
                )
        for end in (0, -1):
            Ensemble(self.lambdas[end], self.gammas[end], self.ks[end])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of ks, lambdas and gammas: the shape of the values of a search."""
        return len(self.ks), len(self.lambdas), len(self.gammas)

    def at(self, k: int, lambda_: int, gamma: int) -> Ensemble:
        """The ensemble at three indices."""
        return Ensemble(self.lambdas[lambda_], self.gammas[gamma], self.ks[k])

    def index(self, chosen: Ensemble) -> tuple[int, int, int]:
        """The inverse of `at`. Raises ValueError for what is not on the grid."""
        return (
            self.ks.index(chosen.k),
            self.lambdas.index(chosen.lambda_),
            self.gammas.index(chosen.gamma),
        )


def default_grid(shortlist: int) -> Grid:
    """Lambda 0 to 1 by 0.05, gamma 0.05 to 10 in about equal ratios, k 10, 20, 50, 100 ...

    The last k is the shortlist.
    """
    steps = (digit * 10**power for power in range(1, 9) for digit in (1, 2, 5))
    return Grid(LAMBDAS, GAMMAS, (*(k for k in steps if k < shortlist), shortlist))


def sigmoid(x: npt.ArrayLike) -> FloatArray:
    """1 / (1 + exp(-x)) in float64, any shape, in [0, 1].

    Nothing overflows. From x = 37 on it is exactly 1.
    """
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small), dtype=np.float64)


def ensemble(
    global_scores: npt.ArrayLike, logits: npt.ArrayLike, lambda_: float, gamma: float
) -> FloatArray:
    """lambda * global + (1 - lambda) * sigmoid(gamma * logit), float64 [n], from two arrays [n].

    To sort by it, use `orders`: large logits all become 1 here, and their order would vanish.

    Raises:
        ValueError: arrays of different shapes, lambda outside [0, 1], gamma not above 0.
    """
    scores, raw = _pair(global_scores, logits)
    Ensemble(lambda_, gamma, 1)
    return lambda_ * scores + (1.0 - lambda_) * sigmoid(gamma * raw)


def orders(
    global_scores: npt.ArrayLike,
    logits: npt.ArrayLike,
    lambdas: npt.ArrayLike,
    gammas: npt.ArrayLike,
) -> IntArray:
    """Orders int64 [g, n] of the same n candidates, the best first.

    There is one for each pair (lambdas[i], gammas[i]).

    Equal finals go by the logit, then by place. Where lambda is 0 the order is that of the raw
    logits and where it is 1 that of the global scores, both exactly, with ties by place.

    Args:
        global_scores, logits: [n]; no NaN.
        lambdas, gammas: [g].

    Raises:
        ValueError: arrays of different shapes, or a NaN.
    """
    scores, raw = _pair(global_scores, logits)
    share, steepness = (
        np.asarray(values, dtype=np.float64)[:, None] for values in (lambdas, gammas)
    )
    by_logit = np.argsort(-raw, kind="stable")
    finals = share * scores[by_logit] + (1.0 - share) * sigmoid(steepness * raw[by_logit])
    ordered = by_logit[np.argsort(-finals, axis=1, kind="stable")]
    ordered[share[:, 0] == 0] = by_logit  # rounding of exp aside
    ordered[share[:, 0] == 1] = np.argsort(-scores, kind="stable")
    return ordered.astype(np.int64)


def replay_ensemble(
    ranking: npt.ArrayLike,
    junk: npt.ArrayLike,
    global_scores: npt.ArrayLike,
    logits: npt.ArrayLike,
    chosen: Ensemble,
) -> IntArray:
    """The order after ensembling, as places int64 [n] in the ranking.

    It is `metrics.replay` by the final score.

    The first k that are not junk by final score, ties as in `orders`; then the others in the order
    of the ranking, then junk likewise.

    Args:
        ranking: int [n], gallery positions in the global order.
        junk: gallery positions that are moved to the end; empty without label knowledge.
        global_scores: [n].
        logits: [n], NaN where a pair was not scored.

    Raises:
        ValueError: one of the first k has no logit; arrays of different shapes.
    """
    scores, raw = _pair(global_scores, logits, missing=True)
    scored = np.flatnonzero(~np.isnan(raw))
    keys = np.full(len(raw), np.nan)
    keys[
        scored[orders(scores[scored], raw[scored], [chosen.lambda_], [chosen.gamma])[0]]
    ] = -np.arange(len(scored))
    return replay(ranking, junk, chosen.k, keys)


def search(candidates: Sequence[Candidates], metric: Metric, grid: Grid) -> FloatArray:
    """The mean of a metric over queries at every point of a grid: float64 [ks, lambdas, gammas].

    `best` chooses from it.

    Args:
        candidates: of each query, its first max(grid.ks) or fewer in the global order; beyond a k
            they keep it.
        metric: what a query's orders are worth; a NaN leaves the query out of all means. `Judged`
            gives average precision.

    Raises:
        ValueError: arrays of different shapes, or a NaN among the logits.
    """
    share, steepness = (
        axis.ravel() for axis in np.meshgrid(grid.lambdas, grid.gammas, indexing="ij")
    )
    values = np.full((len(candidates), *grid.shape), np.nan)
    for number, pair in enumerate(candidates):
        scores, raw = _pair(*pair)
        for row, k in enumerate(grid.ks):
            if row and grid.ks[row - 1] >= len(raw):  # a larger k changes nothing
                values[number, row] = values[number, row - 1]
                continue
            behind = np.broadcast_to(
                np.arange(min(k, len(raw)), len(raw)), (len(share), max(0, len(raw) - k))
            )
            ordered = np.concatenate(
                [orders(scores[:k], raw[:k], share, steepness), behind], axis=1
            )
            values[number, row] = metric(number, ordered).reshape(grid.shape[1:])

    counted = ~np.isnan(values).any(axis=(1, 2, 3))
    return np.asarray(
        values[counted].mean(axis=0) if counted.any() else np.full(grid.shape, np.nan),
        dtype=np.float64,
    )


def best(values: FloatArray, grid: Grid) -> Ensemble:
    """The ensemble with the highest of the values [ks, lambdas, gammas] of `search`.

    Ties (to 12 decimals) go to the smallest k, then the smallest lambda, then the smallest gamma.

    Raises:
        ValueError: no query had a value.
    """
    if np.isnan(values).any():
        raise ValueError("no query has a value of the metric")
    k, lambda_, gamma = np.unravel_index(int(np.argmax(np.round(values, 12))), values.shape)
    return grid.at(int(k), int(lambda_), int(gamma))


@dataclass(frozen=True)
class Judged:
    """How a ground truth judges one query's candidates.

    Its `average_precisions` is a metric for `search`.

    Attributes:
        relevant, ignored: bool [n], of the candidates in the global order; what is ignored counts
            as if it were absent.
        behind: int64 [m], places of the positives that come after all candidates, from
            `metrics.positive_places`.
        positives: of the ground truth, whether in the ranking or not.
    """

    relevant: BoolArray
    ignored: BoolArray
    behind: IntArray
    positives: int

    def average_precisions(self, ordered: IntArray) -> FloatArray:
        """Average precision float64 [g] of orders [g, n] of the candidates.

        NaN where the query has no positive.

        Equal to `metrics.average_precision` of the whole ranking, but for rounding.
        """
        if not self.positives:
            return np.full(len(ordered), np.nan)
        hits = self.relevant[ordered]
        places = np.arange(ordered.shape[1]) - np.cumsum(self.ignored[ordered], axis=1)
        count = np.cumsum(hits, axis=1)
        steps = np.where(hits, _trapezoids(places, count), 0.0).sum(axis=1)
        rest = _trapezoids(
            self.behind, int(self.relevant.sum()) + 1 + np.arange(len(self.behind))
        ).sum()
        return np.asarray((steps + rest) / (2 * self.positives), dtype=np.float64)


def judge(
    ranking: npt.ArrayLike, candidates: int, positive: npt.ArrayLike, junk: npt.ArrayLike
) -> Judged:
    """How a query's ranking is judged whose first so many are its candidates.

    Args:
        ranking: int [n], gallery positions: the candidates in the global order, then what comes
            behind them.
        positive, junk: gallery positions.
    """
    whole, positive = np.asarray(ranking), np.asarray(positive)
    first = whole[:candidates]
    relevant, ignored = np.isin(first, positive), np.isin(first, junk)
    behind = positive_places(whole, positive, junk)[int(relevant.sum()) :]
    return Judged(relevant, ignored, behind, len(positive))


def _trapezoids(places: npt.ArrayLike, count: npt.ArrayLike) -> FloatArray:
    """Twice the area that a positive adds at a place when it is the count-th."""
    at, number = np.maximum(places, 0), np.asarray(count)  # -1: ignored, at the top
    before = np.where(at == 0, 1.0, (number - 1) / np.maximum(at, 1))
    return np.asarray(before + number / (at + 1), dtype=np.float64)


def _pair(
    global_scores: npt.ArrayLike, logits: npt.ArrayLike, *, missing: bool = False
) -> tuple[FloatArray, FloatArray]:
    scores, raw = np.asarray(global_scores, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != raw.shape:
        raise ValueError(f"Global scores of shape {scores.shape} for logits of shape {raw.shape}.")
    if np.isnan(scores).any() or (not missing and np.isnan(raw).any()):
        raise ValueError("A candidate has no global score or no logit (NaN).")
    return scores, raw
