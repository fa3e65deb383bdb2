"""The outputs in a run's folder, as inputs of what follows."""

from __future__ import annotations

from pipelines.jobs.facts import ScoresRecipe, ShortlistFacts
from pipelines.jobs.inputs import find_input
from pipelines.jobs.manifests import (
    as_input,
    input_content,
    read_facts,
    read_manifest,
    require_manifest,
)
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.manifest import Manifest

GLOBALS_ALONE = (
    "holds global descriptors alone, so that there is nothing to rerank by: import local ones with "
    "them, or describe the images with 'extract'"
)
MADE_BY = {"shortlist": "search", "scores": "rerank", "ranking": "rerank"}


def output_of(url: str, name: str) -> Manifest:
    """The manifest of a run's shortlist, scores or ranking. Raises UserError."""
    return require_manifest(f"{url}/{name}", name, MADE_BY[name])


def ranking_of(url: str) -> Manifest:
    """The manifest of a run's rankings.

    Raises UserError, and where there are none since nothing can be reranked says so.
    """
    if store := unranked(url):
        raise UserError(
            f"{url} has no ranking: {store} {GLOBALS_ALONE}; 'evaluate' knows the order by global "
            f"descriptors alone"
        )
    return output_of(url, "ranking")


def unranked(url: str) -> str:
    """The store for whose want of local descriptors a run has no rankings; "" of other runs."""
    if read_manifest(open_place(f"{url}/ranking")) is not None:
        return ""

    place = open_place(f"{url}/shortlist").url
    shortlist, facts = output_of(url, "shortlist"), shortlist_facts(url)
    queries = shortlist.inputs.get("queries", {}).get("url", "")
    recorded = [(hint.url, hint.content) for hint in facts.stores]
    for hint, content in [(queries, input_content(place, shortlist, "queries")), *recorded]:
        store = find_input(hint, content, place)
        made = read_manifest(open_place(store)) if store else None
        if store and made is not None and holds_globals_alone(made):
            return store
    return ""


def holds_globals_alone(store: Manifest) -> bool:
    """Whether a store has no local descriptors, and can be given none."""
    extractor = store.recipe.get("extractor")
    return isinstance(extractor, dict) and extractor.get("local_dim") == 0


def shortlist_facts(url: str) -> ShortlistFacts:
    """What a run's shortlist says of itself. Raises UserError."""
    return read_facts(f"{url}/shortlist", output_of(url, "shortlist"), ShortlistFacts)


def scores_recipe(url: str, scores: Manifest) -> ScoresRecipe:
    """How a run's pairs were scored. Raises UserError."""
    return read_facts(f"{url}/scores", scores, ScoresRecipe)


def as_inputs(url: str, **outputs: Manifest) -> dict[str, dict[str, str]]:
    """What a job records of outputs of a run, by their names."""
    return {name: as_input(f"{url}/{name}", manifest) for name, manifest in outputs.items()}
