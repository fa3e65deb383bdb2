"""What made a run's results, from its manifests: what a reader needs to judge or repeat them.

No times: the page is a function of what was made, so that the same results give the same page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.jobs.facts import RerankerFacts, ScoresRecipe
from pipelines.jobs.manifests import read_manifest
from pipelines.report.page import FactGroup
from pipelines.results.outputs import scores_recipe
from pipelines.storage.place import open_place
from schemas.manifest import Manifest

Facts = list[tuple[str, str]]  # (name, value)

CHARACTERS_OF_A_HASH = 12
JUNK_RULE = (
    "Medium moves junk, Hard moves junk and easy images to the end before the first {depth} are "
    "taken; the row without label knowledge takes the first of the list as it is. Easy is "
    "evaluated on Medium's reranking."
)


def fact_groups(
    url: str, shortlist: Manifest, evaluation_url: str, galleries: Sequence[str], queries: str
) -> list[FactGroup]:
    """Groups of facts of a run and of the evaluation that is shown; what is absent is left out.

    galleries, queries: where the stores lie now.
    """
    scores = read_manifest(open_place(f"{url}/scores"))
    evaluation = read_manifest(open_place(evaluation_url))
    groups: dict[str, Facts] = {}
    if scores:
        scored = scores_recipe(url, scores)
        groups["Protocol"] = _protocol(shortlist, scored, evaluation)
        groups["Reranker"] = _reranker(scores, scored.reranker)
        groups["What made the reranker's weights"] = _flat(scores.facts.get("weights_notes") or {})
    if evaluation and evaluation.facts.get("ensemble"):
        groups["Ensemble"] = _ensemble(evaluation.facts["ensemble"])

    visited = shortlist.facts["nprobe"]
    unused = ", not asked: all globals were scored" if shortlist.facts.get("exact") else ""
    groups["Index and search"] = [
        ("Index", f"{shortlist.facts['index_key']}{unused}"),
        *([("Lists visited", str(visited))] if visited else []),
        ("Scores", "exact: float64 products of the stored globals"),
    ]
    for number, place in enumerate(galleries, 1):
        groups[f"Gallery {number}" if len(galleries) > 1 else "Gallery"] = _store(place)
    groups["Queries"] = _store(queries)
    groups["Software"] = sorted(shortlist.versions.items())
    return [FactGroup(title, facts) for title, facts in groups.items() if facts]


def _protocol(shortlist: Manifest, scored: ScoresRecipe, evaluation: Manifest | None) -> Facts:
    depth, kept = scored.shortlist, shortlist.facts
    facts = [
        ("Reranked", f"the first {depth} of each query's list"),
        ("Junk rule", JUNK_RULE.format(depth=depth)),
        (
            "Query crop",
            "queries are cropped to their boxes, at the size they have in the whole picture",
        ),
        ("Kept of each list", f"{int(kept['k']):,} of {int(kept['gallery_rows']):,} images"),
    ]
    if evaluation:
        facts.append(("Ground truth", _short(evaluation.inputs["ground_truth"]["content"])))
    if evaluation and evaluation.counts.failed:
        lacking = f"{evaluation.counts.failed} (average precision 0)"
        facts.append(("Queries not described", lacking))
    return facts


def _reranker(scores: Manifest, reranker: RerankerFacts) -> Facts:
    units, weights = scores.facts.get("units", {}).values(), reranker.weights_sha256
    return [
        ("Name", f"{reranker.name}, revision {reranker.revision}"),
        *([("Weights SHA-256", _short(weights))] if weights else []),
        *_flat(reranker.config),
        ("Pairs scored", f"{sum(int(unit.get('pairs', 0)) for unit in units):,}"),
    ]


def _ensemble(values: dict[str, Any]) -> Facts:
    weight, gamma = float(values["lambda"]), float(values["gamma"])
    tuned = [
        (f"Tuned on {name.replace('_', ' ')}", _short(entry["content"]))
        for name, entry in (values["tuned"] or {}).items()
    ]
    return [
        ("Score", f"{weight:g} · global + {1 - weight:g} · sigmoid({gamma:g} · logit)"),
        ("Reordered", f"the first {values['k']} of each query's list, under the same junk rule"),
        *(tuned or [("Weights", "given by hand")]),
    ]


def _store(url: str) -> Facts:
    """Facts of a store; none where it is gone."""
    manifest = read_manifest(open_place(url))
    if manifest is None:
        return []

    extractor, counts = manifest.recipe["extractor"], manifest.counts
    return [
        (
            "Images",
            f"{counts.inputs:,} = {counts.succeeded:,} described + {counts.failed:,} failed",
        ),
        ("Extractor", f"{extractor['name']}, revision {extractor['revision']}"),
        ("Weights SHA-256", _short(extractor["weights_sha256"]) or "none"),
        ("Descriptors", f"global {extractor['global_dim']}-D, local {extractor['local_dim']}-D"),
        ("Stored as", f"{manifest.recipe['global_dtype']}, {manifest.recipe['local_dtype']}"),
        *_flat(extractor["config"]),
        ("Content", _short(manifest.content)),
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> Facts:
    """A configuration as lines; inner mappings with dotted names."""
    lines: Facts = []
    for key, value in sorted(config.items()):
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append((f"{prefix}{key}", text))
    return lines


def _short(digest: str) -> str:
    return digest[:CHARACTERS_OF_A_HASH]
