"""The outputs in a run's folder, as inputs of what follows."""

from __future__ import annotations

from pipelines.jobs.manifests import as_input, require_manifest
from schemas.manifest import Manifest

MADE_BY = {"shortlist": "search", "scores": "rerank", "ranking": "rerank"}


def output_of(url: str, name: str) -> Manifest:
    """The manifest of a run's shortlist, scores or ranking. Raises UserError."""
    return require_manifest(f"{url}/{name}", name, MADE_BY[name])


def as_inputs(url: str, **outputs: Manifest) -> dict[str, dict[str, str]]:
    """What a job records of outputs of a run, by their names."""
    return {name: as_input(f"{url}/{name}", manifest) for name, manifest in outputs.items()}
