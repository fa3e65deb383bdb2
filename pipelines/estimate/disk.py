"""What a store takes on disk, from the files that a probe wrote: bytes an image, and bytes a file,
told apart.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.estimate.probe import Probed
from pipelines.jobs.plan import write_plan
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas import failures, global_descriptors
from schemas.global_descriptors import GlobalRow
from schemas.manifest import MANIFEST_NAME, FileEntry, Marker, parts_table
from schemas.plan import Job

MOST_LISTED = 300  # parts of a made-up parts.parquet; more take as much each


@dataclass(frozen=True)
class Kind:
    """Files of one kind: bytes of each, and of each image in them."""

    fixed: float
    each: float

    def total(self, files: int, images: float) -> float:
        return self.fixed * files + self.each * images


@dataclass(frozen=True)
class StoreDisk:
    """Sizes of a store's files. Those of a kind that is not written are zero."""

    globals: Kind
    locals: Kind
    failures: Kind


def store_disk(probed: Probed) -> StoreDisk:
    """The sizes of the kinds of files that the probe wrote for its parts: a store's three, or a
    layer's two.
    """
    entries: dict[str, list[FileEntry]] = {"global": [], "local": [], "failures": []}
    for _, marker in probed.units:
        for entry in marker.files:
            entries[entry.name.split("/")[0]].append(entry)
    images = sum(marker.counts.inputs for _, marker in probed.units)
    with tempfile.TemporaryDirectory(dir=probed.place.root) as folder:
        path = os.path.join(folder, "empty")
        failures.write_part(path, [])
        lost = _kind(entries["failures"], images, os.path.getsize(path))
        fixed = _fixed_globals(probed.place, entries["global"], path)
    return StoreDisk(
        _kind(entries["global"], images, fixed), _locals(entries["local"], images), lost
    )


def _kind(entries: Sequence[FileEntry], images: int, fixed: float) -> Kind:
    if not entries:
        return Kind(0.0, 0.0)
    return Kind(
        fixed,
        max(0.0, sum(entry.bytes for entry in entries) - fixed * len(entries)) / max(1, images),
    )


def _fixed_globals(place: Place, entries: Sequence[FileEntry], path: str) -> float:
    """Bytes of a file beside its rows: by how much a file is smaller than its two halves."""
    if not entries:
        return 0.0
    table = pq.read_table(io.BytesIO(place.read(max(entries, key=lambda entry: entry.rows).name)))
    told = table.schema.metadata
    kept = {field.name for field in fields(GlobalRow)} - {"descriptor"}
    rows = [
        GlobalRow(**{name: row[name] for name in kept}, descriptor=None)
        for row in table.to_pylist()
    ]
    sizes = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :], rows):
        global_descriptors.write_part(path, part, int(told[b"dimension"]), told[b"dtype"].decode())
        sizes.append(os.path.getsize(path))
    return float(sizes[0] + sizes[1] - sizes[2]) if len(rows) > 1 else float(sizes[0])


def _locals(entries: Sequence[FileEntry], images: int) -> Kind:
    """Contiguous HDF5: all but the datasets' bytes is a file's own."""
    if not entries:
        return Kind(0.0, 0.0)
    data = [
        sum(
            int(np.prod(part["shape"], dtype=np.int64)) * np.dtype(part["dtype"]).itemsize
            for name, part in (entry.layout or {}).items()
            if name != "rotation"
        )
        for entry in entries
    ]
    beside = sum(entry.bytes for entry in entries) - sum(data)
    return Kind(beside / len(entries), sum(data) / max(1, images))


def bookkeeping(
    job: Job, plan_files: Mapping[str, bytes], probed: Probed, folder: Path, parts: int, pieces: int
) -> float:
    """Bytes of plan, markers, parts.parquet and manifest of the whole job.

    parts  units that write one part each;  pieces  parts of archives, which have markers of their
           own
    """
    planned = open_place(str(folder / "plan-alone"))
    write_plan(planned, job, plan_files)
    plan = sum(planned.size(f"plan/{name}") or 0 for name in planned.names("plan"))
    markers = [marker for _, marker in probed.measured]
    mark = float(np.mean([len(marker.to_bytes()) for marker in markers]))
    committed = probed.place.names("pieces")
    piece = (
        float(np.mean([probed.place.size(f"pieces/{name}") or 0 for name in committed]))
        if committed
        else 0.0
    )
    manifest = probed.place.size(MANIFEST_NAME) or 0
    return (
        plan
        + manifest
        + parts * mark
        + pieces * (piece + mark)
        + _parts_bytes(markers, parts + pieces)
    )


def _parts_bytes(markers: Sequence[Marker], parts: int) -> float:
    made = min(parts, MOST_LISTED)
    listed = []
    for number in range(made):
        marker = markers[number % len(markers)]
        files = tuple(
            replace(
                entry,
                name=f"{entry.name[:-20]}{number:08}{entry.name[-12:]}",
                sha256=f"{number:064x}",
            )
            for entry in marker.files[:3]
        )
        listed.append(replace(marker, unit=f"part-{number:05}", files=files))
    buffer = io.BytesIO()
    pq.write_table(parts_table(listed), buffer, compression="none")
    return len(buffer.getvalue()) * parts / max(1, made)
