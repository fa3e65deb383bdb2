"""search: query globals + index -> each query's shortlist, rescored exactly from the globals.

Units are query blocks. Where the index has several search files, a first job gathers candidates
(search file x query block) and the second merges them; with one file a block does both. An exact
search leaves the index alone: its first job scores the globals (run of parts x query block).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import numpy as np

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.existing_output import readable_manifest
from pipelines.jobs.facts import IndexFacts, ShortlistFacts, stores_of
from pipelines.jobs.manifests import as_input, read_facts
from pipelines.results.indexes import open_search
from pipelines.search.exact import exact_by_default, exact_job
from pipelines.search.excluded import excluded_job
from pipelines.search.labelled import place_labelled
from pipelines.search.options import NPROBE, OVERSAMPLE
from pipelines.search.options import Options as Options
from pipelines.storage.place import open_place
from pipelines.stores.gallery import find_stores
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import required_depth
from schemas.errors import Damaged, UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.layout import JOB_NAME, PLAN_NAME
from schemas.manifest import Manifest
from schemas.plan import Candidates, Job, ShortlistBlock, Unit

STAGE = "search"
KEEP_ALL_UP_TO = 10_000  # a gallery of this size is ranked whole: no metric is of a truncated list
KEPT = 1_000


@dataclass(frozen=True)
class Plan:
    """What is searched: what both jobs share, and the blocks of queries.

    queries the store that asks
    job     what both jobs share, without units
    exact   whether all globals are scored, and the index is not asked
    blocks  (part, row) pairs of described queries, in the order of the store
    largest bytes of the largest of the index's files
    """

    queries: Store
    job: Job
    exact: bool
    blocks: list[tuple[tuple[int, int], ...]]
    index: IndexFacts
    files: list[str]
    largest: int


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the shortlist. Raises UserError and JobFailed."""
    planned = plan(options, settings)
    gallery = cache(partial(gallery_of, planned))  # opened where it is needed, once
    if options.exclude_self:
        finding = excluded_job(options, planned.queries, gallery())
        found = as_input(finding.output, run_job(finding, settings))
        inputs = {**planned.job.inputs, "excluded": found}
        planned = replace(planned, job=replace(planned.job, inputs=inputs))
    if options.ground_truth and (settings.overwrite or not _made_without_places(options.out)):
        _place_labelled(planned, gallery(), options, settings)
    settings = replace(settings, work_bytes=planned.largest)
    job = shortlist_job(planned, options.out)
    if planned.exact:
        candidates = exact_job(planned.job, planned.blocks, gallery(), options.out)
        made = as_input(candidates.output, run_job(candidates, settings))
        job = replace(job, inputs={**job.inputs, "exact": made})
    elif len(planned.files) > 1:
        candidates = candidates_job(planned, options.out)
        made = as_input(candidates.output, run_job(candidates, settings))
        job = replace(job, inputs={**job.inputs, "candidates": made})

    manifest = run_job(job, settings)
    facts = read_facts(job.output, manifest, ShortlistFacts)
    if facts.notes.short_lists:
        print(
            f"{STAGE:<9}  {facts.notes.short_lists:,} of {manifest.counts.inputs:,} queries have "
            f"fewer than {facts.k:,} candidates ({facts.shortest:,} at least): raise --nprobe",
            file=sys.stderr,
        )
    return manifest


def gallery_of(planned: Plan) -> list[Store]:
    """The stores that are searched, with their bases."""
    return [Store(hint.url, hint.base) for hint in stores_of(planned.job.facts["stores"])]


def _place_labelled(
    planned: Plan, gallery: Sequence[Store], options: Options, settings: RunSettings
) -> None:
    inputs = planned.job.inputs
    excluded = {"excluded": inputs["excluded"]} if "excluded" in inputs else {}
    if place_labelled(options, planned.queries, gallery, settings, excluded) is None:
        print(
            f"{STAGE:<9}  NOTE: {options.ground_truth} knows none of the queries of "
            f"{options.queries}, so that no image is labelled for one",
            file=sys.stderr,
        )


def _made_without_places(url: str) -> bool:
    """Whether the shortlist was made for a ground truth by a version that placed no labelled
    images: the same command finds it as it is.
    """
    shortlist, places = open_place(f"{url}/shortlist"), open_place(f"{url}/labelled/scores")
    if places.exists(PLAN_NAME) or readable_manifest(shortlist) is None:
        return False

    with contextlib.suppress(OSError, ValueError):
        made_by = Job.from_json(shortlist.read_record(JOB_NAME).decode())
        return bool(made_by.settings.get("ground_truth"))
    return False


def plan(options: Options, settings: RunSettings) -> Plan:
    """Open queries and index, choose how many candidates are kept. Raises UserError."""
    queries = Store(options.queries)
    index = open_search(options.index)
    stores = [hint.entry for hint in find_stores(index.facts.stores, index.url, options.stores)]
    if queries.described_by != Store(stores[0]["url"]).described_by:
        raise UserError(
            f"{queries.place.url} was described with other settings or weights than the gallery "
            f"of {options.index}; describe both alike"
        )

    rows = index.facts.rows
    k = choose_k(options, rows)
    approximate = index.facts.key != "Flat"
    exact = options.exact
    if exact is None:
        asked = queries.manifest.counts.succeeded
        exact = approximate and exact_by_default(options, settings, asked, rows, queries.dimension)
    nprobe = options.nprobe or NPROBE
    oversample = options.oversample or OVERSAMPLE
    options = replace(options, nprobe=nprobe, oversample=oversample, exact=None)
    fetched = min(round(k * oversample) if approximate else k + 16, rows)
    job = Job(
        stage=STAGE,
        output="",
        worker="",
        recipe={
            "k": k,
            "fetched": fetched,
            "nprobe": nprobe if approximate else None,
            "threads": settings.threads_per_worker,
        }
        if not exact
        else {"k": k, "exact": True},
        inputs={"queries": queries.as_input, "index": as_input(index.url, index.manifest)},
        units=(),
        settings={**asdict(options), "k": k, "fetched": fetched, "files": index.files},
        facts={"stores": stores},
    )
    blocks = query_blocks(queries, options.queries_per_block)
    return Plan(queries, job, exact, blocks, index.facts, index.files, index.largest)


def candidates_job(planned: Plan, out: str) -> Job:
    """The job that gathers candidates, where the index has several search files."""
    units = (
        Unit(f"candidates-{f:03}-{b:05}", Candidates(rows, name), len(rows))
        for f, name in enumerate(planned.files)
        for b, rows in enumerate(planned.blocks)
    )
    return replace(
        planned.job,
        output=f"{out}/candidates",
        worker="search/candidates",
        units=tuple(units),
        facts={},
        noun="query blocks",
    )


def shortlist_job(planned: Plan, out: str) -> Job:
    """The job that makes the shortlist: of an index with one search file, else of candidates."""
    recipe, indexed = planned.job.recipe, planned.index
    units = (
        Unit(f"part-{number:05}", ShortlistBlock(rows), len(rows))
        for number, rows in enumerate(planned.blocks)
    )
    return replace(
        planned.job,
        output=f"{out}/shortlist",
        worker="search/exact-shortlist" if planned.exact else "search/shortlist",
        units=tuple(units),
        facts={
            "kind": "shortlist",
            "k": recipe["k"],
            "gallery_rows": indexed.rows,
            "truncated": recipe["k"] < indexed.rows,
            "stores": planned.job.facts["stores"],
            "index_key": indexed.key,
            "nprobe": recipe.get("nprobe"),
            **({"exact": True} if planned.exact else {}),
        },
        noun="queries",
    )


def choose_k(options: Options, rows: int) -> int:
    """How many candidates are kept of so many rows.

    Raises UserError where a given k is less than the protocols need.
    """
    needed, why = options.shortlist, "the shortlist is as long"
    if options.ground_truth:
        needed = required_depth(load_ground_truth(options.ground_truth), options.shortlist)
        why = f"the shortlist of {options.shortlist} plus the most easy + junk images of a query"

    if not options.k:
        return rows if rows <= KEEP_ALL_UP_TO else min(rows, max(KEPT, needed))
    if options.k < min(needed, rows):
        raise UserError(f"search: --k is {options.k}, but at least {needed} must be kept ({why})")
    return min(options.k, rows)


def query_blocks(queries: Store, size: int) -> list[tuple[tuple[int, int], ...]]:
    """Blocks of described queries as (part, row) pairs, in the order of the store."""
    rows = [
        (number, int(row))
        for number, part in enumerate(queries.parts)
        for row in np.flatnonzero(queries.read_ids(part).ok)
    ]
    if not rows:
        raise UserError(f"{queries.place.url}: no query was described")
    if len(rows) != queries.manifest.counts.succeeded:
        raise Damaged(
            f"{queries.place.url} holds {len(rows):,} described queries, and its manifest counts "
            f"{queries.manifest.counts.succeeded:,}; see 'verify {queries.place.url}'"
        )
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
