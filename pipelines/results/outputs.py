"""The outputs in a run's folder, as inputs of what follows."""

from __future__ import annotations

from pipelines.jobs.facts import ShortlistFacts
from pipelines.jobs.manifests import as_input, read_facts, require_manifest
from schemas.manifest import Manifest

MADE_BY = {"shortlist": "search", "scores": "rerank", "ranking": "rerank"}


def output_of(url: str, name: str) -> Manifest:
    """The manifest of a run's shortlist, scores or ranking. Raises UserError."""
    return require_manifest(f"{url}/{name}", name, MADE_BY[name])


def shortlist_facts(url: str) -> ShortlistFacts:
    """What a run's shortlist says of itself. Raises UserError."""
    return read_facts(f"{url}/shortlist", output_of(url, "shortlist"), ShortlistFacts)


def as_inputs(url: str, **outputs: Manifest) -> dict[str, dict[str, str]]:
    """What a job records of outputs of a run, by their names."""
    return {name: as_input(f"{url}/{name}", manifest) for name, manifest in outputs.items()}
