"""What a job takes on disk, from the files that a probe wrote: bytes of a row, and bytes of a file
beside its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.estimate.probe import Probe
from pipelines.jobs.plan import write_plan
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table, table_bytes
from schemas.global_descriptors import WRITING
from schemas.layout import PLAN_FOLDER
from schemas.manifest import MANIFEST_NAME, PARTS_NAME, FileEntry
from schemas.plan import Job

PIECE = 160  # bytes of a piece's marker beside those of a part's


@dataclass(frozen=True)
class Sizes:
    """Bytes of files of one kind: of each beside its rows, and of each row."""

    file: float
    row: float

    def total(self, files: int, rows: float) -> int:
        """Bytes of so many files that hold so many rows."""
        return round(self.file * files + self.row * rows)


def parquet_bytes(table: pa.Table, **how: Any) -> int:
    """Bytes of the table as a Parquet file; `how` are options of its writer."""
    return len(table_bytes(table, **how))


def parquet_sizes(table: pa.Table, **how: Any) -> Sizes:
    """Sizes of files like this table: by how much it is smaller than its two halves is a file's
    own.
    """
    middle = len(table) // 2
    whole = parquet_bytes(table, **how)
    halves = sum(parquet_bytes(half, **how) for half in (table.slice(0, middle), table[middle:]))
    return Sizes(halves - whole, max(0, 2 * whole - halves) / max(1, len(table)))


def written(probe: Probe, folder: str = "") -> pa.Table:
    """The rows of the probe's Parquet files, of those below a folder."""
    names = [entry.name for entry in probe.files(folder)]
    return pa.concat_tables(read_table(probe.place, name) for name in names)


def store_sizes(probe: Probe) -> dict[str, Sizes]:
    """Sizes of the files of a store's parts, or of a layer's, an image being a row.

    Globals are absent where the probe wrote none, as are locals.
    """
    sizes, images = {}, max(1, probe.counts.inputs)
    if probe.files("global/"):
        table = written(probe, "global/")
        sizes["globals"] = parquet_sizes(table, **WRITING)
    if probe.files("local/"):
        sizes["locals"] = _hdf5_sizes(probe.files("local/"), images)
    failures = written(probe, "failures/")
    a_row = parquet_sizes(failures, compression="none")
    sizes["failures"] = Sizes(a_row.file, a_row.row * len(failures) / images)
    return sizes


def _hdf5_sizes(entries: Sequence[FileEntry], images: int) -> Sizes:
    """Contiguous HDF5: all but the datasets' bytes is a file's own."""
    data = [
        sum(
            int(np.prod(part["shape"], dtype=np.int64)) * np.dtype(part["dtype"]).itemsize
            for name, part in (entry.layout or {}).items()
            if name != "rotation"
        )
        for entry in entries
    ]
    beside = sum(entry.bytes for entry in entries) - sum(data)
    return Sizes(beside / len(entries), sum(data) / images)


def written_plan(folder: Path, job: Job, files: Mapping[str, bytes] | None = None) -> Place:
    """The job's plan as its run would write it, with the files that belong to it, in a folder."""
    place = open_place(str(folder))
    write_plan(place, job, files or {})
    return place


def bookkeeping(probe: Probe, plan: Place, parts: int, pieces: int = 0) -> int:
    """Bytes of plan, markers, parts.parquet and manifest of the whole job.

    parts   units that write one part each
    pieces  parts of archives: each has a marker of its own, and is in that of its archive
    """
    planned = sum(plan.size(f"{PLAN_FOLDER}/{name}") or 0 for name in plan.names(PLAN_FOLDER))
    listed = read_table(probe.place, PARTS_NAME)
    files = len(listed) / len(set(listed.column("unit").to_pylist()))
    table = parquet_sizes(listed, compression="none").total(1, files * (parts + pieces))
    mark = mean(len(one.marker.to_bytes()) for one in probe.measured)
    markers = parts * mark + pieces * (2 * mark + PIECE)
    return round(planned + (probe.place.size(MANIFEST_NAME) or 0) + table + markers)
