"""extract --retry-failed: the failed images of a finished store once more, as further parts.

What failed stays where it is; an image that succeeds now is alive in the new part. Where a retry
was killed, the next one goes on with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.manifests import is_whole, parts_of, read_manifest
from pipelines.jobs.markers import read_marker
from pipelines.jobs.plan import refuse_other_recipe
from pipelines.sources.archive_images import DAMAGED
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import parse_table, read_table
from pipelines.stores.image_plan import images_file, listed_units
from pipelines.stores.store import Store
from schemas import failures
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, references_of, split_record_id
from schemas.layout import IMAGES_NAME, RETRIES, retry_number
from schemas.manifest import Manifest
from schemas.plan import ArchivedImages, ArchivedImagesAgain, Job, Unit

NOT_AGAIN = frozenset({"duplicate", "missing", DAMAGED})  # classes that no second look changes


def run(job: Job, settings: RunSettings, plan_files: Mapping[str, bytes]) -> Manifest:
    """Describe the failed images again; `plan_files` as of `run_job`, where images lie elsewhere.

    Raises UserError where the store is not finished, and JobFailed.
    """
    place = open_place(job.output)
    manifest = read_manifest(place)
    if manifest is None:
        raise UserError(
            f"{place.url} is not finished; give the command without --retry-failed first"
        )
    refuse_other_recipe(place, job, manifest.recipe)

    if _under_way(place, job, manifest):
        return run_job(job, settings, plan_files, again=True)
    if not is_whole(place, manifest):  # files were lost since
        manifest = run_job(job, settings, plan_files, again=True)

    store = Store(job.output)
    listed, archived = failed_images(store, job.units)
    if not listed and not archived:
        print(f"extract    nothing failed that could be tried again: {place.url}", file=sys.stderr)
        return manifest

    name = RETRIES.format(1 + max((retry_number(unit.work.again) for unit in job.units), default=0))
    references = _references(plan_files.get(IMAGES_NAME) or place.read(IMAGES_NAME), listed)
    packed = [_reference(record_id) for ids in archived.values() for record_id in ids]
    units = _units(job, store, name, [one.record_id for one in references], sorted(archived))
    files = {**plan_files, name: images_file([*references, *packed])}
    return run_job(replace(job, units=(*job.units, *units)), settings, files, again=True)


def _under_way(place: Place, job: Job, manifest: Manifest) -> bool:
    """Whether an earlier retry was not finished: the manifest does not count a unit's files.

    Of what the manifest counts nothing is known where parts.parquet is not its own: it is written
    first.
    """
    parts = parts_of(place, manifest)
    made = {unit for unit, _ in parts or ()}
    for unit in job.units:
        if unit.work.again and unit.name not in made:
            marker = read_marker(place, job, unit)
            if marker is None or marker.files:  # none: the archive holds none of the images now
                return True
    return False


def failed_images(store: Store, units: Sequence[Unit]) -> tuple[list[str], dict[int, list[str]]]:
    """Failed record ids that are alive in no part: of the listing, and of archives by their row."""
    makers = store.makers(units)
    failed: dict[str, int | None] = {}  # record id -> row of its archive; None of the listing
    for part in store.parts:
        if part.failures is None or not part.failures.rows:
            continue
        maker = makers.get(part.number)
        archived_in = maker.work if maker and isinstance(maker.work, ArchivedImages) else None
        archive = archived_in.archive if archived_in else None
        for row in failures.rows_of(
            read_table(store.place, part.failures.name, schema=failures.FAILURES)
        ):
            if row.error_class not in NOT_AGAIN and failed.get(row.record_id) is None:
                failed[row.record_id] = archive

    alive: set[str] = set()
    for part in store.parts if failed else ():
        read = store.read_ids(part)
        alive |= {read.record_ids[row] for row in np.flatnonzero(read.ok)} & failed.keys()

    listed: list[str] = []
    archived: dict[int, list[str]] = {}
    for record_id, archive in failed.items():
        if record_id not in alive:
            (listed if archive is None else archived.setdefault(archive, [])).append(record_id)
    return listed, archived


def _references(images: bytes, ids: Sequence[str]) -> list[ImageReference]:
    """Where listed images lie, each once, of the plan's table of images."""
    if not ids:
        return []
    table = parse_table(images, IMAGES_NAME)
    chosen = table.filter(pc.is_in(table.column("record_id"), pa.array(ids, pa.string())))
    return list({reference.record_id: reference for reference in references_of(chosen)}.values())


def _reference(record_id: str) -> ImageReference:
    return ImageReference(record_id, os.fsdecode(decode_name(split_record_id(record_id)[0])), b"")


def _units(
    job: Job, store: Store, name: str, ids: Sequence[str], archives: Sequence[int]
) -> Iterator[Unit]:
    """Units of failed images, listed ones and those of some archives, with parts behind all others.

    Part numbers are those that no archive has for its own: see `stage`.
    """
    first = [unit for unit in job.units if not unit.work.again]
    originals = [unit for unit in first if isinstance(unit.work, ArchivedImages)]
    stride = len(originals) + 1
    own = {unit.name for unit in originals}
    used = [part.number for part in store.parts if part.unit not in own]
    part = max(used, default=-1) + stride

    units = list(listed_units(ids, int(job.recipe["rows_per_part"]), part, stride, name))
    yield from units

    part += len(units) * stride
    for place, row in enumerate(archives):
        original = originals[row]
        spread = {"part": part + place * stride, "stride": stride * len(archives), "again": name}
        again = ArchivedImagesAgain(**{**original.payload, **spread})
        yield Unit(f"{original.name}-again-{retry_number(name):05}", again, 0)
