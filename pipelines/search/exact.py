"""Exact search without the index: when it is the plan, and its first job.

All globals are read and scored, in runs of the gallery's parts; the best of all runs are the
shortlist. For few queries that is the work of seconds, and no recall is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from pipelines.engines.settings import RunSettings
from pipelines.jobs.existing_output import recipe_at
from pipelines.search.options import Options
from pipelines.stores.gallery import runs_of
from pipelines.stores.store import Store
from schemas.plan import ExactSearch, Job, Unit

# The work of an exact pass in products of two numbers. Beside its products each row is read, and
# each of its numbers made float64: as much as 32 queries; its id as much as 256 dimensions.
A_ROW_IN_QUERIES, A_ROW_IN_DIMENSIONS = 32, 256
MOST_WORK = 3e11  # 70 queries of a million rows of 2,048: some 30 processor seconds


def work_of(queries: int, rows: int, dimension: int) -> float:
    """What an exact pass costs, in products of two numbers."""
    return (queries + A_ROW_IN_QUERIES) * rows * (dimension + A_ROW_IN_DIMENSIONS)


def exact_by_default(
    options: Options, settings: RunSettings, queries: int, rows: int, dimension: int
) -> bool:
    """Whether an approximate index is left alone, where the options do not say: as the output in
    place was made, else where nothing is said of the index's own search and the work is little.
    """
    if options.nprobe is not None or options.oversample is not None:
        return False

    made = {} if settings.overwrite else recipe_at(f"{options.out}/shortlist")
    if made:
        return made.get("exact") is True

    if work_of(queries, rows, dimension) > MOST_WORK:
        return False

    few = "1 query is" if queries == 1 else f"{queries:,} queries are"
    print(
        f"search     {few} few: all {rows:,} globals are scored, the index is "
        f"not asked (--no-exact asks it)",
        file=sys.stderr,
    )
    return True


def exact_job(
    shared: Job,
    blocks: Sequence[tuple[tuple[int, int], ...]],
    gallery: Sequence[Store],
    out: str,
) -> Job:
    """The job that finds the best of each run of parts for each block of queries."""
    units = (
        Unit(f"run-{number:05}-{block:05}", ExactSearch(rows, parts), len(rows))
        for number, (parts, _) in enumerate(runs_of(gallery))
        for block, rows in enumerate(blocks)
    )
    return replace(
        shared,
        output=f"{out}/exact",
        worker="search/exact-candidates",
        units=tuple(units),
        facts={"kind": "exact", **shared.facts},
        noun="query blocks",
    )
