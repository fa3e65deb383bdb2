"""What `extract --locals-for` and `extract --retry-failed` would take."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import bookkeeping, store_disk
from pipelines.estimate.model import Estimate, Probe, elsewhere
from pipelines.estimate.probe import WISHED, Round, probe, rounds, spread
from pipelines.estimate.schedule import wall_seconds
from pipelines.extract import lazy_locals as layers
from pipelines.extract import options as extract_options
from pipelines.extract import retry_failed as retry
from pipelines.extract.image_sources import check_seconds
from pipelines.extract.sample import images_a_unit
from pipelines.jobs.manifests import read_manifest
from pipelines.jobs.markers import read_marker
from pipelines.jobs.plan import refuse_other_recipe
from pipelines.storage.place import free_bytes, open_place
from pipelines.stores.store import Store
from rrt_core.extractors import create
from schemas.errors import UserError
from schemas.plan import Job, LocalsOfParts, Unit


def estimate(
    folder: Path, options: extract_options.Options, settings: RunSettings, before: float
) -> Estimate:
    """The estimate of a layer of local descriptors. Raises UserError."""
    check_seconds(options, settings)
    begun = time.monotonic()
    job = layers.plan(asdict(options), settings)
    before += time.monotonic() - begun
    place = open_place(job.output if job else options.out)
    told = Estimate("extract", place.url, "images", 0, "counted", free=free_bytes(options.out))
    told.seconds, told.elsewhere = before, elsewhere(settings, lambda _: before)
    if job is None:
        told.notes = ["all images that are named have local descriptors"]
        return told
    there = set() if settings.overwrite else set(place.names("done"))
    left = [
        u for u in job.units if f"{u.name}.json" not in there or read_marker(place, job, u) is None
    ]
    told.inputs = sum(unit.inputs for unit in job.units)
    told.done = told.inputs - sum(unit.inputs for unit in left)
    if not left:
        told.notes = ["all of it is done"]
        return told
    began = time.monotonic()
    batch = create(options.extractor, **options.extractor_option).batch
    workers = min(settings.worker_count, len(left))
    turn = iter(range(1_000_000))

    def units(count: int, images: int) -> Round:
        return [_first(left[next(turn) % len(left)], images, number) for number in range(count)], {}

    def second(taken: float) -> Round:
        many = rounds(taken)
        return units(workers * many, images_a_unit(batch, taken / batch, WISHED / many, 64))

    first = units(workers, batch)
    named = ([Unit(f"{unit.name}-first", unit.work, unit.inputs) for unit in first[0]], first[1])
    probed = probe(job, settings, folder / "probe", workers, named, second)
    each = probed.each

    def seconds(count: int) -> float:
        return before + wall_seconds(
            [each * unit.inputs for unit in left], count, probed.start, probed.share
        )

    told.seconds, told.elsewhere, told.workers = (
        seconds(settings.worker_count),
        elsewhere(settings, seconds),
        workers,
    )
    parts = sum(len(unit.of(LocalsOfParts).parts) for unit in job.units)
    sizes = store_disk(probed)
    kinds = {"locals": sizes.locals, "failures": sizes.failures}
    told.disk = {name: round(kind.total(parts, told.inputs)) for name, kind in kinds.items()}
    told.disk["bookkeeping"] = round(bookkeeping(job, {}, probed, folder, len(job.units), 0))
    told.memory_worker = probed.peaks.worker
    held = max(unit.inputs for unit in left) - max(
        marker.counts.inputs for _, marker in probed.units
    )
    growth = round(max(0, held) * 2 * sizes.locals.each)
    told.memory_worker, told.memory_total = (
        probed.peaks.worker + growth,
        probed.peaks.total + workers * growth,
    )
    told.probe = Probe(
        probed.inputs,
        each,
        spread(probed.measured),
        probed.start,
        workers,
        time.monotonic() - began,
    )
    return told


def _first(unit: Unit, images: int, number: int) -> Unit:
    """The unit with its first images alone."""
    work = unit.of(LocalsOfParts)
    parts: list[tuple[int, tuple[int, ...]]] = []
    left = images
    for part, rows in work.parts:
        if left > 0:
            parts.append((part, rows[:left]))
            left -= len(parts[-1][1])
    work = LocalsOfParts(work.maker, tuple(parts))
    return Unit(f"{unit.name}-{number:05}", work, images - left)


def of_retry(job: Job, settings: RunSettings, before: float) -> Estimate:
    """The estimate of a retry, from what the store's own images took: what fails again takes
    less.
    """
    place = open_place(job.output)
    manifest = read_manifest(place)
    if manifest is None:
        raise UserError(
            f"{place.url} is not finished; give the command without --retry-failed first"
        )
    refuse_other_recipe(place, job, manifest.recipe)
    listed, of_archives = retry.failed_images(Store(job.output), job.units)
    images = len(listed) + sum(map(len, of_archives.values()))
    each = manifest.work_seconds / max(1, manifest.counts.inputs)
    size = manifest.parts["bytes"] / max(1, manifest.counts.succeeded)
    told = Estimate(
        "extract", place.url, "images", images, "counted, that failed", free=free_bytes(job.output)
    )
    told.disk = {"at most": round(images * size)}
    told.workers = settings.worker_count
    told.seconds = before + images * each / settings.worker_count
    told.elsewhere = elsewhere(settings, lambda count: before + images * each / count)
    told.notes = [
        (
            "no probe: time and bytes are those of the store's other images, the start of workers "
            "left out"
        )
    ]
    return told
