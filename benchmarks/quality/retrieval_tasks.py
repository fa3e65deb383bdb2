"""A retrieval task in memory: rerankers' scores on its shortlists, and average precision.

For the quality benchmarks: every method scores the same pairs, from the same descriptors, once; the
scores are kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrt_core.ensemble import ensemble
from rrt_core.rerankers import Locals, Reranker

SHORTLIST = 100
SAVE_EVERY = 60.0  # seconds
# bool [n], the ranking's relevance (complete) -> average precision
Precision = Callable[[np.ndarray], float]


@dataclass
class Task:
    """Queries with their complete rankings by global similarity.

    name        goes into the names of score files
    images      all, by index
    queries     int [q], indices of images
    order       of each query, indices of its gallery without junk, the most similar first
    similarity  of each query, float32, the global similarity in that order
    relevant    of each query, bool, whether the image in that place shows its instance
    """

    name: str
    images: Sequence[Locals]
    queries: np.ndarray
    order: list[np.ndarray]
    similarity: list[np.ndarray]
    relevant: list[np.ndarray]

    def only(self, chosen: np.ndarray, banned: np.ndarray | None = None) -> Task:
        """Some of the queries.

        Images for which `banned` (bool, by index) holds are taken out of the rankings.
        """
        keep = [
            np.ones(len(self.order[i]), bool) if banned is None else ~banned[self.order[i]]
            for i in chosen
        ]
        picked = list(zip(chosen, keep, strict=True))
        return Task(
            self.name,
            self.images,
            self.queries[chosen],
            [self.order[i][k] for i, k in picked],
            [self.similarity[i][k] for i, k in picked],
            [self.relevant[i][k] for i, k in picked],
        )


def make_task(
    name: str,
    images: Sequence[Locals],
    queries: np.ndarray,
    galleries: Sequence[np.ndarray],
    relevant: Callable[[int, np.ndarray], np.ndarray],
) -> Task:
    """Order each query's gallery by global similarity. relevant: (query image, images) -> bool."""
    order, similarity, truth = [], [], []
    descriptors = np.stack([image.global_descriptor for image in images])
    for query, gallery in zip(queries, galleries, strict=True):
        near = descriptors[gallery] @ descriptors[query]
        rank = np.argsort(-near, kind="stable")
        order.append(gallery[rank])
        similarity.append(near[rank])
        truth.append(relevant(int(query), gallery[rank]))
    return Task(name, images, queries, order, similarity, truth)


def scores(
    task: Task, reranker: Reranker, work: Path, shortlist: int = SHORTLIST
) -> list[np.ndarray]:
    """Logits of each query's first `shortlist` images, float32.

    They are kept in `work`, so that a killed run goes on.
    """
    identity = [reranker.name, reranker.revision, reranker.weights_sha256, reranker.config]
    pairs_of = [
        [int(query), *map(int, order[:shortlist])]
        for query, order in zip(task.queries, task.order, strict=True)
    ]
    key = hashlib.sha256(json.dumps([identity, pairs_of], sort_keys=True).encode()).hexdigest()[:20]
    path = work / "scores" / f"{task.name}-{reranker.name}-{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    scored: list[np.ndarray] = []
    if path.exists():
        with np.load(path) as kept:
            scored = np.split(kept["logit"], np.cumsum(kept["count"])[:-1])
    begun, saved, first = time.monotonic(), time.monotonic(), len(scored)
    for i in range(first, len(task.queries)):
        query = task.images[task.queries[i]]
        pairs = [(query, task.images[j]) for j in task.order[i][:shortlist]]
        scored.append(reranker.score(pairs))
        if time.monotonic() - saved > SAVE_EVERY or i + 1 == len(task.queries):
            _save(path, scored)
            saved = time.monotonic()
            done = sum(map(len, scored[first:]))
            print(
                f"  {task.name} {reranker.name}: {i + 1}/{len(task.queries)} queries,"
                f" {done / (saved - begun):.1f} pairs a second",
                file=sys.stderr,
                flush=True,
            )
    return scored


def average_precisions(
    task: Task, scored: Sequence[np.ndarray] | None, precision: Precision
) -> np.ndarray:
    """Average precision of each query, its shortlist ordered by `scored` (None: global order)."""
    values = []
    for i, relevant in enumerate(task.relevant):
        if scored is not None:
            top = np.argsort(-scored[i], kind="stable")
            relevant = np.concatenate([relevant[: len(top)][top], relevant[len(top) :]])
        values.append(precision(relevant))
    return np.asarray(values)


def firsts(task: Task, scored: Sequence[np.ndarray] | None) -> np.ndarray:
    """bool [q], whether the first place is relevant."""
    ordered = (
        task.relevant
        if scored is None
        else [
            relevant[np.argsort(-s, kind="stable")]
            for relevant, s in zip(task.relevant, scored, strict=True)
        ]
    )
    return np.array([bool(relevant[0]) for relevant in ordered])


def perfect(task: Task, shortlist: int = SHORTLIST) -> list[np.ndarray]:
    """The scores of a reranker that knows what is relevant."""
    return [relevant[:shortlist].astype(np.float32) for relevant in task.relevant]


def ensembled(
    task: Task, scored: Sequence[np.ndarray], weight: float, gamma: float
) -> list[np.ndarray]:
    """weight * global + (1 - weight) * sigmoid(gamma * logit), a shortlist each."""
    return [
        ensemble(near[: len(logit)], logit, weight, gamma)
        for near, logit in zip(task.similarity, scored, strict=True)
    ]


def plain_average_precision(relevant: np.ndarray) -> float:
    """Mean of the precisions at the relevant places."""
    places = np.flatnonzero(relevant) + 1
    return float(np.mean(np.arange(1, len(places) + 1) / places)) if len(places) else 0.0


def bootstrap(difference: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, by the percentile bootstrap over queries."""
    picks = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _save(path: Path, scored: Sequence[np.ndarray]) -> None:
    beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez(
        beside, logit=np.concatenate(scored), count=np.array([len(logits) for logits in scored])
    )
    beside.replace(path)
