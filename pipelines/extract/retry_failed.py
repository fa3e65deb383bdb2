"""extract --retry-failed: the failed images of a finished store once more, as further parts.

What failed stays where it is; an image that succeeds now is alive in the new part. Where a retry
was killed, the next one goes on with it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.manifests import is_whole, parts_of, read_manifest
from pipelines.jobs.markers import read_marker
from pipelines.jobs.plan import refuse_other_recipe
from pipelines.storage.place import Place, open_place
from pipelines.stores.image_plan import images_file
from pipelines.stores.store import Store
from schemas import failures
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, references_of, split_record_id
from schemas.layout import IMAGES_NAME
from schemas.manifest import Manifest, sha256_text
from schemas.plan import ArchivedImages, ArchivedImagesAgain, Job, ListedImagesAgain, Unit

NOT_AGAIN = frozenset({"duplicate", "missing"})  # classes that no second look mends


def run(job: Job, settings: RunSettings, plan_files: Mapping[str, bytes]) -> Manifest:
    """Describe the failed images again; `plan_files` as of `run_job`, where images lie elsewhere
    now.

    Raises UserError where the store is not finished, and driver.JobFailed.
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
    archives = [
        unit for unit in job.units if isinstance(unit.work, ArchivedImages) and not unit.work.again
    ]
    listed, of_archives = failed_images(store, len(archives) + 1)
    if not listed and not of_archives:
        print(f"extract    nothing failed that could be tried again: {place.url}", file=sys.stderr)
        return manifest
    number = 1 + max((_number(unit) for unit in job.units), default=0)
    name = f"plan/retry-{number:05}.parquet"
    of_listing = _references(plan_files.get(IMAGES_NAME) or place.read(IMAGES_NAME), listed)
    references = [*of_listing, *(_reference(one) for ids in of_archives.values() for one in ids)]
    units = _units(job, store, name, of_listing, archives, of_archives, number)
    files = {**plan_files, name: images_file(references)}
    return run_job(replace(job, units=(*job.units, *units)), settings, files, again=True)


def _under_way(place: Place, job: Job, manifest: Manifest) -> bool:
    """Whether an earlier retry was not brought to its end: a unit's files are not among those that
    the manifest counts.

    Of what the manifest counts nothing is known where parts.parquet is not its own: it is written
        first.
    """
    parts = parts_of(place, manifest)
    made = set(parts.column("unit").to_pylist()) if parts is not None else set()
    for unit in job.units:
        if unit.work.again and unit.name not in made:
            marker = read_marker(place, job, unit)
            if (
                marker is None or marker.files
            ):  # without files: the archive holds none of the images any more
                return True
    return False


def _number(unit: Unit) -> int:
    """The number of the retry that a unit belongs to; 0 of none."""
    name = unit.work.again or "plan/retry-0.parquet"
    return int(name.removeprefix("plan/retry-").removesuffix(".parquet"))


def failed_images(store: Store, stride: int) -> tuple[list[str], dict[int, list[str]]]:
    """Failed record ids that are alive in no part: of the listing, and of each archive (by its
    ordinal).
    """
    alive: set[str] = set()
    lost: dict[str, int] = {}
    for part in store.parts:
        if part.failures is None or not part.failures.rows:
            continue
        for row in failures.read_part(io.BytesIO(store.place.read(part.failures.name))):
            if row.error_class not in NOT_AGAIN:
                residue = part.number % stride
                if (
                    residue != stride - 1 or row.record_id not in lost
                ):  # an archive's own part, before a retry's
                    lost[row.record_id] = residue
    for part in store.parts if lost else ():
        read = store.read_ids(part)
        alive |= {read.record_ids[row] for row in np.flatnonzero(read.ok)} & lost.keys()
    listed: list[str] = []
    of_archives: dict[int, list[str]] = {}
    for record_id, residue in lost.items():
        if record_id not in alive:
            (listed if residue == stride - 1 else of_archives.setdefault(residue, [])).append(
                record_id
            )
    return listed, of_archives


def _references(images: bytes, ids: Sequence[str]) -> list[ImageReference]:
    """Where listed images lie, each once, of the plan's table of images."""
    if not ids:
        return []
    table = pq.read_table(io.BytesIO(images))
    found = references_of(
        table.filter(pc.is_in(table.column("record_id"), pa.array(ids, pa.string())))
    )
    return list({reference.record_id: reference for reference in found}.values())


def _reference(record_id: str) -> ImageReference:
    return ImageReference(record_id, os.fsdecode(decode_name(split_record_id(record_id)[0])), b"")


def _units(
    job: Job,
    store: Store,
    name: str,
    references: Sequence[ImageReference],
    archives: Sequence[Unit],
    of_archives: dict[int, list[str]],
    number: int,
) -> list[Unit]:
    """Units with part numbers behind all that are in use, of those that no archive has."""
    stride = len(archives) + 1
    used = [part.number for part in store.parts if part.number % stride == stride - 1]
    part = (max(used) if used else -1) + stride
    units = []
    rows = int(job.recipe["rows_per_part"])
    for start in range(0, len(references), rows):
        ids = [reference.record_id for reference in references[start : start + rows]]
        work = ListedImagesAgain(part, start, sha256_text("\n".join(ids)), (), again=name)
        units.append(Unit(f"part-{part:05}", work, len(ids)))
        part += stride
    for place, ordinal in enumerate(sorted(of_archives)):
        original = archives[ordinal]
        spread = {"part": part + place * stride, "stride": stride * len(of_archives), "again": name}
        again = ArchivedImagesAgain(**{**original.payload, **spread})
        units.append(Unit(f"{original.name}-again-{number:05}", again, 0))
    return units
