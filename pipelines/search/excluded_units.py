"""The unit worker that finds which rows of the gallery are a query's own image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.stores.gallery import open_stores, parts_of
from pipelines.stores.store import PartFiles, Store
from schemas.manifest import Counts
from schemas.plan import ExcludedRows, Job, Unit
from schemas.shortlist import EXCLUDED


class FindExcluded(UnitWorker):
    """Compares the rows of a run of parts with the queries, by row or by the bytes of files."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.stores = open_stores(stores_of(job.settings["stores"]), job.output)
        self.queries = Store(job.settings["queries"])
        self.by_bytes: dict[str, list[str]] = {}  # SHA-256 -> record ids of queries
        if job.settings["exclude_self"] == "bytes":
            for part in self.queries.parts:
                read, digests = self.queries.read_ids(part), self.queries.read_digests(part)
                for row in np.flatnonzero(read.ok):
                    if digests[row]:
                        self.by_bytes.setdefault(digests[row], []).append(read.record_ids[row])

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the rows that a list leaves out."""
        found, described = list[tuple[str, str, int]](), 0
        for store, part in parts_of(self.stores, unit.of(ExcludedRows).excluding):
            read = store.read_ids(part)
            rows = np.flatnonzero(read.ok)
            described += len(rows)
            found += self._found(store, part, read.record_ids, rows)

        listed = zip(*found, strict=True) if found else [()] * len(EXCLUDED)
        columns = map(pa.array, listed, EXCLUDED.types)
        attempt.add_table(pa.table(list(columns), schema=EXCLUDED), f"{unit.name}.parquet")
        return Counts(unit.inputs, described, unit.inputs - described)

    def _found(
        self, store: Store, part: PartFiles, record_ids: list[str], rows: np.ndarray
    ) -> list[tuple[str, str, int]]:
        """(query id, record id, row id) of the rows of a part that are a query's own image."""
        row_ids = store.row_ids(part, rows).tolist()
        named = [(record_ids[row], row_id) for row, row_id in zip(rows, row_ids, strict=True)]
        if self.job.settings["exclude_self"] == "row":
            own = store.manifest.content == self.queries.manifest.content
            return [(record_id, record_id, row_id) for record_id, row_id in named] if own else []

        digests = store.read_digests(part)
        return [
            (query, *each)
            for row, each in zip(rows, named, strict=True)
            for query in self.by_bytes.get(digests[row], ())
        ]
