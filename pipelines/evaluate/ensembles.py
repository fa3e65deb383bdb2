"""Ensembles of a run: the requested one, where it lies, its rankings replayed from the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines.jobs.inputs import find_input
from pipelines.jobs.manifests import input_content, read_entries, read_manifest
from pipelines.jobs.plan import differences
from pipelines.results.outputs import output_of
from pipelines.results.scores import ScoredList, read_scores, scored_lists
from pipelines.results.shortlists import read_shortlist
from pipelines.results.truth import Truth
from pipelines.storage.place import open_place
from rrt_core.ensemble import Ensemble, replay_ensemble
from rrt_core.extractors import comparable
from schemas.errors import UserError
from schemas.manifest import Manifest, sha256_text
from schemas.tuned import Tuned

FORMS = "lambda,gamma or lambda,gamma,k (such as 0.5,0.3,100), or the file that 'tune' wrote"


@dataclass(frozen=True)
class Requested:
    """The ensemble of `--ensemble`; k is None for the whole of what was reranked.

    tuned, input  the file of `tune` and what a job records of it, where it was one
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
                f"reranked; rerank with --shortlist {k}, or give a smaller k"
            )
        return Ensemble(self.lambda_, self.gamma, k)

    def folder(self, shortlist: int, where: str) -> str:
        """The folder of its evaluation, below the run."""
        if self.input is not None:
            return f"ensemble/tuned-{self.input['content'][:12]}"
        chosen = self.at(shortlist, where)
        return f"ensemble/lambda={chosen.lambda_!r},gamma={chosen.gamma!r},k={chosen.k}"


def read_ensemble(pieces: Sequence[str]) -> Requested:
    """The ensemble that the pieces of `--ensemble`, split at its commas, name.

    Raises UserError for anything else.
    """
    text = ",".join(pieces)
    try:
        numbers = [float(piece) for piece in pieces]
    except ValueError:
        return _read_tuned(text)

    if len(numbers) not in (2, 3):
        raise UserError(f"--ensemble is {text!r}; it must be {FORMS}")

    lambda_, gamma, k = *numbers[:2], (*numbers, 1.0)[2]
    try:
        if not k.is_integer():
            raise ValueError(f"k is {k:g}; it must be a whole number")
        Ensemble(lambda_, gamma, int(k))
    except ValueError as error:
        raise UserError(f"--ensemble is {text!r}: {error}") from None
    return Requested(lambda_, gamma, int(k) if len(numbers) == 3 else None)


def _read_tuned(url: str) -> Requested:
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

    record = {"url": place.url, "content": sha256_text(data.hex())}
    return Requested(chosen.lambda_, chosen.gamma, chosen.k, tuned, record)


def require_scores(url: str, shortlist: Manifest) -> Manifest:
    """The manifest of a run's scores.

    Raises UserError where there are none, or those of another shortlist.
    """
    scores = output_of(url, "scores")
    if input_content(f"{url}/scores", scores, "shortlist") != shortlist.content:
        raise UserError(
            f"{url}/scores was made for another shortlist than {url}/shortlist holds; rerank again"
        )
    return scores


def refuse_other_truth(url: str, scores: Manifest, truth: dict[str, str]) -> None:
    """Raise UserError where the scores are not those of this ground truth's protocols."""
    if scores.inputs.get("ground_truth", {}).get("content") != truth["content"]:
        raise UserError(
            f"{url}/scores was not made with the ground truth {truth['url']}, so that the "
            f"shortlists of its protocols may lack scores; rerank with --ground-truth"
        )


def extractor_of(url: str, shortlist: Manifest) -> dict[str, Any] | None:
    """What described a run's queries, or None where their store is not to be found."""
    home = open_place(f"{url}/shortlist").url
    content = input_content(home, shortlist, "queries")
    place = find_input(shortlist.inputs["queries"].get("url", ""), content, home)
    store = None if place is None else read_manifest(open_place(place))
    return None if store is None else store.recipe.get("extractor")


def refuse_where_tuned(
    requested: Requested, url: str, shortlist: Manifest, scores: Manifest, truth: dict[str, str]
) -> None:
    """Raise UserError where an ensemble was tuned on what it is used on, or for other models."""
    if requested.tuned is None or requested.input is None:
        return

    file, made_on = requested.input["url"], requested.tuned.inputs
    for what, record, used in (
        (f"the ground truth {truth['url']}", "ground_truth", truth["content"]),
        (f"the scores of {url}", "scores", scores.content),
        (f"the queries of {url}", "queries", shortlist.inputs["queries"]["content"]),
    ):
        if made_on[record]["content"] == used:
            raise UserError(
                f"{file} was tuned on {what}, and is never evaluated there; tune on other "
                f"queries, a validation set"
            )

    for what, old, new in (
        ("reranker", requested.tuned.reranker, scores.recipe["reranker"]),
        ("extractor", requested.tuned.extractor, extractor_of(url, shortlist)),
    ):
        # what ran the network, a key of extractors alone, changes no score that counts
        old, new = (each and comparable(each, ("execution",)) for each in (old, new))
        first = "; ".join(islice(differences(old, new), 3)) if old and new else ""
        if first:
            raise UserError(
                f"{file} was tuned for another {what} than made {url} ({first}); tune again"
            )


def read_scored(url: str) -> list[ScoredList]:
    """All lists of a run with their scores, in the order of the shortlist. No model is loaded."""
    names = [entry.name for entry in read_entries(f"{url}/scores")]
    return scored_lists(read_shortlist(url), read_scores(url, names))


def replayed(
    scored: ScoredList, protocol: str, truth: Truth | None, shortlist: int, chosen: Ensemble
) -> list[str]:
    """The record ids of a list in the ensemble's order under a protocol."""
    seen = scored.under(protocol, truth, shortlist)
    order = replay_ensemble(seen.ranking, seen.junk, scored.global_scores, seen.logits, chosen)
    return [scored.record_ids[place] for place in order]
