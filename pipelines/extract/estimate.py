"""What `extract` would take: images counted, a probe of some dozens, the driver's dealing
replayed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.engines.driver import refuse_other
from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import StoreDisk, bookkeeping, store_disk
from pipelines.estimate.model import Estimate, Probe, elsewhere
from pipelines.estimate.probe import (
    SEED,
    WISHED,
    Probed,
    Round,
    probe,
    probe_folder,
    rounds,
    spread,
)
from pipelines.estimate.schedule import wall_seconds
from pipelines.extract import estimate_more as estimate_layer
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.extract.image_sources import images_url
from pipelines.extract.sample import ArchiveSample, Counted, ListSample, count_images, images_a_unit
from pipelines.jobs.markers import read_marker
from pipelines.sources.archive_images import Listed
from pipelines.storage.place import free_bytes, open_place
from pipelines.storage.protocol import Place
from rrt_core.extractors import Extractor, create
from schemas import failures
from schemas.errors import UserError
from schemas.layout import ARCHIVES_NAME, IMAGES_NAME, LISTED_NAME, PIECES, ROTATION_NAME
from schemas.manifest import Marker
from schemas.plan import ArchivedImages, Job, ListedImages, Unit

MOST_A_UNIT = 64  # images of a unit of the probe
NOTED_ROW = 1_500  # bytes in memory of an image's columns beside its descriptors


@dataclass
class Work:
    """What a job has to do: images of each of its units (0 of one that looks for missing ones), and
    what is done.
    """

    job: Job
    images: dict[str, float]
    done: dict[str, int] = field(
        default_factory=dict
    )  # images of finished units, and of finished pieces of others
    there: int = 0  # bytes of data files that are in place
    counted: Counted | None = None
    listed: int = 0  # names of image lists that archives hold
    urls: list[str] = field(default_factory=list)  # of archives

    @property
    def left(self) -> list[tuple[Unit, float]]:
        """Units that are not finished, with the images that remain of each."""
        return [
            (unit, self.images[unit.name] - self.done.get(unit.name, 0))
            for unit in self.job.units
            if self.images[unit.name] > self.done.get(unit.name, 0)
        ]

    @property
    def described(self) -> float:
        """Images of all units."""
        return sum(self.images.values())

    @property
    def total(self) -> int:
        """Inputs: also those that lists name and no archive holds."""
        open_ones = [unit for unit in self.job.units if unit.payload.get("listed")]
        of_lists = sum(self.images[unit.name] for unit in open_ones)
        return (
            round(self.described - of_lists + max(of_lists, self.listed))
            if self.listed
            else round(self.described)
        )

    @property
    def known(self) -> str:
        """How the number of images is known."""
        if self.counted is None or (
            self.listed and all(u.payload.get("listed", True) for u in self.job.units)
        ):
            return "counted"
        told, archives = self.counted, len(self.counted.images)
        if told.whole == archives:
            return f"counted, also in {archives:,} archive{'s' if archives > 1 else ''}"
        return f"estimated by bytes: {told.looked:,} of {archives:,} archives were looked into"


def estimate(
    options: extract_options.Options, settings: RunSettings, before: float
) -> list[Estimate]:
    """The estimate of an extraction; `before` are seconds that the command took until here. Raises
    UserError.
    """
    with probe_folder() as folder:
        return [estimate_in(folder, options, settings, before)]


def estimate_in(
    folder: Path, options: extract_options.Options, settings: RunSettings, before: float
) -> Estimate:
    """As `estimate`; what the probe makes stays in the folder: a finished store, FOLDER/probe."""
    if options.locals_for:
        return estimate_layer.estimate(folder, options, settings, before)
    begun = time.monotonic()
    job, files = extract.plan(options, settings)
    before += time.monotonic() - begun
    place = open_place(options.out)
    if options.retry_failed:
        return estimate_layer.of_retry(job, settings, before)
    refuse_other(place, job, settings)
    work = _work(job, files, place, settings, folder)
    told = Estimate("extract", place.url, "images", work.total, work.known)
    told.done, told.disk_there = round(sum(work.done.values())), work.there
    told.free, told.workers = free_bytes(options.out), settings.worker_count
    if not work.left and not work.done:
        raise UserError(
            f"{images_url(options)}: no image was found, so that nothing can be estimated"
        )
    if not work.left:
        told.disk = {"in place": work.there}
        told.elsewhere = elsewhere(settings, lambda _: before)
        told.seconds, told.notes = before, ["all of it is done"]
        return told
    extractor = create(options.extractor, **options.extractor_option)
    began = time.monotonic()
    probed = _probe(work, files, settings, folder, extractor)
    _tell(told, work, probed, files, folder, options, settings, extractor, before)
    assert told.probe is not None
    told.probe.seconds = time.monotonic() - began
    return told


def _work(
    job: Job, files: Mapping[str, bytes], place: Place, settings: RunSettings, folder: Path
) -> Work:
    """Count what is to be done, and what is done."""
    work = Work(job, {unit.name: float(unit.inputs) for unit in job.units})
    there = set() if settings.overwrite else set(place.names("done"))
    for unit in job.units:
        marker = read_marker(place, job, unit) if f"{unit.name}.json" in there else None
        if marker is not None:
            work.images[unit.name] = marker.counts.inputs
            work.done[unit.name] = marker.counts.inputs
            work.there += sum(entry.bytes for entry in marker.files)
    archives = [unit for unit in job.units if isinstance(unit.work, ArchivedImages)]
    if not archives:
        return work
    work.urls = urls = _urls(files, place)
    listed = _listed(archives, files, place, folder)
    names = pq.read_table(io.BytesIO(_planned(files, place, LISTED_NAME))) if any(listed) else ()
    work.listed = len(names)
    sizes = [unit.work.size for unit in archives]
    work.counted = count_images(urls, sizes, listed)
    for unit, images in zip(archives, work.counted.images, strict=True):
        if unit.name not in work.done:
            work.images[unit.name] = images
    for name in [] if settings.overwrite else place.names(PIECES):
        unit_name = name.partition(".")[0]
        piece = Marker.from_bytes(place.read(f"{PIECES}/{name}"))
        if (
            piece is not None
            and piece.recipe == job.recipe_hash
            and f"{unit_name}.json" not in there
        ):
            work.done[unit_name] = work.done.get(unit_name, 0) + piece.counts.inputs
            work.there += sum(entry.bytes for entry in piece.files)
    return work


def _planned(files: Mapping[str, bytes], place: Place, name: str) -> bytes:
    return files[name] if files.get(name) else place.read(name)


def _urls(files: Mapping[str, bytes], place: Place) -> list[str]:
    table = pq.read_table(io.BytesIO(_planned(files, place, ARCHIVES_NAME)))
    urls: list[str] = table.column("url").to_pylist()
    return urls


def _listed(
    archives: list[Unit], files: Mapping[str, bytes], place: Place, folder: Path
) -> list[Listed | None]:
    works = [unit.of(ArchivedImages) for unit in archives]
    if not any(work.listed for work in works):
        return [None] * len(works)
    own = open_place(str(folder / "listed"))
    own.write(LISTED_NAME, _planned(files, place, LISTED_NAME))
    of = {work.source: Listed(own, work.source) for work in works if work.listed}
    return [of[work.source] if work.listed else None for work in works]


def _probe(
    work: Work,
    files: Mapping[str, bytes],
    settings: RunSettings,
    folder: Path,
    extractor: Extractor,
) -> Probed:
    """Describe samples of what is left. Raises UserError where not one of them can be described."""
    left, job = work.left, work.job
    place = open_place(job.output)
    workers = min(settings.worker_count, len(left))
    of_archives = [unit for unit, _ in left if isinstance(unit.work, ArchivedImages)]
    images_left = sum(images for _, images in left)
    share = sum(images for unit, images in left if unit.work.open) / images_left
    listing, packed = _samples(left, of_archives, files, place, folder)
    shared = {
        name: _planned(files, place, name) for name in (LISTED_NAME,) if of_archives and work.listed
    }
    if job.settings["local_dtype"] == "binary":
        shared[ROTATION_NAME] = _planned(files, place, ROTATION_NAME)
    parts = iter(range(1_000_000))

    def units(count: int, images: int) -> Round:
        """Of both kinds where there are both, by their images."""
        packed_units = 0 if packed is None else count if listing is None else round(count * share)
        found: list[Unit] = []
        plan_files = dict(shared)
        for sample, number in ((packed, packed_units), (listing, count - packed_units)):
            if sample is not None and number:
                made, more = sample.round([next(parts) for _ in range(number)], images)
                found, plan_files = found + made, {**plan_files, **more}
        return found, plan_files

    def second(taken: float) -> Round:
        each = taken / extractor.batch
        many = rounds(taken)
        images = images_a_unit(extractor.batch, each, WISHED / many, MOST_A_UNIT)
        images = min(images, max(extractor.batch, round(images_left / workers / many)))
        return units(workers * many, images)

    sampled = Job(**{**job.__dict__, "settings": {**job.settings, "out": str(folder / "probe")}})
    probed = probe(
        sampled, settings, folder / "probe", workers, units(workers, extractor.batch), second
    )
    _refuse_none(probed)
    return probed


def _samples(
    left: list[tuple[Unit, float]],
    of_archives: list[Unit],
    files: Mapping[str, bytes],
    place: Place,
    folder: Path,
) -> tuple[ListSample | None, ArchiveSample | None]:
    listing, packed = None, None
    rows = [
        np.arange(u.work.start, u.work.start + u.inputs)
        for u, _ in left
        if isinstance(u.work, ListedImages)
    ]
    if rows:
        table = pq.read_table(io.BytesIO(_planned(files, place, IMAGES_NAME)))
        listing = ListSample(table, np.concatenate(rows))
    if of_archives:
        urls = _urls(files, place)
        listed = _listed(of_archives, files, place, folder)
        order = np.random.default_rng(SEED).permutation(len(of_archives))
        chosen = [of_archives[index] for index in order]
        packed = ArchiveSample(
            [unit.of(ArchivedImages) for unit in chosen],
            [urls[unit.of(ArchivedImages).archive] for unit in chosen],
            [listed[index] for index in order],
            folder / "archives",
        )
    return listing, packed


def _refuse_none(probed: Probed) -> None:
    counts = [marker.counts for _, marker in probed.units]
    if sum(count.succeeded for count in counts):
        return
    for _, marker in probed.units:
        for entry in marker.files:
            if entry.name.startswith("failures/"):
                for row in failures.read_part(io.BytesIO(probed.place.read(entry.name))):
                    raise UserError(
                        f"none of the {sum(count.inputs for count in counts):,} images of the "
                        f"probe could be "
                        f"described, so that nothing can be estimated; the first is "
                        f"{row.record_id}: {row.reason}"
                    )
    raise UserError("the archives hold no image for a probe, so that nothing can be estimated")


def _tell(
    told: Estimate,
    work: Work,
    probed: Probed,
    files: Mapping[str, bytes],
    folder: Path,
    options: extract_options.Options,
    settings: RunSettings,
    extractor: Extractor,
    before: float,
) -> None:
    """Fill in time, disk and memory from what the probe found."""
    packed = [one for one in probed.measured if one[0].work.open]
    listed = [one for one in probed.measured if not one[0].work.open]
    each = {True: probed.each_of(packed), False: probed.each_of(listed)}
    slowest = _fetching(work, told)
    lengths = [
        images * max(each[unit.work.open], slowest if unit.work.open else 0.0)
        for unit, images in work.left
    ]

    def seconds(workers: int) -> float:
        return before + wall_seconds(lengths, workers, probed.start, probed.share)

    told.seconds, told.elsewhere = seconds(settings.worker_count), elsewhere(settings, seconds)
    if any(count > len(lengths) for count in settings.on):
        told.notes.append(
            f"more than {len(lengths):,} workers have nothing to do: there are no more units of "
            f"work"
        )
    sizes = store_disk(probed)
    told.disk = _disk(work, sizes, probed, files, folder, settings)
    rows = [_rows(unit, images) for unit, images in work.left]
    most = max(marker.counts.inputs for _, marker in probed.units)
    held = sizes.locals.each + 4 * extractor.global_dim + NOTED_ROW
    held += max(sizes.locals.each, 3 * 4 * extractor.global_dim)  # what the writer copies
    growth = round(max(0.0, max(rows) - most) * held)
    workers = min(settings.worker_count, len(lengths))
    told.memory_worker = probed.peaks.worker + growth
    told.memory_total = probed.peaks.total + workers * growth
    told.workers = workers
    told.probe = Probe(
        probed.inputs, probed.each, spread(probed.measured), probed.start, workers, 0.0
    )
    lost = sum(marker.counts.failed for _, marker in probed.units)
    if lost:
        seen = sum(marker.counts.inputs for _, marker in probed.units)
        told.notes.append(f"{lost:,} of the {seen:,} images of the probe could not be described")
    if work.counted and work.counted.damaged:
        told.notes.append(work.counted.damaged)
    if settings.runner != "local":
        told.notes.append(f"the probe ran on this machine, not on {settings.runner}")


def _fetching(work: Work, told: Estimate) -> float:
    """Seconds an image that reading remote archives takes in one stream; 0 where they are on this
    machine.
    """
    if work.counted is None or not any("://" in url for url in work.urls):
        return 0.0
    images, size = 0.0, 0
    for unit, count in zip(_archive_units(work), work.counted.images, strict=True):
        images, size = images + count, size + unit.work.size
    told.notes.append(
        f"the archives were read at {work.counted.rate / 1e6:,.1f} MB/s, in one stream"
    )
    return size / max(1.0, images) / max(1.0, work.counted.rate)


def _archive_units(work: Work) -> list[Unit]:
    return [unit for unit in work.job.units if isinstance(unit.work, ArchivedImages)]


def _rows(unit: Unit, images: float) -> float:
    """Rows of the largest part that a unit writes."""
    return min(images, float(unit.work.rows_a_piece or images))


def _disk(
    work: Work,
    sizes: StoreDisk,
    probed: Probed,
    files: Mapping[str, bytes],
    folder: Path,
    settings: RunSettings,
) -> dict[str, int]:
    pieces = sum(
        -(-work.images[unit.name] // unit.work.rows_a_piece) for unit in _archive_units(work)
    )
    parts = sum(isinstance(unit.work, ListedImages) for unit in work.job.units)
    count, images = round(parts + pieces), work.described
    own = {name: data for name, data in files.items() if data}
    if not own:
        place = open_place(work.job.output)
        own = {f"plan/{name}": place.read(f"plan/{name}") for name in place.names("plan")}
        own = {
            name: data
            for name, data in own.items()
            if name not in ("plan/plan.json", "plan/job.json")
        }
    beside = bookkeeping(work.job, own, probed, folder, parts, round(pieces))
    disk = {
        "globals": round(sizes.globals.total(count, images)),
        "locals": round(sizes.locals.total(count, images)),
        "failures": round(sizes.failures.total(count, images)),
        "bookkeeping": round(beside),
    }
    if not disk["locals"]:
        del disk["locals"]
    return disk
