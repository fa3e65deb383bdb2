"""What `index` would take: a small training, some parts added; bytes by the key's codes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from statistics import mean

import numpy as np

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import Sizes
from pipelines.estimate.memory import MemoryWatch, Peaks
from pipelines.estimate.model import Estimate
from pipelines.estimate.probe import Probe, Round, local, probe
from pipelines.estimate.schedule import wall_seconds
from pipelines.index import plan as index_plan
from pipelines.index import stage as index
from pipelines.jobs.manifests import as_input, read_manifest
from pipelines.storage.place import open_place
from pipelines.stores.store import Store
from rrt_core.indexes import kinds
from schemas.manifest import MANIFEST_NAME, PARTS_NAME
from schemas.plan import IndexFilling, IndexTraining, Job, Unit

LEAST_TRAINED = 4_096  # rows of the small training; an index of many lists needs one a list
MOST_ADDED = 20_000  # rows that a unit of the probe adds
PQ_ROWS = 65_536  # faiss learns the codes of PQ from no more
REWRITES = 2.0  # an index that grows is copied: at most so many times its size is in memory


def sizes_of(key: str, dimension: int) -> Sizes:
    """Sizes from the key alone: codes and ids, and what an index that holds nothing takes."""
    import faiss

    empty = kinds.empty_index(key, dimension)
    coarse = 4.0 * _lists(key, dimension) * dimension
    return Sizes(len(faiss.serialize_index(empty)) + coarse, kinds.code_bytes(empty) + 8.0)


def estimate(folder: Path, options: index.Options, settings: RunSettings, begun: float) -> Estimate:
    """The estimate of an index, whose making began at `begun` by time.monotonic(). Raises
    UserError.
    """
    planned = index_plan.plan(options, settings)
    job, stores, rows, shards = planned.job, planned.stores, planned.rows, planned.shards
    key, dimension = planned.key, stores[0].dimension
    made = Estimate.begin("index", options.out, "images", rows)
    before = time.monotonic() - begun
    manifest = None if settings.overwrite else read_manifest(open_place(f"{options.out}/search"))
    if manifest is not None:
        size = manifest.parts["bytes"]
        return made.nothing_left(settings, before, "an index is in place already", size)

    job = replace(job, output=str(folder), worker="index/fill")
    wanted = min(rows, planned.to_train)
    trained, training, peaks = 0, 0.0, Peaks()
    if wanted:
        job, trained, training, peaks = _train(job, settings, folder, wanted, stores)

    parts = [item for group, _ in shards for item in group]
    workers = min(settings.worker_count, len(shards))
    filled = _fill(job, settings, folder, workers, stores, parts)
    entries = [one.marker.files[0] for one in filled.units]
    row = sizes_of(key, dimension).row
    of_files = Sizes(max(0.0, mean(one.bytes - row * one.rows for one in entries)), row)
    several = len(shards) > 1
    sizes = [of_files.total(1, number) for _, number in planned.files]
    made.disk = {"search files": sum(sizes)}
    if several:
        made.disk["shards"] = of_files.total(len(shards), rows)
    if trained:
        made.disk["trained"] = trained
    beside = sum(filled.place.size(name) or 0 for name in (MANIFEST_NAME, PARTS_NAME))
    made.disk["bookkeeping"] = 2 * beside * len(made.disk)

    largest = max(sizes) + (max(number for _, number in shards) * row if several else 0.0)
    growth = max(0.0, REWRITES * (largest - max(entry.bytes for entry in entries)))
    if trained:
        growth = max(growth, 2.0 * 4 * dimension * max(0, wanted - LEAST_TRAINED))
        made.notes = [f"{training:,.0f} s of it are training, estimated from a small one"]
    filled = replace(filled, peaks=filled.peaks | peaks)
    added = [
        filled.seconds_an_input * number for _, number in (shards if several else planned.files)
    ]
    made.rests_on(filled, settings, before + training, added, growth)
    if several:
        a_byte = _merge_seconds(filled)
        merged = [a_byte * size for size in sizes]

        def seconds(workers: int) -> float:
            merging = wall_seconds(merged, workers, 0.0, filled.share)
            return before + training + filled.wall(added, workers) + merging

        made.takes(settings, seconds)
    return made


def _lists(key: str, dimension: int) -> int:
    """Lists of the inverted file; 0 where there is none."""
    import faiss

    inner = faiss.try_extract_index_ivf(kinds.empty_index(key, dimension))
    return int(inner.nlist) if inner is not None else 0


def _train(
    job: Job, settings: RunSettings, folder: Path, wanted: int, stores: Sequence[Store]
) -> tuple[Job, int, float, Peaks]:
    """A small training by the real worker: (job with its result, bytes of it, seconds of the whole
    training, memory of the small one).

    The whole one is estimated by faiss's own work: ten rounds of rows x lists, and the codes.
    """
    lists = _lists(job.settings["key"], job.settings["dimension"])
    small = min(wanted, max(LEAST_TRAINED, lists))
    unit = Unit("trained", IndexTraining(small), small)
    output = str(folder / "trained")
    training = replace(job, stage="probe", output=output, worker="index/train", units=(unit,))
    begun = time.monotonic()
    with MemoryWatch() as watch:
        manifest = run_job(training, local(settings, 1))
    passed, worked = time.monotonic() - begun, manifest.work_seconds

    begun = time.monotonic()
    first = stores[0].parts[0]
    stores[0].read_global(first)
    rows = sum(part.globals.rows for store in stores for part in store.parts)
    reading = min(worked, (time.monotonic() - begun) * rows / max(1, first.globals.rows))

    def work(n: int) -> float:
        return 10.0 * n * lists + 25.0 * 256 * min(n, PQ_ROWS)

    seconds = passed - worked + reading + (worked - reading) * work(wanted) / work(small)
    job = replace(job, inputs={**job.inputs, "trained": as_input(output, manifest)})
    return job, manifest.parts["bytes"], seconds, watch.peaks


def _fill(
    job: Job,
    settings: RunSettings,
    folder: Path,
    workers: int,
    stores: Sequence[Store],
    parts: index_plan.Group,
) -> Probe:
    """Shards of a part at least, by the real worker; in the measured round of some more."""
    turns, numbers = cycle(parts), count()
    rows = {(store, part): stores[store].part(part).globals.rows for store, part in parts}

    def units(size: int) -> Round:
        blocks = [tuple(islice(turns, size)) for _ in range(workers)]
        return [
            Unit(
                f"shard-{next(numbers):04}",
                IndexFilling(block),
                sum(rows[part] for part in block),
            )
            for block in blocks
        ], {}

    a_part = max(1.0, mean(rows.values()))
    size = max(1, min(round(MOST_ADDED / a_part), len(parts) // workers))
    return probe(job, settings, folder, workers, units(1), lambda _: units(size))


def _merge_seconds(filled: Probe) -> float:
    """Seconds to read and write a byte of an index."""
    import faiss

    files = [one.marker.files[0] for one in filled.units]
    largest = max(files, key=lambda entry: entry.bytes)
    begun = time.monotonic()
    made = faiss.deserialize_index(np.frombuffer(filled.place.read(largest.name), np.uint8))
    faiss.write_index(made, filled.place.path("copy.faiss"))
    return (time.monotonic() - begun) / max(1, largest.bytes)
