"""Reading shortlists: their files, their queries, one part."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipelines.jobs.manifests import read_entries, require_manifest
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from schemas.manifest import FileEntry
from schemas.shortlist import SHORTLIST


def shortlist_files(url: str) -> list[FileEntry]:
    """The parts of a run's shortlist; queries in the order of their store."""
    require_manifest(f"{url}/shortlist", "shortlist", "search")
    return sorted(read_entries(f"{url}/shortlist"), key=lambda entry: entry.name)


def queries_in(url: str, name: str) -> int:
    """How many queries a part of the shortlist holds."""
    ids = read_table(open_place(f"{url}/shortlist"), name, ["query_id"], SHORTLIST)
    return len(ids.column("query_id").unique())


def read_shortlist_part(url: str, name: str) -> list[tuple[str, pa.Table]]:
    """(query id, its candidates) of a part of the shortlist."""
    return split_by_query(read_table(open_place(f"{url}/shortlist"), name, schema=SHORTLIST))


def read_shortlist(url: str) -> Iterator[tuple[str, pa.Table]]:
    """(query id, its candidates) of the whole shortlist; a part is read at a time."""
    for entry in shortlist_files(url):
        yield from read_shortlist_part(url, entry.name)


def split_by_query(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """(query id, its rows) of a table whose rows stand query by query."""
    ids = table.column("query_id").to_numpy(zero_copy_only=False)
    edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
    return [
        (ids[start], table.slice(start, stop - start))
        for start, stop in pairwise(edges)
        if stop > start  # an empty table has no query
    ]
