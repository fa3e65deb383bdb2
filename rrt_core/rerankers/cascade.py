"""A cascade: a cheap reranker looks at all candidates of a query, a dear one at the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rrt_core.options import check_whole
from rrt_core.rerankers import Locals, QueryScores, Reranker, create, identity_of
from schemas.errors import UserError

FEW_TOKENS = {"query_tokens": 64, "gallery_tokens": 64}


class CascadeReranker(Reranker):
    """Scores all candidates of a query with `first` and the `keep` best of those with `second`.

    One list of logits a query comes out (`combine`): those kept have the logit of `second` as it
    is; all others stand below them in the order of `first`. With `keep` of at least the number of
    candidates it is `second` exactly, with 0 it is `first`.

    Which candidates are kept depends on what they are compared with, so this reranker works on
    lists (`score_query`). Where several protocols rerank different shortlists of one query, each
    list keeps its own best; both raw logits are stored, and each ranking is combined anew from
    them, so that one without label knowledge has none. A pair by itself (`score`) is a list of one:
    it is kept.

    In an ensemble, lambda * global + (1 - lambda) * sigmoid(gamma * logit), a candidate that is not
    kept counts as at least one logit less likely than the least likely one kept, and those that are
    not kept nearly alike: `first` then orders them little, the global score more. With a large gap
    between their global scores one that is not kept may pass one that is. With `keep` 0 all logits
    are those of `first`, whose scale another gamma may suit.
    """

    name = "cascade"
    revision = 1

    def __init__(
        self,
        keep: int = 20,
        first: str = "rrt",
        second: str = "rrt",
        first_options: dict[str, Any] | None = None,
        second_options: dict[str, Any] | None = None,
    ) -> None:
        """Make both rerankers.

        Args:
            keep: candidates of each list that `second` scores, at least 0.
            first, second: as the name of any reranker.
            first_options: of `first`; None: 64 tokens a side.
            second_options: of `second`; None: its defaults.
        """
        check_whole("Reranker option keep", keep, 0)
        self.keep = keep
        self.first = _stage("first", first, FEW_TOKENS if first_options is None else first_options)
        self.second = _stage("second", second, second_options or {})
        self.weights_sha256 = self.second.weights_sha256
        stages = (self.first, self.second)
        self.notes = _notes(stages)
        self.config = {
            "keep": keep,
            # How many locals must be read.
            "query_tokens": max(int(stage.config.get("query_tokens", 500)) for stage in stages),
            "gallery_tokens": max(int(stage.config.get("gallery_tokens", 500)) for stage in stages),
            "first": identity_of(self.first),
            "second": identity_of(self.second),
        }

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """As Reranker.score: each pair is a list of one, and kept."""
        return (self.second if self.keep else self.first).score(pairs)

    def score_query(
        self, query: Locals, candidates: Sequence[Locals], lists: Sequence[np.ndarray] | None = None
    ) -> QueryScores:
        """As Reranker.score_query.

        A candidate that any list keeps is scored with `second`, once.
        """
        first = self.first.score_query(query, candidates).logit
        everything = [np.arange(len(candidates))] if lists is None else lists
        kept = np.zeros(len(candidates), bool)
        for positions in everything:
            kept[positions[best(first[positions], self.keep)]] = True
        second = np.zeros(len(candidates), np.float32)
        second[kept] = self.second.score_query(
            query, [candidates[int(i)] for i in np.flatnonzero(kept)]
        ).logit
        return QueryScores(combine(first, second, kept), first, self.keep)


def best(first: np.ndarray, keep: int) -> np.ndarray:
    """bool [n]: the `keep` largest of float [n]; of equal ones those that come first."""
    kept = np.zeros(len(first), bool)
    kept[np.argsort(-np.asarray(first, np.float64), kind="stable")[:keep]] = True
    return kept


def combine(first: np.ndarray, second: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """One list of logits from both, float32 [n].

    Kept ones: `second`, untouched. Others: one below the smallest kept, then falling by 1/1024 (by
    more where float32 does not hold that) from each logit of `first` to the next smaller; equal
    ones stay equal, so that a replay orders them globally. Where none is kept: `first`, untouched.

    Args:
        first, second: float32 [n]; `second` is read only where `kept`, bool [n].
    """
    if not kept.any():
        return np.asarray(first, np.float32)
    lowest = float(second[kept].min())
    others = np.asarray(first, np.float64)[~kept]
    _, place = np.unique(-others, return_inverse=True)
    resolved = 2.0 * float(np.spacing(np.float32(2.0 * (abs(lowest) + len(others) + 1.0))))
    logits = np.array(second, np.float32)
    logits[~kept] = lowest - max(1.0, resolved) - place * max(2.0**-10, resolved)
    return logits


def _stage(option: str, name: str, options: Any) -> Reranker:
    if not isinstance(options, dict):
        raise UserError(
            f"Reranker option {option}_options must be a mapping of options, not {options!r}."
        )
    stage = create(name, **options)
    if isinstance(stage, CascadeReranker):
        raise UserError(f"Reranker option {option} must not be a cascade itself.")
    return stage


def _notes(stages: Sequence[Reranker]) -> dict[str, Any]:
    """What made the weights of `second`.

    It is what made those of `first` where only they say which descriptors they fit.

    Raises UserError where they fit different descriptors.
    """
    noted: list[dict[str, Any]] = [
        notes for stage in reversed(stages) if (notes := getattr(stage, "notes", {}))
    ]
    trained = [notes["extractor"] for notes in noted if notes.get("extractor")]
    if len(trained) == 2 and any(
        trained[0].get(key) != trained[1].get(key) for key in ("name", "weights_sha256")
    ):
        raise UserError(
            "The weights of the cascade's two rerankers were trained for descriptors of different "
            f"extractors, {trained[1].get('name')} and {trained[0].get('name')}: give weights that "
            "fit the same descriptors."
        )
    return next((notes for notes in noted if notes.get("extractor")), noted[0] if noted else {})
