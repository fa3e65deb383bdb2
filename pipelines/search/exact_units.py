"""The unit workers of an exact search: the best of a run of parts, then those of all runs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.manifests import read_entries
from pipelines.search.units import Searching
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from pipelines.stores.gallery import open_stores, parts_of
from rrt_core.indexes.exact import Best, score_matrix
from schemas.errors import Damaged
from schemas.manifest import Counts
from schemas.plan import ExactSearch, Job, ShortlistBlock, Unit
from schemas.shortlist import EXACT, SHORTLIST


class SearchExactly(Searching):
    """Scores all rows of a run of parts for a block of queries."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.stores = open_stores(stores_of(job.facts["stores"]), job.output)

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the best k of each query; a part is in memory at a time."""
        work = unit.of(ExactSearch)
        names, descriptors = self.read_queries(work.rows)
        best = [Best(self.job.settings["k"]) for _ in work.rows]
        for store, part in parts_of(self.stores, work.searched):
            read = store.read_global(part)
            rows = np.flatnonzero(read.ok)
            record_ids = np.array(read.record_ids, object)[rows]
            row_ids = store.row_ids(part, rows)
            scores = score_matrix(descriptors, read.descriptors[rows])
            for name, mine, each in zip(names, best, scores, strict=True):
                if name in self.excluded:
                    kept = self.excluded[name].keep(row_ids)
                    mine.add(each[kept], record_ids[kept], row_ids[kept])
                else:
                    mine.add(each, record_ids, row_ids)

        tables = []
        for query, mine in enumerate(best):
            score, record_id, row_id = mine.rows()
            columns = [np.full(len(score), query, np.int32), record_id, row_id, score]
            tables.append(pa.table(columns, schema=EXACT))
        attempt.add_table(pa.concat_tables(tables), f"{unit.name}.parquet")
        return Counts(unit.inputs, unit.inputs)


class MergeExact(Searching):
    """The best of all runs for a block of queries: their shortlists."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the shortlist of a block; a run's candidates are in memory at a time.

        Raises Damaged where a query has fewer than there are.
        """
        names = self.query_ids(unit.of(ShortlistBlock).rows)
        k = int(self.job.settings["k"])
        best = [Best(k) for _ in names]
        place, block = open_place(self.job.inputs["exact"]["url"]), unit.name.rpartition("-")[2]
        for entry in read_entries(place.url):
            if not entry.name.split(".")[0].endswith(f"-{block}"):
                continue
            table = read_table(place, entry.name, schema=EXACT)
            query, row_ids, scores = (
                table.column(name).to_numpy() for name in ("query", "row_id", "score")
            )
            record_ids = np.array(table.column("record_id").to_pylist(), object)
            for number, mine in enumerate(best):
                rows = slice(*np.searchsorted(query, (number, number + 1)))
                mine.add(scores[rows], record_ids[rows], row_ids[rows])

        tables = []
        for name, mine in zip(names, best, strict=True):
            score, record_id, row_id = mine.rows()
            wanted = min(k, self.job.facts["gallery_rows"] - len(self.excluded.get(name, ())))
            if len(score) != wanted:
                raise Damaged(
                    f"{place.url} has {len(score):,} candidates for {name}, of {wanted:,}; search "
                    f"again with --overwrite"
                )
            rank = np.arange(wanted, dtype=np.int32)
            columns = [[name] * wanted, rank, record_id, row_id, score]
            tables.append(pa.table(columns, schema=SHORTLIST))
        attempt.add_table(pa.concat_tables(tables), f"{unit.name}.parquet")
        return Counts(unit.inputs, unit.inputs)
