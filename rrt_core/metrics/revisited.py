"""Retrieval metrics of Revisited Oxford and Paris, and the order after reranking by protocol.

Source: Radenovic et al., Revisiting Oxford and Paris, CVPR 2018; the numbers equal those of its
published `python/evaluate.py`. A ranking is an int array [n] of gallery positions, the best first;
-1, or any position that no list names, is a distractor. It may be cut short: positives that it
lacks add nothing to the average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

KAPPAS = (1, 5, 10)


@dataclass(frozen=True)
class Protocol:
    """Which lists of a query are positive and which are junk.

    Junk is left out as if it were not in the gallery.
    """

    positive: tuple[str, ...]
    junk: tuple[str, ...]


PROTOCOLS = {
    "easy": Protocol(positive=("easy",), junk=("junk", "hard")),
    "medium": Protocol(positive=("easy", "hard"), junk=("junk",)),
    "hard": Protocol(positive=("hard",), junk=("junk", "easy")),
}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one protocol. Queries without positives are NaN and left out of the means.

    Attributes:
        means: "mAP", "mP@1", "mP@5", "mP@10" (one a kappa), in [0, 1]; NaN where no query counts.
        average_precision: float64 [queries].
        precision: float64 [queries, kappas]; precision at min(kappa, place of the last positive
            in the ranking).
        positives: int64 [queries], positives of the ground truth.
        retrieved: int64 [queries], how many of them are in the ranking.
        counted: queries in the means.
    """

    protocol: str
    means: dict[str, float]
    average_precision: FloatArray
    precision: FloatArray
    positives: IntArray
    retrieved: IntArray
    counted: int


def positions_of(query: QueryTruth, lists: Sequence[str]) -> IntArray:
    """The gallery positions int64 [m] in the named lists ("easy", "hard", "junk") of a query."""
    return np.array(
        [position for name in lists for position in getattr(query, name)], dtype=np.int64
    )


def positive_places(
    ranking: npt.ArrayLike,
    positive: npt.ArrayLike,
    junk: npt.ArrayLike,
    places: npt.ArrayLike | None = None,
) -> IntArray:
    """0-based places int64 [positives that it holds] in a ranking, rising.

    They are counted as if junk were absent.

    Args:
        places: int [n], rising: the 0-based place of each entry, where the ranking leaves
            distractors out; by default 0 to n - 1.
    """
    ranking = np.asarray(ranking)
    listed = np.flatnonzero(np.isin(ranking, positive))
    junk_before = np.concatenate([[0], np.cumsum(np.isin(ranking, junk))])
    found = listed if places is None else np.asarray(places)[listed]
    return np.asarray(found - junk_before[listed], dtype=np.int64)


def average_precision(places: IntArray, positives: int) -> float:
    """Area under the precision-recall curve by trapezoids, in [0, 1].

    Args:
        places: of the positives in the ranking, from `positive_places`.
        positives: number of positives of the ground truth, at least 1.
    """
    earlier = np.arange(len(places))
    # precision just above each positive
    before = np.where(places == 0, 1.0, earlier / np.maximum(places, 1))
    after = (earlier + 1) / (places + 1)  # and with it
    return float((before + after).sum() / (2 * positives))


def precision_at(places: IntArray, kappas: Sequence[int] = KAPPAS) -> FloatArray:
    """Precision float64 [kappas] in the first k.

    k is at most the place of the last positive in the ranking.
    """
    if len(places) == 0:
        return np.zeros(len(kappas))
    cuts = np.minimum(places.max() + 1, np.asarray(kappas))
    return np.asarray((places[:, None] < cuts).sum(axis=0) / cuts, dtype=np.float64)


def evaluate(
    rankings: Sequence[npt.ArrayLike],
    queries: Sequence[QueryTruth],
    protocol: str,
    kappas: Sequence[int] = KAPPAS,
    places: Sequence[npt.ArrayLike] | None = None,
) -> Evaluation:
    """Metrics of one ranking a query under "easy", "medium" or "hard".

    Args:
        rankings: one a query, in the order of `queries`: gallery positions, the best first.
        places: one a query, as of `positive_places`, where rankings leave distractors out.

    Raises:
        ValueError: another number of rankings, or of their places, than of queries; an unknown
            protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    if len(rankings) != len(queries):
        raise ValueError(f"{len(rankings)} rankings for {len(queries)} queries.")
    if places is not None and len(places) != len(queries):
        raise ValueError(f"Places of {len(places)} rankings for {len(queries)} queries.")
    rule = PROTOCOLS[protocol]
    aps = np.full(len(queries), np.nan)
    precision = np.full((len(queries), len(kappas)), np.nan)
    positives = np.zeros(len(queries), dtype=np.int64)
    retrieved = np.zeros(len(queries), dtype=np.int64)

    for row, (ranking, query) in enumerate(zip(rankings, queries, strict=True)):
        positive = positions_of(query, rule.positive)
        junk, own = positions_of(query, rule.junk), None if places is None else places[row]
        found = positive_places(ranking, positive, junk, own)
        positives[row], retrieved[row] = len(positive), len(found)
        if len(positive):
            aps[row] = average_precision(found, len(positive))
            precision[row] = precision_at(found, kappas)

    counts = positives > 0
    columns = {"mAP": aps} | {
        f"mP@{kappa}": precision[:, column] for column, kappa in enumerate(kappas)
    }
    counted = int(counts.sum())
    means = {
        name: float(np.mean(values[counts])) if counted else np.nan
        for name, values in columns.items()
    }

    return Evaluation(protocol, means, aps, precision, positives, retrieved, counted)


def shortlist_positions(ranking: npt.ArrayLike, junk: npt.ArrayLike, size: int) -> IntArray:
    """Places int64 [<= size] in the ranking of what is reranked.

    They are the first `size` that are not junk.

    Places, not gallery positions, since distractors share the position -1: `ranking[places]` gives
    those. Without label knowledge `junk` is empty.
    """
    return np.flatnonzero(~np.isin(ranking, junk))[:size].astype(np.int64)


def replay(
    ranking: npt.ArrayLike, junk: npt.ArrayLike, size: int, logits: npt.ArrayLike
) -> IntArray:
    """The order after reranking, as places int64 [n].

    `ranking[order]` is the new ranking.

    The first `size` that are not junk by logit falling, ties in the order of the ranking; then the
    others in the order of the ranking; then junk likewise.

    Args:
        ranking: int [n], in the global order.
        logits: float [n], one a place of the ranking; read only at `shortlist_positions`, anything
            elsewhere.

    Raises:
        ValueError: a place of the shortlist has no logit (NaN), or `logits` has another length.
    """
    is_junk = np.isin(ranking, junk)
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != is_junk.shape:
        raise ValueError(f"Logits of shape {logits.shape} for a ranking of shape {is_junk.shape}.")
    kept = np.flatnonzero(~is_junk)
    shortlist = kept[:size]
    missing = int(np.isnan(logits[shortlist]).sum())
    if missing:
        raise ValueError(f"{missing} of a shortlist of {len(shortlist)} have no logit.")
    reranked = shortlist[np.argsort(-logits[shortlist], kind="stable")]
    return np.concatenate([reranked, kept[size:], np.flatnonzero(is_junk)]).astype(np.int64)


def protocols_of(ground_truth: GroundTruth) -> tuple[str, ...]:
    """The protocols that have a meaning: all three, or medium alone where levels are not known."""
    return tuple(PROTOCOLS) if ground_truth.levels else ("medium",)


def required_depth(ground_truth: GroundTruth, shortlist: int) -> int:
    """How much of the global ranking must be kept for the shortlists of Medium and Hard to be full.

    The shortlist plus the largest number of images of one query that are moved to the end: easy +
    junk for Hard, junk alone where levels are not known. Easy, which is evaluated but not reranked,
    does not count.
    """
    moved = PROTOCOLS["hard" if ground_truth.levels else "medium"].junk
    return shortlist + max(
        (len(positions_of(query, moved)) for query in ground_truth.queries), default=0
    )
