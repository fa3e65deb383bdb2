"""What `extract` would take: images counted, some dozens of them described.

Of a layer (--locals-for) in the same way; of --retry-failed by the manifest, without a probe.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from pipelines.engines.settings import LOCAL, RunSettings
from pipelines.estimate.disk import bookkeeping, store_sizes, written, written_plan
from pipelines.estimate.model import Estimate
from pipelines.estimate.probe import Probe, Round, probe, sized, unfinished, valid_markers
from pipelines.extract import lazy_locals as layers
from pipelines.extract import options as extract_options
from pipelines.extract import retry_failed as retry
from pipelines.extract import stage as extract
from pipelines.extract.image_sources import check_seconds, images_url
from pipelines.extract.sample import Counted, Sample, count_images
from pipelines.jobs.existing_output import refuse_other
from pipelines.jobs.manifests import read_manifest
from pipelines.jobs.plan import refuse_other_recipe
from pipelines.sources.archive_images import ArchiveImages, Listed, kept_name
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from pipelines.stores.store import Store
from rrt_core.extractors import create
from schemas import layout
from schemas.errors import UserError
from schemas.manifest import Marker
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, Unit

MOST_A_UNIT = 64  # images of a unit of the probe
A_ROW = 1_500  # bytes in memory of an image's columns beside its descriptors
PLAN_FILES = (
    layout.IMAGES_NAME,
    layout.ARCHIVES_NAME,
    layout.LISTED_NAME,
    layout.SOURCE_NAME,
    layout.ROTATION_NAME,
    layout.KEEP_DAMAGED,
)
NOTHING_NAMED = "all images that are named have local descriptors"
NOT_PROBED = (
    "no probe: time and bytes are those of the store's other images, the start of workers left out"
)


@dataclass
class Work:
    """What a job has to do, and what of it is done."""

    job: Job
    images: dict[str, float]  # of each unit; 0 of one that looks for missing ones
    done: Counter[str] = field(default_factory=Counter)  # images of units, also of pieces
    in_place: int = 0  # bytes of data files
    names: int = 0  # names of image lists that archives hold
    archives: dict[str, ArchiveImages] = field(default_factory=dict)  # by their units
    counted: Counted | None = None

    def add(self, unit: str, marker: Marker) -> None:
        """Count what is in place."""
        self.done[unit] += marker.counts.inputs
        self.in_place += sum(entry.bytes for entry in marker.files)

    @property
    def left(self) -> list[tuple[Unit, float]]:
        """Units that are not finished, with the images that remain of each."""
        units = [(unit, self.images[unit.name] - self.done[unit.name]) for unit in self.job.units]
        return [(unit, images) for unit, images in units if images > 0]

    @property
    def total(self) -> int:
        """Inputs: also those that lists name and no archive holds."""
        of_lists = [self.images[name] for name, one in self.archives.items() if one.listed]
        return round(sum(self.images.values()) + max(0.0, self.names - sum(of_lists)))

    @property
    def known(self) -> str:
        """How the number of images is known."""
        counted, archives = self.counted, len(self.archives)
        if counted is None or all(one.listed for one in self.archives.values()):
            return "counted"
        if counted.whole == archives:
            return f"counted, also in {archives:,} archive{'s' if archives > 1 else ''}"
        return f"estimated by bytes: {counted.looked:,} of {archives:,} archives were looked into"

    @property
    def remote(self) -> bool:
        """Whether archives are fetched from elsewhere."""
        return any("://" in images.url for images in self.archives.values())


def estimate(
    folder: Path, options: extract_options.Options, settings: RunSettings, begun: float
) -> Estimate:
    """The estimate of an extraction, whose probe is a finished store, FOLDER/probe.

    `begun` is when the command began, by time.monotonic(). Raises UserError.
    """
    if options.locals_for:
        return _of_layer(folder, options, settings, begun)
    job, files = extract.plan(options, settings)
    before = time.monotonic() - begun
    if options.retry_failed:
        return _of_retry(job, settings, before)

    place = open_place(options.out)
    refuse_other(place, job, settings.overwrite)
    if not settings.overwrite:  # what is planned already is not listed again
        own = {name: place.read(name) for name in PLAN_FILES if place.exists(name)}
        files = {**own, **files}
    planned = written_plan(folder / "planned", job, files)

    work = _work(job, planned, settings)
    done = sum(work.done.values())
    made = Estimate.begin("extract", options.out, "images", work.total, work.known, done)
    if not work.left and not done:
        raise UserError(
            f"{images_url(options)}: no image was found, so that nothing can be estimated"
        )
    if not work.left:
        return made.nothing_left(settings, before, "all of it is done", work.in_place)

    extractor = create(options.extractor, **options.extractor_option)
    described = _probe(work, planned, settings, folder, extractor.batch)

    archives = [unit for unit in job.units if unit.name in work.archives]
    pieces = round(sum(-(-work.images[unit.name] // unit.work.rows_a_piece) for unit in archives))
    parts = sum(isinstance(unit.work, ListedImages) for unit in job.units)

    sizes = store_sizes(described)
    images = sum(work.images.values())
    made.disk = {name: size.total(parts + pieces, images) for name, size in sizes.items()}
    made.disk["bookkeeping"] = bookkeeping(described, planned, parts, pieces)
    made.disk_there = work.in_place

    rate, of_archive = described.seconds_an_input, 0.0
    if work.counted:
        size = sum(unit.work.size for unit in archives)
        reading = size / max(1.0, sum(work.counted.images)) / max(1.0, work.counted.rate)
        of_archive = max(rate, reading) if work.remote else rate + reading
    lengths = [n * (of_archive if u.name in work.archives else rate) for u, n in work.left]

    # The descriptors of a part are in memory until it is written, where some are copied.
    rows = max(min(n, unit.work.rows_a_piece or n) for unit, n in work.left)
    local = sizes["locals"].row if "locals" in sizes else 0.0
    a_global = 4 * extractor.global_dim
    a_row = local + a_global + A_ROW + max(local, 3 * a_global)
    growth = max(0.0, rows - described.largest) * a_row
    made.rests_on(described, settings, before, lengths, growth)
    made.notes = list(_notes(work, described, settings))
    return made


def _work(job: Job, planned: Place, settings: RunSettings) -> Work:
    """Count what is to be done, and what is done."""
    work = Work(job, {unit.name: float(unit.inputs) for unit in job.units})
    finished = valid_markers(job, settings)
    archives = {u.name: u.work for u in job.units if isinstance(u.work, ArchivedImages)}
    if archives:
        urls = read_table(planned, layout.ARCHIVES_NAME).column("url").to_pylist()
        sources = {archive.source for archive in archives.values() if archive.listed}
        lists = {source: Listed(planned, source) for source in sources}
        work.names = len(read_table(planned, layout.LISTED_NAME)) if lists else 0
        for name, one in archives.items():
            url, listed = urls[one.archive], lists.get(one.source)
            keep = kept_name(planned, one)
            work.archives[name] = ArchiveImages(url, one.source, one.prefix, listed, keep=keep)

        sizes = [archive.size for archive in archives.values()]
        work.counted = count_images(list(work.archives.values()), sizes)
        work.images |= dict(zip(work.archives, work.counted.images, strict=True))

    for name, marker in finished.items():
        work.add(name, marker)
        work.images[name] = marker.counts.inputs

    place = open_place(job.output)
    for name in () if settings.overwrite else place.names(layout.PIECES):
        of = name.partition(".")[0]
        piece = Marker.from_bytes(place.read_record(f"{layout.PIECES}/{name}"))
        if piece is not None and piece.recipe == job.recipe_hash and of not in finished:
            work.add(of, piece)
    return work


def _probe(work: Work, planned: Place, settings: RunSettings, folder: Path, batch: int) -> Probe:
    """Describe a sample of what is left. Raises UserError where none of it can be described."""
    images_left = sum(images for _, images in work.left)
    packed = {unit.name: n for unit, n in work.left if unit.name in work.archives}
    listed = [(u.work, u.inputs) for u, _ in work.left if isinstance(u.work, ListedImages)]
    rows = [np.arange(run.start, run.start + inputs) for run, inputs in listed]
    table = read_table(planned, layout.IMAGES_NAME)
    sample = Sample(
        table.take(np.concatenate([np.zeros(0, np.int64), *rows])),
        [work.archives[name] for name in packed],
        sum(packed.values()) / images_left,
        folder / "images",
    )

    shared, own = {}, work.job.settings
    if own["local_dtype"] == "binary":
        shared[layout.ROTATION_NAME] = planned.read(layout.ROTATION_NAME)

    def units(number: int, images: int) -> Round:
        made, files = sample.units(number, images)
        return made, {**files, **shared}

    job = replace(work.job, settings={**own, "out": str(folder / "probe")})
    workers = min(settings.worker_count, len(work.left))
    rounds = sized(units, workers, batch, MOST_A_UNIT, images_left)
    made = probe(job, settings, folder, workers, *rounds)

    if not made.counts.succeeded:
        first = written(made, "failures/").to_pylist()[0]
        raise UserError(
            f"none of the {made.counts.inputs:,} images of the probe could be described, so that "
            f"nothing can be estimated; the first is {first['record_id']}: {first['reason']}"
        )
    return made


def _notes(work: Work, described: Probe, settings: RunSettings) -> Iterator[str]:
    counted, units = work.counted, len(work.left)
    if text := extract.passed_over(work.job):
        yield text
    if counted and work.remote:
        yield f"the archives were read at {counted.rate / 1e6:,.1f} MB/s, in one stream"
    if any(workers > units for workers in settings.on):
        yield f"more than {units:,} workers have nothing to do: there are no more units of work"
    if counts := described.counts.failed:
        images = f"{counts:,} of the {described.counts.inputs:,} images of the probe"
        yield f"{images} could not be described"
    if counted and counted.damaged:
        yield counted.damaged
    if settings.engine_name != LOCAL:
        yield f"the probe ran on this machine, not on {settings.where}"


def _of_layer(
    folder: Path, options: extract_options.Options, settings: RunSettings, begun: float
) -> Estimate:
    """The estimate of a layer of local descriptors. Raises UserError."""
    check_seconds(options, settings)
    job = layers.plan(asdict(options), settings)
    before = time.monotonic() - begun
    if job is None:
        made = Estimate.begin("extract", options.out, "images", 0)
        return made.nothing_left(settings, before, NOTHING_NAMED)
    left = unfinished(job, settings)
    images, images_left = (sum(unit.inputs for unit in units) for units in (job.units, left))
    made = Estimate.begin("extract", job.output, "images", images, done=images - images_left)
    if not left:
        return made.nothing_left(settings, before, "all of it is done")

    workers, turns = min(settings.worker_count, len(left)), count()

    def units(number: int, size: int) -> Round:
        numbers = [next(turns) for _ in range(number)]
        return [_first(left[turn % len(left)], size, turn) for turn in numbers], {}

    batch = create(options.extractor, **options.extractor_option).batch
    rounds = sized(units, workers, batch, MOST_A_UNIT, images_left)
    described = probe(job, settings, folder, workers, *rounds)

    parts = sum(len(unit.of(LocalsOfParts).parts) for unit in job.units)
    sizes = store_sizes(described)
    made.disk = {name: size.total(parts, images) for name, size in sizes.items()}
    plan = written_plan(folder / "plan", job)
    made.disk["bookkeeping"] = bookkeeping(described, plan, len(job.units))

    lengths = [described.seconds_an_input * unit.inputs for unit in left]
    held = max(0, max(unit.inputs for unit in left) - described.largest)
    made.rests_on(described, settings, before, lengths, 2 * held * sizes["locals"].row)
    return made


def _first(unit: Unit, images: int, number: int) -> Unit:
    """The unit with the first images of its largest part alone."""
    work = unit.of(LocalsOfParts)
    part, rows = max(work.parts, key=lambda part: len(part[1]))
    first = LocalsOfParts(work.maker, ((part, rows[:images]),))
    return Unit(f"{unit.name}-{number:05}", first, min(images, len(rows)))


def _of_retry(job: Job, settings: RunSettings, before: float) -> Estimate:
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

    made = Estimate.begin("extract", job.output, "images", images, "counted, that failed")
    size = manifest.parts["bytes"] / max(1, manifest.counts.succeeded)
    work = images * manifest.work_seconds / max(1, manifest.counts.inputs)
    made.disk, made.workers = {"at most": round(images * size)}, settings.worker_count
    made.notes = [NOT_PROBED]
    return made.takes(settings, lambda workers: before + work / workers)
