"""What made a run's results, gathered from its manifests: what a reader needs to judge or to repeat
them.

No times: the page is a function of what was made, so that the same results give the same page.
"""

from __future__ import annotations

from typing import Any

from pipelines.jobs.manifests import read_manifest
from pipelines.report.page import FactGroup
from pipelines.storage.place import open_place
from schemas.manifest import Manifest

CHARACTERS_OF_A_HASH = 12
JUNK_RULE = (
    "Medium moves junk, Hard moves junk and easy images to the end before the first {depth} are "
    "taken; the row without "
    "label knowledge takes the first of the list as it is. Easy is evaluated on Medium's reranking."
)


def fact_groups(url: str, evaluation_url: str) -> list[FactGroup]:
    """Groups of facts of a run folder and of the evaluation that is shown; what is absent is left
    out.
    """
    places = (f"{url}/shortlist", f"{url}/scores", evaluation_url)
    shortlist, scores, evaluation = (read_manifest(open_place(place)) for place in places)
    groups = []
    if scores and shortlist:
        groups.append(FactGroup("Protocol", _protocol(shortlist, scores, evaluation)))
        groups.append(FactGroup("Reranker", _reranker(scores)))
        if scores.facts.get("weights_notes"):
            groups.append(
                FactGroup("What made the reranker's weights", _flat(scores.facts["weights_notes"]))
            )
    if evaluation and evaluation.facts.get("ensemble"):
        groups.append(FactGroup("Ensemble", _ensemble(evaluation.facts["ensemble"])))
    if shortlist:
        groups.append(FactGroup("Index and search", _search(shortlist)))
        for title, store in _stores(shortlist).items():
            groups.append(FactGroup(title, _store(store)))
        groups.append(FactGroup("Software", sorted(shortlist.versions.items())))
    return groups


def _protocol(
    shortlist: Manifest, scores: Manifest, evaluation: Manifest | None
) -> list[tuple[str, str]]:
    depth = int(scores.recipe["shortlist"])
    facts = [
        ("Reranked", f"the first {depth} of each query's list"),
        ("Junk rule", JUNK_RULE.format(depth=depth)),
        (
            "Query crop",
            "queries are cropped to their boxes, at the size they have in the whole picture",
        ),
        (
            "Kept of each list",
            f"{int(shortlist.facts['k']):,} of {int(shortlist.facts['gallery_rows']):,} images",
        ),
    ]
    if evaluation:
        facts.append(("Ground truth", _short(evaluation.inputs["ground_truth"]["content"])))
        if evaluation.counts.failed:
            facts.append(
                ("Queries not described", f"{evaluation.counts.failed} (average precision 0)")
            )
    return facts


def _reranker(scores: Manifest) -> list[tuple[str, str]]:
    reranker = scores.recipe["reranker"]
    facts = [("Name", f"{reranker['name']}, revision {reranker['revision']}")]
    if reranker["weights_sha256"]:
        facts.append(("Weights SHA-256", _short(reranker["weights_sha256"])))
    facts += _flat(reranker["config"])
    pairs = sum(int(unit.get("pairs", 0)) for unit in scores.facts.get("units", {}).values())
    facts.append(("Pairs scored", f"{pairs:,}"))
    return facts


def _ensemble(values: dict[str, Any]) -> list[tuple[str, str]]:
    weight, gamma = float(values["lambda"]), float(values["gamma"])
    facts = [
        ("Score", f"{weight:g} · global + {1 - weight:g} · sigmoid({gamma:g} · logit)"),
        ("Reordered", f"the first {values['k']} of each query's list, under the same junk rule"),
    ]
    tuned = values["tuned"]
    if tuned:
        facts += [
            (f"Tuned on {name.replace('_', ' ')}", _short(entry["content"]))
            for name, entry in tuned.items()
        ]
    else:
        facts.append(("Weights", "given by hand"))
    return facts


def _search(shortlist: Manifest) -> list[tuple[str, str]]:
    facts = [("Index", str(shortlist.facts["index_key"]))]
    if shortlist.facts["nprobe"]:
        facts.append(("Lists visited", str(shortlist.facts["nprobe"])))
    facts.append(("Scores", "exact: float64 products of the stored globals"))
    return facts


def _stores(shortlist: Manifest) -> dict[str, Manifest]:
    urls = {"Gallery": [entry["url"] for entry in shortlist.facts["stores"]]}
    urls["Queries"] = [shortlist.inputs["queries"]["url"]]
    found = {}
    for title, places in urls.items():
        for number, place in enumerate(places, 1):
            manifest = read_manifest(open_place(place))
            if manifest:
                found[f"{title} {number}" if len(places) > 1 else title] = manifest
    return found


def _store(manifest: Manifest) -> list[tuple[str, str]]:
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


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A configuration as lines; inner mappings with dotted names."""
    lines: list[tuple[str, str]] = []
    for key, value in sorted(config.items()):
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append((f"{prefix}{key}", text))
    return lines


def _short(digest: str) -> str:
    return digest[:CHARACTERS_OF_A_HASH]
