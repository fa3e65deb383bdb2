"""extract: images -> globals (Parquet), local descriptors (HDF5) and failures, a part at a time."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.extract import lazy_locals as layers
from pipelines.extract import retry_failed as retry
from pipelines.extract.begun import as_begun
from pipelines.extract.binary_rotation import make_rotation
from pipelines.extract.describer import STAGE
from pipelines.extract.image_sources import check_seconds, images_url, specs_of
from pipelines.extract.options import Options as Options
from pipelines.jobs.plan import planned_units
from pipelines.jobs.replacing import finish_begun
from pipelines.quantities import byte_text
from pipelines.sources.folder import PASSED_OVER, words_for
from pipelines.storage.place import free_bytes, open_place
from pipelines.storage.protocol import Place
from pipelines.stores.failed_rows import end_with_failures
from pipelines.stores.image_plan import (
    Planned,
    changed_since,
    list_sources,
    listed_units,
    read_planned,
    rows_per_part,
    rows_that_fit,
)
from rrt_core.extractors import Extractor, create, identity_of
from schemas import global_descriptors, local_descriptors
from schemas.errors import UserError
from schemas.layout import IMAGES_NAME, KEEP_DAMAGED, LAYER, ROTATION_NAME
from schemas.manifest import Manifest
from schemas.plan import ArchivedImages, Job, MissingImages, Unit

WORTH_SAYING = 1_000_000_000  # bytes
WORK_BYTES = 300_000_000  # of a worker: images decoded ahead, and what a model computes of them
ARCHIVE_ROWS = 512  # images a part of an archive: as much is lost on a kill


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the store, or add to it. Raises UserError and JobFailed."""
    check_seconds(options, settings)
    finish_begun(options.out)  # before anything of its plan is read
    if options.locals_for:
        _refuse_other_sources(options)
        return layers.run(asdict(options), settings)
    if options.retry_failed and settings.overwrite:
        raise UserError(
            "extract: --retry-failed keeps what --overwrite would remove; give one of them"
        )

    job, plan_files = plan(options, settings)
    if options.retry_failed:
        manifest = retry.run(job, settings, plan_files)
        end_with_failures(manifest, options.out)
        return manifest

    if IMAGES_NAME in plan_files:  # the first time
        _say_passed_over(job)
        _say_disk(job)
    else:
        _say_changes(options, job.inputs["images"]["content"])

    manifest = run_job(job, replace(settings, work_bytes=WORK_BYTES), plan_files)
    _say_passed_over_in_archives(manifest)
    if not manifest.counts.inputs:
        raise UserError(
            f"{images_url(options)}: the archives hold no images; give others, and --overwrite"
        )
    end_with_failures(manifest, options.out)
    return manifest


def _say_changes(options: Options, fingerprint: str) -> None:
    """Say where the sources are no longer what the store was planned from.

    The plan stands: parts were made of it.
    """
    changed = changed_since(open_place(options.out), specs_of(options), fingerprint)
    if changed:
        print(
            f"{STAGE:<9}  NOTE: {images_url(options)} holds {changed}; the store stays with what "
            "it was planned for. For what is there now give --overwrite, or another place",
            file=sys.stderr,
        )


def passed_over(job: Job) -> str:
    """What the readers of the job's folders passed over, in words; "" for nothing."""
    counts = Counter[str](job.facts.get("passed_over", {}))
    return f"passed over {words_for(counts)}" if counts else ""


def _say_passed_over(job: Job) -> None:
    if text := passed_over(job):
        images = sum(unit.inputs for unit in job.units)
        print(f"{STAGE:<9}  {images:,} images; {text}", file=sys.stderr)


def _say_passed_over_in_archives(manifest: Manifest) -> None:
    notes = manifest.facts.get("notes", {})
    counts = Counter[str](
        {
            name.removeprefix(PASSED_OVER): int(count)
            for name, count in notes.items()
            if name.startswith(f"{PASSED_OVER}.")
        }
    )
    if counts:
        print(f"{STAGE:<9}  passed over in archives {words_for(counts)}", file=sys.stderr)


def _say_disk(job: Job) -> None:
    """Say before a large job starts what it takes on the disk, at most, and where that is short."""
    images, an_image = job.facts["images_planned"], int(job.facts["bytes_an_image"])
    expected = an_image * (images or 0)
    if images and expected < WORTH_SAYING:
        return

    place = open_place(job.output)
    free = free_bytes(place.url)
    at_most = "the number of images in the archives is not known"
    if images:
        at_most = f"{byte_text(expected)} for {images:,} images"
    if free is not None:
        at_most += f"; {byte_text(free)} are free at {place.url}"
    print(f"{STAGE:<9}  at most {byte_text(an_image)} an image, {at_most}", file=sys.stderr)

    if free is not None and expected > free:
        print(
            f"{STAGE:<9}  WARNING: that may not fit; see --max-locals, --local-dtype, --locals "
            f"none",
            file=sys.stderr,
        )


def plan(options: Options, settings: RunSettings) -> tuple[Job, dict[str, bytes]]:
    """The job, and its plan's files where the images were listed just now.

    Lists once and cuts into parts. Raises UserError.
    """
    check_seconds(options, settings)
    options = as_begun(options, settings.overwrite)
    specs = specs_of(options)
    extractor = create(options.extractor, **options.extractor_option)
    place = open_place(options.out)

    planned = None if settings.overwrite else read_planned(place, specs)
    files: dict[str, bytes] = {}
    if planned is None:
        planned, files = list_sources(specs)

    files = {**files, **_kept(options, place, settings)}
    an_image = _bytes_an_image(options, extractor)
    rows, most = _rows_per_part(options, an_image, len(planned.ids))
    recipe: dict[str, Any] = {
        "extractor": identity_of(extractor),
        "global_dtype": options.global_dtype,
        "local_dtype": options.local_dtype,
        "locals": options.locals,
        "max_locals": options.max_locals,
        "decoding": options.decoding,
        "rows_per_part": rows,
        "max_pixels": options.max_pixels,
        "min_side": options.min_side,
        "threads": settings.threads_per_worker,
    }
    if options.jpeg_rows < 1:  # a recipe without it is of whole JPEGs, as all once were
        recipe["jpeg_rows"] = options.jpeg_rows
    if options.local_dtype == "binary":
        rotation, new = make_rotation(place, planned, files, asdict(options), settings)
        recipe["rotation"] = sha256(rotation).hexdigest()
        if new:
            files = {**files, ROTATION_NAME: rotation}

    units = _units(planned, rows, options.rows_per_part or min(most, ARCHIVE_ROWS))
    before = () if settings.overwrite else planned_units(place)
    a_local = local_descriptors.bytes_a_local(extractor.local_dim, options.local_dtype)
    job = Job(
        stage=STAGE,
        output=options.out,
        worker="extract/describe",
        recipe=recipe,
        inputs={"images": {"url": images_url(options), "content": planned.fingerprint}},
        units=(*units, *(unit for unit in before if unit.work.again)),
        settings=asdict(options),
        facts={
            "kind": "store",
            "layer": LAYER,
            "rows_per_part": rows,
            "bytes_a_local": a_local,
            "bytes_an_image": an_image,
            "images_planned": planned.images,
            **({"passed_over": dict(planned.passed_over)} if planned.passed_over else {}),
        },
        noun="images",
        most_failed=options.max_failures,
    )
    return job, files


def _kept(options: Options, place: Place, settings: RunSettings) -> dict[str, bytes]:
    """The plan's file that says that damaged archives are kept, where it is to be written.

    Raises UserError where it stands there, and they are to be refused.
    """
    is_kept = not settings.overwrite and place.exists(KEEP_DAMAGED)
    if is_kept and options.damaged_archives == "refuse":
        raise UserError(
            f"extract: --damaged-archives refuse, but {place.url} was begun with keep; leave it "
            f"out, or give --overwrite"
        )
    write = options.damaged_archives == "keep" and not is_kept
    return {KEEP_DAMAGED: b"--damaged-archives keep\n"} if write else {}


def _refuse_other_sources(options: Options) -> None:
    """Raise UserError where --locals-for is given images that are not those of the store's plan."""
    names = ("images", "list", "sources", "source", "take")
    given = [name for name in names if getattr(options, name)]
    single = replace(options, ground_truth=options.ground_truth if options.take else "")
    if given and read_planned(open_place(options.out), specs_of(single)) is None:
        raise UserError(
            f"extract: --locals-for takes the images of the store, and --{given[0]} names others; "
            f"leave it out, or, where they lie elsewhere now, give the store's own command with "
            f"the new place first"
        )


def _units(planned: Planned, rows: int, archive_rows: int) -> list[Unit]:
    """Parts of the listing, an open unit an archive, and one for what no archive turns out to hold.

    Part numbers are given in turn: one to each archive, one to all else, and so on, so that an
    archive may fill as many as it needs. Without archives they are 0, 1, 2 ...
    """
    stride = len(planned.archives) + 1
    units = list(listed_units(planned.ids, rows, len(planned.archives), stride))
    behind = len(planned.archives) + len(units) * stride

    for row, archive in enumerate(planned.archives):
        work = ArchivedImages(
            row, **asdict(archive), part=row, stride=stride, rows=archive_rows, open=True
        )
        units.append(Unit(f"archive-{row:05}", work, 0))

    if planned.listed:
        missing = MissingImages(planned.listed, behind, stride, open=True, last=True)
        units.append(Unit("missing", missing, 0))
    return units


def _bytes_an_image(options: Options, extractor: Extractor) -> int:
    """Bytes on disk of an image's descriptors, at most."""
    kind = global_descriptors.DTYPES[options.global_dtype].itemsize
    kept = int(extractor.config.get("max_locals", 500))
    kept = min(kept, options.max_locals or kept) if options.locals != "none" else 0
    return kind * extractor.global_dim + kept * local_descriptors.bytes_a_local(
        extractor.local_dim, options.local_dtype
    )


def _rows_per_part(options: Options, an_image: int, images: int) -> tuple[int, int]:
    """(images a part of the listing, the most that fit into a part)."""
    if options.rows_per_part:
        return options.rows_per_part, options.rows_per_part
    return rows_per_part(an_image, images), rows_that_fit(an_image)
