"""The unit workers of `search`: candidates from the index, then the shortlist, rescored exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.manifests import read_entries
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.excluded import NOTHING, read_excluded
from pipelines.results.indexes import open_search, read_index
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from pipelines.stores.gallery import Gallery, open_stores
from pipelines.stores.store import Store
from rrt_core.indexes import faiss_index as indexes
from schemas.errors import UserError
from schemas.manifest import Counts
from schemas.plan import Candidates, Job, ShortlistBlock, Unit
from schemas.shortlist import CANDIDATES, SHORTLIST


class Searching(UnitWorker):
    """What both workers share: the queries, and the search file of the last unit."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.queries = Store(job.settings["queries"])
        self.excluded = read_excluded(job.inputs)
        self.name = ""
        self.index: Any = None  # neighbouring units share a file

    def read_queries(self, rows: Sequence[Sequence[int]]) -> tuple[list[str], np.ndarray]:
        """Record ids and descriptors float32 [n, D] of [part, row] pairs."""
        return Gallery([self.queries]).read_globals(self._row_ids(rows))

    def query_ids(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Their record ids alone."""
        return Gallery([self.queries]).read_ids(self._row_ids(rows))

    def _row_ids(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        store = self.queries
        row_ids = [store.row_ids(store.parts[part], np.array([row]))[0] for part, row in rows]
        return np.array(row_ids, np.int64)

    def search(self, name: str, queries: Sequence[str], descriptors: np.ndarray) -> np.ndarray:
        """Row ids int64 [n, fetched] of a search file, -1 where it has no more; what a query's list
        leaves out is searched beside, and -1.
        """
        options = self.job.settings
        left_out = [self.excluded.get(query, NOTHING) for query in queries]
        fetched = options["fetched"] + max(map(len, left_out), default=0)
        if self.name != name:
            self.index = None  # let go of one before the next is read
            self.index = read_index(f"{options['index']}/search", name)
            self.name = name
        ids = indexes.search(self.index, descriptors, fetched, options["nprobe"])
        for mine, out in zip(ids, left_out, strict=True):
            kept = mine[out.keep(mine)][: options["fetched"]]  # alike whatever its company
            mine[: len(kept)], mine[len(kept) :] = kept, -1
        return ids


class FetchCandidates(Searching):
    """Searches one file for one block: row ids alone, since index scores only choose."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the candidates of a block in a file."""
        block = unit.of(Candidates)
        ids = self.search(block.file, *self.read_queries(block.rows))
        query, place = np.nonzero(ids >= 0)
        columns = {"query": query.astype(np.int32), "row_id": ids[query, place]}
        attempt.add_table(pa.table(columns, schema=CANDIDATES), f"{unit.name}.parquet")
        return Counts(unit.inputs, unit.inputs)


class MakeShortlist(Searching):
    """Candidates of a block -> exact scores from the stored globals -> the first k."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        index = open_search(job.settings["index"])
        self.files = index.files
        # older outputs' jobs name no stores
        hints = stores_of(job.facts["stores"]) if "stores" in job.facts else index.facts.stores
        self.gallery = Gallery(open_stores(hints, job.output))

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the shortlist of a block."""
        names, descriptors = self.read_queries(unit.of(ShortlistBlock).rows)
        candidates = self._candidates(unit, names, descriptors)
        ids = np.unique(np.concatenate(candidates))
        scores, record_ids = self._rescore(descriptors, candidates, ids)

        tables, lengths, wanted = [], list[int](), self.job.settings["k"]
        rows, short = self.job.facts.get("gallery_rows", wanted), list[int]()
        for number, name in enumerate(names):
            mine = [record_ids[i] for i in np.searchsorted(ids, candidates[number])]
            best = indexes.order(scores[number], mine)[:wanted]
            lengths.append(len(best))
            if len(best) < min(wanted, rows - len(self.excluded.get(name, ()))):
                short.append(len(best))
            columns = {
                "query_id": [name] * len(best),
                "rank": np.arange(len(best), dtype=np.int32),
                "record_id": [mine[i] for i in best],
                "row_id": candidates[number][best],
                "score": scores[number][best],
            }
            tables.append(pa.table(columns, schema=SHORTLIST))
        if 0 in lengths:
            raise UserError(
                f"search: {names[lengths.index(0)]} has no candidate: the lists of "
                f"{self.job.settings['index']} that are visited are empty; raise --nprobe"
            )
        if short:
            attempt.notes.update(short_lists=len(short), least_candidates=min(short))
        attempt.add_table(pa.concat_tables(tables), f"{unit.name}.parquet")
        return Counts(unit.inputs, unit.inputs)

    def _candidates(
        self, unit: Unit, names: Sequence[str], descriptors: np.ndarray
    ) -> list[np.ndarray]:
        """Row ids a query, ascending, over all search files."""
        if "candidates" not in self.job.inputs:
            ids = self.search(self.files[0], names, descriptors)
            return [np.unique(row[row >= 0]) for row in ids]

        place = open_place(self.job.inputs["candidates"]["url"])
        block = unit.name.removeprefix("part-")
        tables = [
            read_table(place, entry.name, schema=CANDIDATES)
            for entry in read_entries(place.url)
            if entry.name.split(".")[0].endswith(f"-{block}")
        ]
        query, row_id = (
            pa.concat_tables(tables).column(name).to_numpy() for name in ("query", "row_id")
        )
        return [np.unique(row_id[query == number]) for number in range(len(descriptors))]

    def _rescore(
        self, queries: np.ndarray, candidates: Sequence[np.ndarray], ids: np.ndarray
    ) -> tuple[list[np.ndarray], list[str]]:
        """Exact scores a query, the record ids of all candidates; a gallery part is read once."""
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
