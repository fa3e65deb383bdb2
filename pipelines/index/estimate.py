"""What `index` would take: a small training, some parts added by the stage's own workers; bytes by
the key's codes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.estimate.memory import MemoryWatch, Peaks
from pipelines.estimate.model import Estimate, Probe, elsewhere
from pipelines.estimate.probe import Round, probe, probe_folder, spread
from pipelines.estimate.schedule import wall_seconds
from pipelines.index import plan as index_plan
from pipelines.index import stage as index
from pipelines.jobs.manifests import as_input, read_entries, read_manifest
from pipelines.storage.place import free_bytes, open_place
from pipelines.storage.protocol import Place
from pipelines.stores import gallery as stores_gallery
from rrt_core.indexes import faiss_index as indexes
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, PARTS_NAME
from schemas.plan import IndexFilling, IndexTraining, Job, Unit

LEAST_TRAINED = 4_096  # rows of the small training; an index of many lists needs one a list
MOST_ADDED = 20_000  # rows that a unit of the probe adds
PQ_ROWS = 65_536  # faiss learns the codes of PQ from no more
REWRITES = 2.0  # an index that grows is copied: at most so many times its size is in memory


@dataclass(frozen=True)
class Shape:
    """Sizes of an index: bytes of a row, and of a file beside its rows."""

    row: float
    fixed: float


def estimate(options: index.Options, settings: RunSettings, before: float) -> list[Estimate]:
    """The estimate of an index. Raises UserError."""
    with probe_folder() as folder:
        return [_estimate(folder, options, settings, before)]


def key_of(options: index.Options, rows: int, dimension: int) -> str:
    """The faiss key of a gallery of so many rows."""
    return indexes.choose_key(rows, dimension) if options.key == "auto" else options.key


def shape_of(key: str, dimension: int) -> Shape:
    """Sizes from the key alone: codes and ids, and what an index that holds nothing takes."""
    import faiss

    empty = indexes.empty_index(key, dimension)
    inner = faiss.try_extract_index_ivf(empty)
    fixed = len(faiss.serialize_index(empty)) + (
        4.0 * inner.nlist * dimension if inner is not None else 0.0
    )
    return Shape(indexes.code_bytes(empty) + 8.0, fixed)


def _estimate(
    folder: Path, options: index.Options, settings: RunSettings, before: float
) -> Estimate:
    begun = began = time.monotonic()
    stores = stores_gallery._open(options.stores)
    dimension, rows = stores[0].dimension, sum(store.manifest.counts.succeeded for store in stores)
    if not rows:
        raise UserError(
            f"{', '.join(options.stores)}: no image was described, so that there is nothing to "
            f"index"
        )
    key = key_of(options, rows, dimension)
    shards = index_plan._groups(stores, options.rows_per_shard)
    files = index_plan._files(shards, rows, options.max_memory, key, dimension)
    place = open_place(options.out)
    told = Estimate("index", place.url, "images", rows, "counted")
    told.free, told.workers = free_bytes(options.out), settings.worker_count
    manifest = None if settings.overwrite else read_manifest(place.below("search"))
    if manifest is not None:
        told.done, told.disk = rows, {"in place": manifest.parts["bytes"]}
        told.disk_there, told.notes = manifest.parts["bytes"], ["an index is there already"]
        told.seconds, told.elsewhere = before, elsewhere(settings, lambda _: before)
        return told
    before += time.monotonic() - begun
    described = [{**store.as_input, "base": store.base} for store in stores]
    job = Job(
        stage="index",
        output=str(folder),
        worker="",
        recipe={
            "key": key,
            "seed": options.seed,
            "dimension": dimension,
            "threads": settings.threads_per_worker,
        },
        inputs={f"store-{number}": store.as_input for number, store in enumerate(stores)},
        units=(),
        settings={**asdict(options), "stores": described, "dimension": dimension, "key": key},
        noun="images",
    )
    train_seconds, trained_bytes, peaks = 0.0, 0, Peaks()
    wanted = min(rows, options.training_rows or indexes.training_rows(key, dimension))
    if indexes.needs_training(key, dimension):
        job, train_seconds, trained_bytes, peaks = _train(
            job, settings, folder, wanted, rows, key, dimension
        )
    groups = [(group, count) for group, count in shards]
    workers = min(settings.worker_count, len(groups))
    probed = probe(
        replace(job, worker="index/fill"),
        settings,
        folder / "filled",
        workers,
        _fill(groups, stores, workers, 1, 0),
        lambda taken: _fill(groups, stores, workers, MOST_ADDED, workers),
    )
    entries = {marker.files[0].rows: marker.files[0].bytes for _, marker in probed.units}
    shape = shape_of(key, dimension)
    shape = Shape(
        shape.row, max(0.0, float(np.mean([size - shape.row * n for n, size in entries.items()])))
    )
    each = probed.each
    several = len(shards) > 1
    sizes = [count * shape.row + shape.fixed for _, count in files]
    merging = _merge_seconds(probed.place) if several else 0.0

    def seconds(count: int) -> float:
        lengths = [each * n for _, n in (groups if several else files)]
        total = before + train_seconds + wall_seconds(lengths, count, probed.start, probed.share)
        if several:
            total += wall_seconds([merging * size for size in sizes], count, 0.0, probed.share)
        return total

    told.seconds, told.elsewhere, told.workers = (
        seconds(settings.worker_count),
        elsewhere(settings, seconds),
        workers,
    )
    told.disk = {"search files": round(sum(sizes))}
    if several:
        told.disk["shards"] = round(rows * shape.row + len(shards) * shape.fixed)
    if trained_bytes:
        told.disk["trained"] = trained_bytes
    beside = sum(probed.place.size(name) or 0 for name in (MANIFEST_NAME, PARTS_NAME))
    told.disk["bookkeeping"] = 2 * beside * (1 + several + bool(trained_bytes))
    largest = max(sizes) if not several else max(sizes) + max(n for _, n in groups) * shape.row
    grown = round(max(0.0, REWRITES * (largest - max(entries.values()))))
    grown = max(
        grown, round(2.0 * 4 * dimension * max(0, wanted - LEAST_TRAINED)) if trained_bytes else 0
    )
    peaks = probed.peaks | peaks
    told.memory_worker = peaks.worker + grown
    told.memory_total = peaks.total + min(workers, len(files)) * grown
    told.probe = Probe(
        probed.inputs,
        each,
        spread(probed.measured),
        probed.start,
        workers,
        time.monotonic() - began,
    )
    if train_seconds:
        told.notes.append(f"{train_seconds:,.0f} s of it are training, reckoned from a small one")
    return told


def _train(
    job: Job, settings: RunSettings, folder: Path, wanted: int, rows: int, key: str, dimension: int
) -> tuple[Job, float, int, Peaks]:
    """A small training by the real worker: (job with its result, seconds of the whole one, bytes,
    memory).
    """
    import faiss

    inner = faiss.try_extract_index_ivf(indexes.empty_index(key, dimension))
    lists = int(inner.nlist) if inner is not None else 0
    small = min(wanted, max(LEAST_TRAINED, lists))
    unit = Unit("trained", IndexTraining(small), small)
    output = str(folder / "trained")
    settings = replace(
        settings, workers=1, overwrite=False, dry_run=False, runner="local", beam_options=()
    )
    begun = time.monotonic()
    with MemoryWatch() as watch:
        manifest = run_job(
            replace(job, stage="probe", output=output, worker="index/train", units=(unit,)),
            settings,
        )
    passed, worked = time.monotonic() - begun, manifest.work_seconds
    begun = time.monotonic()
    for store in stores_gallery._open(tuple(str(entry["url"]) for entry in job.settings["stores"])):
        for part in store.parts:
            store.read_global(part)
    reading = time.monotonic() - begun

    def work(n: int) -> float:
        return 10.0 * n * lists + 25.0 * 256 * min(n, PQ_ROWS)

    whole = reading + max(0.0, worked - reading) * work(wanted) / work(small)
    size = read_entries(output)[0].bytes
    job = replace(job, inputs={**job.inputs, "trained": as_input(output, manifest)})
    return job, passed - worked + whole, size, watch.peaks


def _fill(groups: list[Any], stores: list[Any], workers: int, most: int, first: int) -> Round:
    """A unit for each worker, of a part at least and of about `most` rows."""
    units = []
    parts = [item for group, _ in groups for item in group]
    at = 0
    for number in range(workers):
        taken: list[tuple[int, int]] = []
        count = 0
        while not taken or (
            count < min(most, sum(n for _, n in groups) // workers) and len(taken) < len(parts)
        ):
            store, part = parts[at % len(parts)]
            taken.append((store, part))
            count += stores[store].part(part).globals.rows
            at += 1
        units.append(Unit(f"shard-{first + number:04}", IndexFilling(tuple(taken)), count))
    return units, {}


def _merge_seconds(place: Place) -> float:
    """Seconds to read and write a byte of an index."""
    import faiss

    entry = max(read_entries(place.url), key=lambda one: one.bytes)
    begun = time.monotonic()
    made = faiss.deserialize_index(np.frombuffer(place.read(entry.name), np.uint8))
    faiss.write_index(made, place.path("copy.faiss"))
    return (time.monotonic() - begun) / max(1, entry.bytes)
