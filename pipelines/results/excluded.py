"""Reading which rows of a gallery are a query's own image, and are left out of its list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.jobs.manifests import read_entries
from pipelines.results.shortlists import split_by_query
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from schemas.shortlist import EXCLUDED


@dataclass(frozen=True)
class Excluded:
    """What the list of one query leaves out: row ids int64 [n], rising, and their record ids."""

    row_ids: np.ndarray
    record_ids: list[str]

    def __len__(self) -> int:
        return len(self.row_ids)

    def keep(self, row_ids: np.ndarray) -> np.ndarray:
        """Which places int64 of some row ids are not left out."""
        return np.flatnonzero(~np.isin(row_ids, self.row_ids))


NOTHING = Excluded(np.zeros(0, np.int64), [])


def read_excluded(inputs: Mapping[str, Mapping[str, str]]) -> dict[str, Excluded]:
    """Query id -> what its list leaves out; queries that leave out nothing are absent.

    Of the job `excluded` among the inputs of another; empty where that has none.
    """
    if "excluded" not in inputs:
        return {}

    place = open_place(inputs["excluded"]["url"])
    tables = [read_table(place, entry.name, schema=EXCLUDED) for entry in read_entries(place.url)]
    table = pa.concat_tables(tables).sort_by([("query_id", "ascending"), ("row_id", "ascending")])
    return {
        query: Excluded(rows.column("row_id").to_numpy(), rows.column("record_id").to_pylist())
        for query, rows in split_by_query(table)
    }
