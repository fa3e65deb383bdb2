"""Finished outputs: writing their manifest, reading it, and whether all that it counts is there."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pipelines.jobs.facts import F, facts_of
from pipelines.jobs.markers import software_versions
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table, reading, table_bytes
from schemas.errors import Damaged, JobFailed, UserError
from schemas.layout import PLAN_NAME
from schemas.manifest import (
    MANIFEST_NAME,
    PARTS_NAME,
    Counts,
    FileEntry,
    Manifest,
    Marker,
    Note,
    content_hash,
    entries_of,
    parts_table,
    summed_notes,
)
from schemas.openers.parquet import table_of
from schemas.plan import Job


def write_manifest(
    place: Place,
    job: Job,
    markers: Sequence[Marker],
    wall_seconds: float,
    notes: Mapping[str, Note] | None = None,
) -> Manifest:
    """Write parts.parquet and, last, manifest.json.

    notes: what the driver has to report of the run. Raises JobFailed where what was made does not
    add up to what was planned.
    """
    _prove(place, job, markers)
    parts = table_bytes(parts_table(markers), compression="none")
    place.write(PARTS_NAME, parts)

    files = [entry for marker in markers for entry in marker.files]
    counts = (unit.adds(one.counts) for unit, one in zip(job.units, markers, strict=True))
    summaries = {marker.unit: marker.summary for marker in markers if marker.summary}
    noted = summed_notes([*(marker.notes for marker in markers), notes or {}])
    manifest = Manifest(
        stage=job.stage,
        recipe=job.identity,
        recipe_hash=job.recipe_hash,
        content=content_hash(files, summaries),
        inputs=job.inputs,
        counts=sum(counts, Counts(0, 0, 0)),
        facts={
            **job.facts,
            **({"units": summaries} if summaries else {}),
            **({"notes": noted} if noted else {}),
            **({"workers": workers} if (workers := _workers(markers)) else {}),
        },
        parts={
            "name": PARTS_NAME,
            "sha256": hashlib.sha256(parts).hexdigest(),
            "files": len(files),
            "bytes": sum(entry.bytes for entry in files),
        },
        versions=software_versions(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=round(wall_seconds, 3),
        work_seconds=round(sum(marker.seconds for marker in markers), 3),
    )
    place.write(MANIFEST_NAME, manifest.to_bytes())
    return manifest


def _workers(markers: Sequence[Marker]) -> dict[str, int]:
    """Engine -> worker processes that did units; nothing where all were this machine's own."""
    processes = {
        (one.worker.get("engine", "local"), one.host, one.worker.get("pid")) for one in markers
    }
    counts = Counter(engine for engine, *_ in processes)
    return dict(counts) if {*counts} - {"local"} else {}


def _prove(place: Place, job: Job, markers: Sequence[Marker]) -> None:
    """Raise JobFailed where a unit counts other inputs than were planned for it, or there is
    none: an output is not finished but empty.
    """
    if not job.units:
        raise JobFailed(f"{job.stage}: {place.url} was planned without a part; nothing was made")

    for unit, marker in zip(job.units, markers, strict=True):
        known = not (unit.work.open or unit.work.again)
        if known and marker.counts.inputs != unit.inputs:
            raise JobFailed(
                f"{job.stage}: {unit.name} of {place.url} counts {marker.counts.inputs:,} of its "
                f"{unit.inputs:,} {job.noun}; nothing is finished by that"
            )


def read_manifest(place: Place) -> Manifest | None:
    """The folder's manifest, or None where there is none. Raises UserError where it is damaged."""
    try:
        return Manifest.from_bytes(place.read_record(MANIFEST_NAME))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _unusable(place.url, error) from error


def is_whole(place: Place, manifest: Manifest) -> bool:
    """Whether all files that the manifest counts are there with their sizes; no byte is read."""
    parts = parts_of(place, manifest)
    if parts is None:
        return False

    sizes = place.sizes([entry.name for _, entry in parts])
    return sizes == [entry.bytes for _, entry in parts]


def parts_of(place: Place, manifest: Manifest) -> list[tuple[str, FileEntry]] | None:
    """(unit, file) of what a manifest counts; None where the table is absent or another one."""
    try:
        data = place.read(PARTS_NAME)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EACCES, errno.EPERM):
            raise
        return None  # absent, or no file at all
    if hashlib.sha256(data).hexdigest() != manifest.parts.get("sha256"):
        return None

    with reading(place, PARTS_NAME):
        table = table_of(data)
        entries = entries_of(table)
        return list(zip(table.column("unit").to_pylist(), entries, strict=True))


def require_manifest(url: str, what: str, command: str) -> Manifest:
    """The manifest of an input. Raises UserError where the folder is absent or unfinished."""
    place = open_place(url)
    manifest = read_manifest(place)
    if manifest is None:
        state = "is not finished" if place.exists(PLAN_NAME) else "is not there"
        raise UserError(f"{place.url}: the {what} {state}; make it with '{command}'")
    return manifest


def read_facts(url: str, manifest: Manifest, kind: type[F]) -> F:
    """What a manifest says for the next stage. Raises UserError where it is of other types."""
    try:
        return facts_of(manifest, kind)
    except ValueError as error:
        raise _unusable(url, error) from error


def input_content(url: str, manifest: Manifest, name: str) -> str:
    """The content of an input that a manifest records. Raises UserError where it records none."""
    try:
        return manifest.inputs[name]["content"]
    except KeyError:
        raise _unusable(url, f"inputs.{name}: it has no content") from None


def _unusable(url: str, why: object) -> Damaged:
    return Damaged.file(open_place(url).url, MANIFEST_NAME, f"it cannot be used: {why}")


def read_entries(url: str) -> list[FileEntry]:
    """The files of a finished output. Raises Damaged."""
    place = open_place(url)
    with reading(place, PARTS_NAME):
        return entries_of(read_table(place, PARTS_NAME))


def as_input(url: str, manifest: Manifest) -> dict[str, str]:
    """What a job records of an input."""
    return {"url": open_place(url).url, "content": manifest.content}
