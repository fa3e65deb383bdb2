"""search: query globals + index -> for each query its shortlist, rescored exactly from the stored
globals.

Units are query blocks. Where the index has several search files, a first job gathers candidates
(search file x query block) and the second merges them; with one file a block does both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.manifests import as_input
from pipelines.results.indexes import open_search
from pipelines.search.options import Options as Options
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import required_depth
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.manifest import Manifest
from schemas.plan import Candidates, Job, ShortlistBlock, Unit

STAGE = "search"
KEEP_ALL_UP_TO = (
    10_000  # a gallery of this size is ranked whole, so that no metric is of a truncated list
)
KEPT = 1_000


@dataclass(frozen=True)
class Plan:
    """What is searched: the recipe and inputs of both jobs, settings of their workers, and blocks
    of queries.
    """

    recipe: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    shared: dict[str, Any]
    blocks: list[tuple[tuple[int, int], ...]]
    index: Manifest


def plan(options: Options, settings: RunSettings) -> Plan:
    """Open queries and index, choose how many candidates are kept. Raises UserError."""
    queries = Store(options.queries)
    index, files = open_search(options.index)
    if queries.extractor != index_extractor(index):
        raise UserError(
            f"{queries.place.url} was described with other settings or weights than the gallery "
            f"of {options.index}; "
            "describe both alike"
        )
    k = choose_k(options, index)
    approximate = index.facts["key"] != "Flat"
    fetched = min(
        round(k * options.oversample) if approximate else k + 16, int(index.facts["rows"])
    )
    recipe = {"k": k, "fetched": fetched, "nprobe": options.nprobe if approximate else None}
    recipe["threads"] = settings.threads_per_worker
    inputs = {"queries": queries.as_input, "index": as_input(f"{options.index}/search", index)}
    shared: dict[str, Any] = {**asdict(options), "k": k, "fetched": fetched, "files": files}
    return Plan(recipe, inputs, shared, query_blocks(queries, options.queries_per_block), index)


def candidates_job(planned: Plan, out: str) -> Job:
    """The job that gathers candidates, where the index has several search files."""
    units = [
        Unit(f"candidates-{f:03}-{b:05}", Candidates(rows, name), len(rows))
        for f, name in enumerate(planned.shared["files"])
        for b, rows in enumerate(planned.blocks)
    ]
    return Job(
        stage=STAGE,
        output=f"{out}/candidates",
        worker="search/candidates",
        recipe=planned.recipe,
        inputs=planned.inputs,
        units=tuple(units),
        settings=planned.shared,
        noun="query blocks",
    )


def shortlist_job(planned: Plan, out: str, candidates: Manifest | None) -> Job:
    """The job that makes the shortlist."""
    inputs, facts = planned.inputs, planned.index.facts
    if candidates is not None:
        inputs = {**inputs, "candidates": as_input(f"{out}/candidates", candidates)}
    k = planned.shared["k"]
    units = [
        Unit(f"part-{number:05}", ShortlistBlock(rows), len(rows))
        for number, rows in enumerate(planned.blocks)
    ]
    return Job(
        stage=STAGE,
        output=f"{out}/shortlist",
        worker="search/shortlist",
        recipe=planned.recipe,
        inputs=inputs,
        units=tuple(units),
        settings=planned.shared,
        facts={
            "kind": "shortlist",
            "k": k,
            "gallery_rows": facts["rows"],
            "truncated": k < int(facts["rows"]),
            "stores": facts["stores"],
            "index_key": facts["key"],
            "nprobe": planned.recipe["nprobe"],
        },
        noun="queries",
    )


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the shortlist. Raises UserError and JobFailed."""
    planned = plan(options, settings)
    several = len(planned.shared["files"]) > 1
    candidates = run_job(candidates_job(planned, options.out), settings) if several else None
    return run_job(shortlist_job(planned, options.out, candidates), settings)


def index_extractor(index: Manifest) -> dict[str, Any]:
    """The extractor of an index's gallery."""
    extractor: dict[str, Any] = Store(index.facts["stores"][0]["url"]).extractor
    return extractor


def choose_k(options: Options, index: Manifest) -> int:
    """How many candidates are kept.

    Raises UserError where a given k is less than the protocols need.
    """
    rows = int(index.facts["rows"])
    needed = options.shortlist
    if options.ground_truth:
        needed = required_depth(load_ground_truth(options.ground_truth), options.shortlist)
    if not options.k:
        return rows if rows <= KEEP_ALL_UP_TO else min(rows, max(KEPT, needed))
    if options.k < min(needed, rows):
        why = "the shortlist is as long"
        if options.ground_truth:
            why = (
                f"the shortlist of {options.shortlist} plus the largest number of easy + junk of "
                f"a query"
            )
        raise UserError(f"search: --k is {options.k}, but at least {needed} must be kept ({why})")
    return min(options.k, rows)


def query_blocks(queries: Store, size: int) -> list[tuple[tuple[int, int], ...]]:
    """Blocks of described queries as (part, row) pairs, in the order of the store."""
    rows = [
        (number, int(row))
        for number, part in enumerate(queries.parts)
        for row in np.flatnonzero(queries.read_global(part).ok)
    ]
    if not rows:
        raise UserError(f"{queries.place.url}: no query was described")
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
