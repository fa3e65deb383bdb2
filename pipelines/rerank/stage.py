"""rerank: shortlist + locals -> scores (each pair once, raw logits) -> a ranking for each protocol.

The shortlists of all protocols are scored as one union; each protocol's ranking is then replayed
from the scores without the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.facts import ShortlistFacts
from pipelines.jobs.manifests import input_content, read_entries, read_facts
from pipelines.rerank.options import Options as Options
from pipelines.results.outputs import (
    GLOBALS_ALONE,
    as_inputs,
    holds_globals_alone,
    output_of,
)
from pipelines.results.shortlists import queries_in, shortlist_files
from pipelines.results.truth import truth_input
from pipelines.storage.place import open_place
from pipelines.stores.gallery import find_stores
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import protocols_of
from rrt_core.rerankers import create, identity_of
from schemas.errors import Damaged, UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.manifest import Manifest
from schemas.plan import Job, Pairs, RankingPart, Unit
from schemas.ranking import DEPLOY

STAGE = "rerank"
UNIT_BYTES = 256_000_000  # locals of one unit's candidates in memory
BLOCKS_WANTED = 16


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) scores and rankings. Raises UserError and JobFailed."""
    job = plan_scores(options, settings)
    scoring = replace(settings, work_bytes=UNIT_BYTES)
    scores, protocols = run_job(job, scoring), rankings_of(options)
    ranking = replace(
        job,
        output=f"{options.out}/ranking",
        worker="rerank/replay",
        recipe={"shortlist": options.shortlist, "protocols": protocols},
        inputs={**job.inputs, **as_inputs(options.out, scores=scores)},
        units=tuple(_replay_units(job, protocols)),
        facts={"kind": "ranking", "protocols": protocols},
        noun="query rankings",
    )
    return run_job(ranking, settings)


def plan_scores(options: Options, settings: RunSettings) -> Job:
    """The job that scores the pairs. Raises UserError."""
    if options.weights:
        if "weights" in options.reranker_option:
            raise UserError(
                "rerank: --weights and --reranker-option weights exclude each other; give one"
            )
        weighted = {**options.reranker_option, "weights": options.weights}
        options = replace(options, weights="", reranker_option=weighted)
    queries = Store(options.queries)
    shortlist = output_of(options.out, "shortlist")
    place = open_place(f"{options.out}/shortlist").url
    if input_content(place, shortlist, "queries") != queries.manifest.content:
        raise UserError(
            f"{queries.place.url} is not the store that {options.out}/shortlist was made for; "
            f"search again"
        )
    found = find_stores(read_facts(place, shortlist, ShortlistFacts).stores, place, options.stores)
    for store in (queries, *(Store(hint.url, hint.base) for hint in found)):
        if holds_globals_alone(store.manifest):
            raise UserError(f"{store.place.url} {GLOBALS_ALONE}")
    reranker = create(options.reranker, **options.reranker_option)
    notes: dict[str, Any] | None = getattr(reranker, "notes", None)
    _check_descriptors(notes, queries)
    inputs = {**as_inputs(options.out, shortlist=shortlist), "queries": queries.as_input}
    if options.ground_truth:
        inputs["ground_truth"] = truth_input(options.ground_truth)
    tokens = int(reranker.config.get("gallery_tokens", 500))
    return Job(
        stage=STAGE,
        output=f"{options.out}/scores",
        worker="rerank/score",
        recipe={
            "reranker": identity_of(reranker),
            "shortlist": options.shortlist,
            "threads": settings.threads_per_worker,
        },
        inputs=inputs,
        units=tuple(_units(options, queries, tokens, shortlist.counts.succeeded)),
        settings={**asdict(options), "stores": [hint.entry for hint in found]},
        facts={"kind": "scores", "weights_notes": notes or {}},
        noun="queries",
    )


def rankings_of(options: Options) -> list[str]:
    """The protocols whose rankings are made; easy is evaluated on medium's."""
    if not options.ground_truth:
        return [DEPLOY]
    known = protocols_of(load_ground_truth(options.ground_truth))
    return [DEPLOY, *(name for name in known if name != "easy")]


def _check_descriptors(notes: dict[str, Any] | None, store: Store) -> None:
    """Say where it is not known whether the weights were trained for the store's descriptors.

    Raises UserError where they were trained for others. `notes` is None of what has no weights.
    """
    if notes is None:
        return
    trained, stored = notes.get("extractor"), store.extractor
    own = f"{store.place.url} holds those of {stored['name']}"
    if not trained:
        _note(f"the weights do not say for whose descriptors they were trained; {own}")
        return

    weights = str(trained.get("weights_sha256") or "")
    wanted = f"descriptors of {trained['name']} (weights {weights[:12] or 'none'})"
    if trained["name"] == stored["name"] and not stored["weights_sha256"]:
        _note(f"the weights were trained for {wanted}; {own}, of weights that it does not name")
    elif any(trained.get(key) != stored.get(key) for key in ("name", "weights_sha256")):
        known = str(stored["weights_sha256"] or "")[:12]
        advice = (
            ""
            if known or not weights
            else f"; where they are of these all the same, import them with --extractor-name "
            f"{trained['name']} --weights-sha256 {weights}"
        )
        raise UserError(
            f"the reranker's weights were trained for {wanted}, but {own}"
            f"{f' (weights {known})' if known else ''}; give weights trained for these, or "
            f"another reranker{advice}"
        )


def _note(text: str) -> None:
    print(f"{STAGE:<9}  NOTE: {text}", file=sys.stderr)


def _units(options: Options, queries: Store, tokens: int, described: int) -> list[Unit]:
    """Runs of queries of a part of the shortlist, so few that their candidates fit in memory."""
    counts = {
        entry.name: queries_in(options.out, entry.name) for entry in shortlist_files(options.out)
    }
    if sum(counts.values()) != described:
        raise Damaged(
            f"{options.out}/shortlist holds lists of {sum(counts.values()):,} queries, and its "
            f"manifest counts {described:,}; search again with --overwrite"
        )
    size = options.queries_per_unit
    if not size:
        a_query = 1.5 * options.shortlist * tokens * (int(queries.extractor["local_dim"]) * 4 + 13)
        size = max(1, min(int(UNIT_BYTES // a_query), -(-sum(counts.values()) // BLOCKS_WANTED)))

    slices = [
        (Pairs(name, first), min(size, count - first))
        for name, count in counts.items()
        for first in range(0, count, size)
    ]
    return [Unit(f"part-{number:05}", work, count) for number, (work, count) in enumerate(slices)]


def _replay_units(job: Job, protocols: Sequence[str]) -> Iterator[Unit]:
    """A unit a protocol and part of the shortlist, with the files of its queries' scores."""
    files = {entry.name.split(".")[0]: entry.name for entry in read_entries(job.output)}
    parts: dict[str, list[Unit]] = {}
    for unit in job.units:
        parts.setdefault(unit.of(Pairs).shortlist, []).append(unit)

    for protocol in protocols:
        for number, (name, scored) in enumerate(parts.items()):
            work = RankingPart(protocol, number, name, tuple(files[unit.name] for unit in scored))
            yield Unit(f"{protocol}-{number:05}", work, sum(unit.inputs for unit in scored))
