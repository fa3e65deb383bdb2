"""The unit workers of `search`: candidates from the index, then the shortlist, rescored exactly."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.manifests import read_entries
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.indexes import open_search, read_search_file
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery, open_stores
from pipelines.stores.store import Store
from rrt_core.indexes import faiss_index as indexes
from schemas.manifest import Counts
from schemas.plan import Candidates, Job, ShortlistBlock, Unit
from schemas.shortlist import CANDIDATES, SHORTLIST


def read_queries(queries: Store, rows: Sequence[Sequence[int]]) -> tuple[list[str], np.ndarray]:
    """Record ids and descriptors float32 [n, D] of [part, row] pairs."""
    row_ids = np.array(
        [queries.row_ids(queries.parts[part], np.array([row]))[0] for part, row in rows], np.int64
    )
    return Gallery([queries]).read_globals(row_ids)


class FetchCandidates(UnitWorker):
    """Searches one file for one block: row ids alone, since index scores only choose."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.queries = Store(job.settings["queries"])
        self.open: tuple[str, Any] = (
            "",
            None,
        )  # the search file of the last unit: neighbours share it

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the candidates of a block in a file."""
        options = self.job.settings
        block = unit.of(Candidates)
        _, descriptors = read_queries(self.queries, block.rows)
        if self.open[0] != block.file:
            self.open = ("", None)  # let go of one before the next is read
            self.open = (block.file, read_search_file(options["index"], block.file))
        ids = indexes.search(self.open[1], descriptors, options["fetched"], options["nprobe"])
        query, place = np.nonzero(ids >= 0)
        path = attempt.path("candidates.parquet")
        table = pa.table(
            {"query": query.astype(np.int32), "row_id": ids[query, place]}, schema=CANDIDATES
        )
        pq.write_table(table, path, compression="zstd")
        attempt.add(path, f"{unit.name}.parquet", len(table))
        return Counts(unit.inputs, unit.inputs)


class MakeShortlist(UnitWorker):
    """Candidates of a block -> exact scores from the stored globals -> the first k."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.queries = Store(job.settings["queries"])
        self.manifest, self.files = open_search(job.settings["index"])
        self.gallery = Gallery(open_stores(self.manifest.facts["stores"]))
        self.index: Any = None

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the shortlist of a block."""
        names, descriptors = read_queries(self.queries, unit.of(ShortlistBlock).rows)
        candidates = self._candidates(unit, descriptors)
        ids = np.unique(np.concatenate(candidates)) if candidates else np.zeros(0, np.int64)
        scores, record_ids = self._rescore(descriptors, candidates, ids)
        tables = []
        for number, name in enumerate(names):
            mine = [record_ids[i] for i in np.searchsorted(ids, candidates[number])]
            best = indexes.order(scores[number], mine)[: self.job.settings["k"]]
            tables.append(
                pa.table(
                    {
                        "query_id": [name] * len(best),
                        "rank": np.arange(len(best), dtype=np.int32),
                        "record_id": [mine[i] for i in best],
                        "row_id": candidates[number][best],
                        "score": scores[number][best],
                    },
                    schema=SHORTLIST,
                )
            )
        table = pa.concat_tables(tables)
        path = attempt.path("shortlist.parquet")
        pq.write_table(table, path, compression="zstd")
        attempt.add(path, f"{unit.name}.parquet", len(table))
        return Counts(unit.inputs, unit.inputs)

    def _candidates(self, unit: Unit, descriptors: np.ndarray) -> list[np.ndarray]:
        """Row ids a query, ascending, over all search files."""
        options = self.job.settings
        found: list[list[np.ndarray]] = [[] for _ in descriptors]
        if "candidates" in self.job.inputs:
            place = open_place(self.job.inputs["candidates"]["url"])
            block = unit.name.removeprefix("part-")
            for entry in read_entries(place.url):
                if entry.name.split(".")[0].endswith(f"-{block}"):
                    table = pq.read_table(io.BytesIO(place.read(entry.name)))
                    query, row_id = (
                        table.column("query").to_numpy(),
                        table.column("row_id").to_numpy(),
                    )
                    for number in range(len(found)):
                        found[number].append(row_id[query == number])
        else:
            if self.index is None:
                self.index = read_search_file(options["index"], self.files[0])
            ids = indexes.search(self.index, descriptors, options["fetched"], options["nprobe"])
            for number, row in enumerate(ids):
                found[number].append(row[row >= 0])
        return [np.unique(np.concatenate(pieces)) for pieces in found]

    def _rescore(
        self, queries: np.ndarray, candidates: Sequence[np.ndarray], ids: np.ndarray
    ) -> tuple[list[np.ndarray], list[str]]:
        """Exact scores a query, and the record ids of all candidates; each gallery part is read
        once.
        """
        scores = [np.zeros(len(mine), np.float32) for mine in candidates]
        record_ids = [""] * len(ids)
        for positions in self.gallery.locate(ids).values():
            names, descriptors = self.gallery.read_globals(ids[positions])
            for position, name in zip(positions, names, strict=True):
                record_ids[position] = name
            first, last = ids[positions[0]], ids[positions[-1]]
            for number, mine in enumerate(candidates):
                inside = slice(np.searchsorted(mine, first), np.searchsorted(mine, last, "right"))
                picked = np.searchsorted(ids[positions], mine[inside])
                scores[number][inside] = indexes.exact_scores(queries[number], descriptors[picked])
        return scores, record_ids
