"""What a reranker is, and how one is made by name.

A reranker scores pairs (query image, gallery image) from their stored descriptors. It never sees
pixels, never opens a store, and knows nothing of shortlists or protocols. Scores of one reranker
are comparable with each other only: raw logits, higher = more likely the same instance.

A new reranker is one file and one line in `REGISTRY`; an installed package adds one by an entry
point of the group `rrt_pipelines.rerankers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from schemas.errors import UserError
from schemas.registry import Registry


def identity_of(reranker: Reranker) -> dict[str, Any]:
    """What of a reranker goes into a recipe."""
    return {
        "name": reranker.name,
        "revision": reranker.revision,
        "weights_sha256": reranker.weights_sha256,
        "config": reranker.config,
    }


# Modules are named, not imported: `mutual_nn` must not wait for torch.
REGISTRY = Registry(
    "reranker",
    "rrt_pipelines.rerankers",
    {
        "rrt": "rrt_core.rerankers.rrt:RRTReranker",
        "mutual_nn": "rrt_core.rerankers.mutual_nn:MutualNNReranker",
        "geometric": "rrt_core.rerankers.geometric:GeometricReranker",
        "cascade": "rrt_core.rerankers.cascade:CascadeReranker",
    },
)

PAIRS_A_CALL = 256  # of `score`, where a query has more candidates


@dataclass
class Locals:
    """What is stored of one image, as a reranker takes it.

    global_descriptor: float32 [D], L2 = 1
    descriptors: float32 [n, L], L2 = 1; n = 0 is allowed
    xy: float32 [n, 2], pixels of the upright original
    scale: uint8 [n], ordinal in `scales`
    strength: float32 [n], the detector's; higher = stronger
    scales: the store's list, image scale of each ordinal (1.0 = the image as the extractor takes it
        in)
    """

    global_descriptor: np.ndarray
    descriptors: np.ndarray
    xy: np.ndarray
    scale: np.ndarray
    strength: np.ndarray
    scales: tuple[float, ...]

    def first(self, count: int) -> Locals:
        """The first `count` locals, in their stored order, of which every prefix serves."""
        if len(self.descriptors) <= count:
            return self
        return Locals(
            self.global_descriptor,
            self.descriptors[:count],
            self.xy[:count],
            self.scale[:count],
            self.strength[:count],
            self.scales,
        )


@dataclass(frozen=True)
class QueryScores:
    """Scores of one query's candidates.

    logit: float32 [n], one comparable list, higher = more likely the same instance
    first, keep: of a cascade (cascade.py): the raw logits of its first reranker, float32 [n], and
        how many of a list go on to the second; `logit` is the second's wherever a list kept the
        candidate
    """

    logit: np.ndarray
    first: np.ndarray | None = None
    keep: int = 0


class Reranker(ABC):
    """Scores pairs. What names its identity in a manifest are the four attributes.

    name: key in the registry.
    revision: raised by hand when the same input gives other scores.
    weights_sha256: of the weights file, "" where there are none.
    config: JSON, all that changes scores.
    """

    name: ClassVar[str]
    revision: ClassVar[int]
    weights_sha256: str
    config: dict[str, Any]

    @abstractmethod
    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """Raw logits, float32 [len(pairs)], of (query, gallery) pairs in that order.

        A pair's logit does not depend on the other pairs of the call.
        Raises UserError where descriptors do not fit the reranker.
        """

    def score_query(
        self, query: Locals, candidates: Sequence[Locals], lists: Sequence[np.ndarray] | None = None
    ) -> QueryScores:
        """Scores of all candidates of a query.

        A reranker may override it to compare the candidates with each other.

        Args:
            candidates: n of them, in global order.
            lists: int64 positions, rising, of the candidates in each list that will be ranked by
                itself (the shortlists of the protocols); None: one list of all.
        """
        logits = []
        for start in range(0, len(candidates), PAIRS_A_CALL):
            pairs = [(query, candidate) for candidate in candidates[start : start + PAIRS_A_CALL]]
            answer = self.score(pairs)
            if np.shape(answer) != (len(pairs),):
                raise UserError(
                    f"The reranker {self.name!r} gave logits of shape {np.shape(answer)} to "
                    f"{len(pairs)} pairs; its score() must give one for each, in order."
                )
            logits.append(answer)

        return QueryScores(np.concatenate([np.zeros(0, np.float32), *logits]).astype(np.float32))


def is_known(name: str) -> bool:
    """Whether a name is registered: no user's own class."""
    return REGISTRY.target(name) is not None


def create(name: str, **options: Any) -> Reranker:
    """Make a reranker: a registered name, or a user's own ``package.module:Class``.

    Raises:
        UserError: unknown name, module or class; an option that the reranker does not have; a
            class that does not set what `Reranker` asks for.
    """
    target = REGISTRY.target(name) or name

    if ":" not in target:
        raise UserError(
            f"There is no reranker {name!r}: choose {' or '.join(REGISTRY.names())}, or name a "
            "class of your own as package.module:Class."
        )

    made = REGISTRY.load_class(name, Reranker, target)
    REGISTRY.check_options(name, made, options)
    reranker: Reranker = made(**options)
    REGISTRY.check_attributes(reranker, Reranker.__annotations__)
    return reranker


def check_same_width(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raise UserError where descriptors [n, L] of the two sides, both with rows, differ in L."""
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"Local descriptors of query and gallery have different dimensions, {query.shape[1]} "
            f"and {gallery.shape[1]}: describe both with the same extractor."
        )
