"""Ensembles of a run: what `--ensemble` asks for, where it lies, and its rankings, replayed from
the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.jobs.manifests import read_entries, read_manifest, require_manifest
from pipelines.jobs.plan import differences
from pipelines.results.scores import NO_SCORES, StoredScores, read_scores
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import Truth
from pipelines.storage.place import open_place
from rrt_core.ensemble import Ensemble, replay_ensemble
from rrt_core.metrics.revisited import PROTOCOLS, positions_of, shortlist_positions
from schemas.errors import UserError
from schemas.manifest import Manifest, sha256_text
from schemas.tuned import Tuned

FORMS = "lambda,gamma or lambda,gamma,k (such as 0.5,0.3,100), or the file that 'tune' wrote"


@dataclass(frozen=True)
class Asked:
    """What `--ensemble` asks for; k is None for the whole of what was reranked.

    Attributes:
        tuned, input: the file of `tune` and what a job records of it, where it was one.
    """

    lambda_: float
    gamma: float
    k: int | None
    tuned: Tuned | None = None
    input: dict[str, str] | None = None

    def at(self, shortlist: int, where: str) -> Ensemble:
        """The ensemble over a run's shortlist.

        Raises UserError where fewer were reranked than it reorders.
        """
        k = shortlist if self.k is None else self.k
        if k > shortlist:
            raise UserError(
                f"{where}: the ensemble reorders the first {k}, but only {shortlist} were "
                f"reranked; "
                f"rerank with --shortlist {k}, or give a smaller k"
            )
        return Ensemble(self.lambda_, self.gamma, k)

    def folder(self, shortlist: int, where: str) -> str:
        """The folder of its evaluation, below the run."""
        if self.input is not None:
            return f"ensemble/tuned-{self.input['content'][:12]}"
        chosen = self.at(shortlist, where)
        return f"ensemble/lambda={chosen.lambda_!r},gamma={chosen.gamma!r},k={chosen.k}"


def read_asked(pieces: Sequence[str]) -> Asked:
    """What the pieces of `--ensemble`, split at its commas, ask for.

    Raises UserError for anything else.
    """
    text = ",".join(pieces)
    try:
        numbers = [float(piece) for piece in pieces]
    except ValueError:
        return _read_tuned(text)
    if len(numbers) not in (2, 3):
        raise UserError(f"--ensemble is {text!r}; it must be {FORMS}")
    k = numbers[2] if len(numbers) == 3 else None
    try:
        if k is not None and not float(k).is_integer():
            raise ValueError(f"k is {k:g}; it must be a whole number")
        checked = Ensemble(numbers[0], numbers[1], 1 if k is None else int(k))
    except ValueError as error:
        raise UserError(f"--ensemble is {text!r}: {error}") from None
    return Asked(checked.lambda_, checked.gamma, None if k is None else checked.k)


def _read_tuned(url: str) -> Asked:
    place = open_place(url)
    try:
        data = place.read("")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"--ensemble is {url!r}, and there is no such file; it must be {FORMS}"
        ) from None
    tuned = Tuned.from_bytes(data, place.url)
    try:
        chosen = Ensemble(tuned.best["lambda"], tuned.best["gamma"], int(tuned.best["k"]))
    except ValueError as error:
        raise UserError(f"{place.url} holds no ensemble: {error}; tune again") from None
    return Asked(
        chosen.lambda_,
        chosen.gamma,
        chosen.k,
        tuned,
        {"url": place.url, "content": sha256_text(data.hex())},
    )


def require_scores(url: str, shortlist: Manifest) -> Manifest:
    """The manifest of a run's scores.

    Raises UserError where there are none, or those of another shortlist.
    """
    scores = require_manifest(f"{url}/scores", "scores", "rerank")
    if scores.inputs["shortlist"]["content"] != shortlist.content:
        raise UserError(
            f"{url}/scores was made for another shortlist than {url}/shortlist holds; rerank again"
        )
    return scores


def refuse_other_truth(url: str, scores: Manifest, truth: dict[str, str]) -> None:
    """Raise UserError where the scores hold not the shortlists that this ground truth's protocols
    rerank.
    """
    if scores.inputs.get("ground_truth", {}).get("content") != truth["content"]:
        raise UserError(
            f"{url}/scores was not made with the ground truth {truth['url']}, so that the "
            f"shortlists of its protocols "
            "may lack scores; rerank with --ground-truth"
        )


def extractor_of(shortlist: Manifest) -> dict[str, Any] | None:
    """What described the queries, or None where their store is gone."""
    store = read_manifest(open_place(shortlist.inputs["queries"]["url"]))
    return None if store is None else store.recipe.get("extractor")


def refuse_where_tuned(
    asked: Asked, url: str, shortlist: Manifest, scores: Manifest, truth: dict[str, str]
) -> None:
    """Raise UserError where a tuned ensemble would be used on what it was tuned on, or for other
    models.
    """
    if asked.tuned is None or asked.input is None:
        return
    file, made_on = asked.input["url"], asked.tuned.inputs
    same = {
        f"the ground truth {truth['url']}": made_on["ground_truth"]["content"] == truth["content"],
        f"the scores of {url}": made_on["scores"]["content"] == scores.content,
        f"the queries of {url}": made_on["queries"]["content"]
        == shortlist.inputs["queries"]["content"],
    }
    for what, is_same in same.items():
        if is_same:
            raise UserError(
                f"{file} was tuned on {what}, and is never evaluated there; tune on other "
                f"queries, a validation set"
            )
    models = {"reranker": (asked.tuned.reranker, scores.recipe["reranker"])}
    extractor = extractor_of(shortlist)
    if asked.tuned.extractor and extractor:
        models["extractor"] = (asked.tuned.extractor, extractor)
    for what, (old, new) in models.items():
        different = list(differences(old, new))
        if different:
            first = "; ".join(different[:3])
            raise UserError(
                f"{file} was tuned for another {what} than made {url} ({first}); tune again"
            )


@dataclass(frozen=True)
class Shortlisted:
    """A query's list as one protocol sees it.

    Attributes:
        ranking: gallery positions int64 [n] in the global order; -1 for distractors, and where no
            truth is known.
        junk: gallery positions that the protocol moves to the end.
        places: int64 [m], places in the ranking: the first that are no junk, as many as the run
            reranked.
        logits: float64 [n], NaN elsewhere than at `places`.
    """

    ranking: np.ndarray
    junk: np.ndarray
    places: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class ScoredList:
    """A query's list in the global order: record ids [n], global scores float64 [n], and what its
    pairs scored.
    """

    query_id: str
    record_ids: list[str]
    global_scores: np.ndarray
    scores: StoredScores

    def under(self, protocol: str, truth: Truth | None, shortlist: int) -> Shortlisted:
        """The list under a protocol; without a truth (`deploy`) no junk is known."""
        query = truth.query(self.query_id) if truth else None
        ranking = truth.positions(self.record_ids) if truth else np.full(len(self.record_ids), -1)
        junk: np.ndarray = (
            positions_of(query, PROTOCOLS[protocol].junk) if query else np.zeros(0, np.int64)
        )
        places = shortlist_positions(ranking, junk, shortlist)
        logits = np.full(len(ranking), np.nan)
        logits[places] = self.scores.logits_of([self.record_ids[place] for place in places])
        return Shortlisted(ranking, junk, places, logits)

    def replayed(
        self, protocol: str, truth: Truth | None, shortlist: int, chosen: Ensemble
    ) -> list[str]:
        """The record ids in the ensemble's order under a protocol."""
        seen = self.under(protocol, truth, shortlist)
        order = replay_ensemble(seen.ranking, seen.junk, self.global_scores, seen.logits, chosen)
        return [self.record_ids[place] for place in order]


def read_scored(url: str) -> list[ScoredList]:
    """All lists of a run with their scores, in the order of the shortlist. No model is loaded."""
    scores = read_scores(url, [entry.name for entry in read_entries(f"{url}/scores")])
    return [
        ScoredList(
            query,
            rows.column("record_id").to_pylist(),
            rows.column("score").to_numpy().astype(np.float64),
            scores.get(query, NO_SCORES),
        )
        for entry in shortlist_files(url)
        for query, rows in read_shortlist_part(url, entry.name)
    ]
