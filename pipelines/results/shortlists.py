"""Reading shortlists: their files, their queries, one part."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.manifests import read_entries, require_manifest
from pipelines.storage.place import open_place
from schemas.manifest import FileEntry


def shortlist_files(url: str) -> list[FileEntry]:
    """The parts of a run's shortlist; queries in the order of their store."""
    require_manifest(f"{url}/shortlist", "shortlist", "search")
    return sorted(read_entries(f"{url}/shortlist"), key=lambda entry: entry.name)


def queries_in(url: str, name: str) -> int:
    """How many queries a part of the shortlist holds."""
    ids = pq.read_table(io.BytesIO(open_place(f"{url}/shortlist").read(name)), columns=["query_id"])
    return len(ids.column("query_id").unique())


def read_shortlist_part(url: str, name: str) -> list[tuple[str, pa.Table]]:
    """(query id, its candidates) of a part of the shortlist."""
    return split_by_query(pq.read_table(io.BytesIO(open_place(f"{url}/shortlist").read(name))))


def split_by_query(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """(query id, its rows) of a table whose rows stand query by query."""
    ids = table.column("query_id").to_numpy(zero_copy_only=False)
    starts = (
        np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        if len(ids)
        else np.zeros(0, int)
    )
    stops = [*starts[1:], len(ids)]
    return [
        (ids[start], table.slice(start, stop - start))
        for start, stop in zip(starts, stops, strict=True)
    ]
