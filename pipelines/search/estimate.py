"""What `search` would take: some queries against the whole index, by the stage's own worker."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from statistics import mean

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import Sizes, bookkeeping, parquet_sizes, written, written_plan
from pipelines.estimate.model import Estimate
from pipelines.estimate.probe import SEED, probe
from pipelines.jobs.manifests import read_manifest
from pipelines.search import stage as search
from pipelines.search.estimate_places import add_places
from pipelines.search.exact import exact_job
from pipelines.storage.place import open_place
from schemas.plan import ExactSearch, ShortlistBlock, Unit

FEW, MANY = 4, 32  # queries of the two measured blocks: what a block costs beside them is separate

# Scores fill a column's dictionary of 1 MiB with so many rows of a row group; others are plain.
DICTIONARY, ROW_GROUP = 262_144, 1_048_576
REPEATED = ["query_id", "rank", "record_id", "row_id"]  # columns whose values come again


def estimate(
    folder: Path, options: search.Options, settings: RunSettings, begun: float
) -> Estimate:
    """The estimate of a search, which began at `begun` by time.monotonic(). Raises UserError."""
    made, planned = _shortlist(folder, options, settings, begun)
    if options.ground_truth:
        add_places(made, options, settings, search.gallery_of(planned))
    return made


def _shortlist(
    folder: Path, options: search.Options, settings: RunSettings, begun: float
) -> tuple[Estimate, search.Plan]:
    """That of the shortlist alone."""
    planned = search.plan(options, settings)
    before = time.monotonic() - begun

    sizes = list(map(len, planned.blocks))
    made = Estimate.begin("search", options.out, "queries", sum(sizes))
    manifest = None if settings.overwrite else read_manifest(open_place(f"{options.out}/shortlist"))
    if manifest is not None:
        size = manifest.parts["bytes"]
        note = "a shortlist is in place already"
        return made.nothing_left(settings, before, note, size), planned

    if planned.exact:
        return _exact(made, planned, folder, settings, before), planned

    rows = [row for block in planned.blocks for row in block]
    order = np.random.default_rng(SEED).permutation(len(rows))

    workers = min(settings.worker_count, len(sizes))
    numbers, queries = count(), cycle(rows[i] for i in order)

    def units(size: int) -> list[Unit]:
        blocks = [tuple(islice(queries, size)) for _ in range(workers)]
        return [Unit(f"part-{next(numbers):05}", ShortlistBlock(rows), size) for rows in blocks]

    job = search.shortlist_job(planned, str(folder))
    searched = probe(
        job, settings, folder, workers, (units(FEW), {}), lambda _: (units(FEW) + units(MANY), {})
    )

    few, many = (
        mean(one.marker.seconds for one in searched.measured if one.unit.inputs == size)
        for size in (FEW, MANY)
    )
    each = (many - few) / (MANY - FEW) if many > few else many / MANY
    fixed = max(0.0, few - FEW * each)

    load = max(0.0, mean(one.marker.seconds for one in searched.first) - few)
    lengths = [fixed + each * size for size in sizes]
    files = len(planned.files)
    lengths += (files - 1) * [load + lengths[0], *lengths[1:]]
    searched = replace(searched, seconds_an_input=each, spread=0.0)
    made.rests_on(searched, settings, before, lengths)

    kept = int(planned.job.recipe["k"])
    of_a_file = sizes[0] * kept
    table = written(searched).slice(0, min(of_a_file, DICTIONARY))
    coded = parquet_sizes(table, compression="zstd")
    plain = parquet_sizes(table, compression="zstd", use_dictionary=REPEATED)
    share = min(1.0, DICTIONARY * -(-of_a_file // ROW_GROUP) / of_a_file)
    shortlist = Sizes(coded.file, share * coded.row + (1 - share) * plain.row)
    plan = written_plan(folder / "plan", job)
    made.disk = {
        "shortlist": shortlist.total(len(sizes), sum(sizes) * kept),
        "bookkeeping": bookkeeping(searched, plan, len(sizes)),
    }

    if fixed > 0.05:
        made.notes.append(f"a block of queries takes {fixed:.1f} s beside its queries")
    if files > 1:
        made.notes.append(f"candidates come from {files} search files; one of them was probed")
    return made, planned


def _exact(
    made: Estimate, planned: search.Plan, folder: Path, settings: RunSettings, before: float
) -> Estimate:
    """Of an exact search: a part is scored for a block of queries; the others by their rows."""
    gallery = search.gallery_of(planned)
    job = exact_job(planned.job, planned.blocks, gallery, str(folder))
    parts = [(number, part) for number, store in enumerate(gallery) for part in store.parts]
    largest = max(parts, key=lambda one: one[1].globals.rows)
    first, units = (largest[0], largest[1].number), list(job.units)
    workers, numbers = min(settings.worker_count, len(units)), count()

    def of_one_part() -> list[Unit]:
        block = planned.blocks[0]
        return [
            Unit(f"run-{next(numbers):05}-probe", ExactSearch(block, (first,)), len(block))
            for _ in range(workers)
        ]

    scored = probe(
        job, settings, folder, workers, (of_one_part(), {}), lambda _: (of_one_part(), {})
    )
    taken = mean(one.marker.seconds for one in scored.measured)
    a_pair = taken / (largest[1].globals.rows * len(planned.blocks[0]))
    rows = {(n, part.number): part.globals.rows for n, part in parts}
    lengths = [
        a_pair * unit.inputs * sum(rows[one] for one in unit.of(ExactSearch).searched)
        for unit in units
    ]
    made.rests_on(replace(scored, seconds_an_input=a_pair), settings, before, lengths)

    kept, queries = int(planned.job.recipe["k"]), sum(map(len, planned.blocks))
    row = parquet_sizes(written(scored), compression="zstd").row
    runs = len(units) // len(planned.blocks)
    made.disk = {
        "candidates of runs": round(row * kept * queries * runs),
        "shortlist": round(row * kept * queries),
        "bookkeeping": bookkeeping(scored, written_plan(folder / "plan", job), len(units)),
    }
    made.notes.append("all globals are scored; the index is not asked (--no-exact asks it)")
    return made
