"""search: query globals + index -> for each query its shortlist, rescored exactly from the stored globals.

Units are query blocks. Where the index has several search files, a first job gathers candidates (search file x
query block) and the second merges them; with one file a block does both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.commit import Attempt, Job, Unit, UnitWorker
from pipelines.driver import RunSettings, run_job
from pipelines.index import open_search, read_search_file
from pipelines.options import option
from pipelines.outputs import as_input, read_entries, require_manifest
from pipelines.storage import Place
from pipelines.stores import Gallery, Store, open_stores
from rrt_core import index as indexes
from rrt_core.metrics import required_depth
from schemas.errors import UserError
from schemas.ground_truth import load_ground_truth
from schemas.manifest import Counts, FileEntry, Manifest
from schemas.shortlist import CANDIDATES, SHORTLIST

STAGE = "search"
KEEP_ALL_UP_TO = 10_000  # a gallery of this size is ranked whole, so that no metric is of a truncated list
KEPT = 1_000


@dataclass(frozen=True)
class Options:
    """Options of `search`."""

    queries: str = option("store of the queries")
    index: str = option("index of the gallery")
    out: str = option("run folder; the shortlist is made below it")
    k: int = option("candidates kept a query; 0: all of a gallery of up to 10,000, else 1,000 or what is needed", 0)
    shortlist: int = option("how many will be reranked", 100)
    ground_truth: str = option("ground-truth file, where known: k is then held to what its protocols need", "")
    nprobe: int = option("lists of an IVF index that are visited", 32)
    oversample: float = option("candidates fetched from an approximate index, as a multiple of k", 2.0)
    queries_per_block: int = option("queries a unit", 1_024)


@dataclass(frozen=True)
class Plan:
    """What is searched: the recipe and inputs of both jobs, settings of their workers, and blocks of queries."""

    recipe: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    shared: dict[str, Any]
    blocks: list[list[list[int]]]
    index: Manifest


def plan(options: Options, settings: RunSettings) -> Plan:
    """Open queries and index, choose how many candidates are kept. Raises UserError."""
    queries = Store(options.queries)
    index, files = open_search(options.index)
    if queries.extractor != index_extractor(index):
        raise UserError(
            f"{queries.place.url} was described with other settings or weights than the gallery of {options.index}; "
            "describe both alike"
        )
    k = choose_k(options, index)
    approximate = index.facts["key"] != "Flat"
    fetched = min(round(k * options.oversample) if approximate else k + 16, int(index.facts["rows"]))
    recipe = {"k": k, "fetched": fetched, "nprobe": options.nprobe if approximate else None}
    recipe["threads"] = settings.threads_per_worker
    inputs = {"queries": queries.as_input, "index": as_input(f"{options.index}/search", index)}
    shared: dict[str, Any] = {**asdict(options), "k": k, "fetched": fetched, "files": files}
    return Plan(recipe, inputs, shared, query_blocks(queries, options.queries_per_block), index)


def candidates_job(planned: Plan, out: str) -> Job:
    """The job that gathers candidates, where the index has several search files."""
    units = [
        Unit(f"candidates-{f:03}-{b:05}", {"file": name, "rows": rows}, len(rows))
        for f, name in enumerate(planned.shared["files"])
        for b, rows in enumerate(planned.blocks)
    ]
    return Job(
        stage=STAGE,
        output=f"{out}/candidates",
        worker="search/candidates",
        recipe=planned.recipe,
        inputs=planned.inputs,
        units=tuple(units),
        settings=planned.shared,
        noun="query blocks",
    )


def shortlist_job(planned: Plan, out: str, candidates: Manifest | None) -> Job:
    """The job that makes the shortlist."""
    inputs, facts = planned.inputs, planned.index.facts
    if candidates is not None:
        inputs = {**inputs, "candidates": as_input(f"{out}/candidates", candidates)}
    k = planned.shared["k"]
    units = [Unit(f"part-{number:05}", {"rows": rows}, len(rows)) for number, rows in enumerate(planned.blocks)]
    return Job(
        stage=STAGE,
        output=f"{out}/shortlist",
        worker="search/shortlist",
        recipe=planned.recipe,
        inputs=inputs,
        units=tuple(units),
        settings=planned.shared,
        facts={
            "kind": "shortlist",
            "k": k,
            "gallery_rows": facts["rows"],
            "truncated": k < int(facts["rows"]),
            "stores": facts["stores"],
            "index_key": facts["key"],
            "nprobe": planned.recipe["nprobe"],
        },
        noun="queries",
    )


def run(options: Options, settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the shortlist. Raises UserError and driver.JobFailed."""
    planned = plan(options, settings)
    several = len(planned.shared["files"]) > 1
    candidates = run_job(candidates_job(planned, options.out), settings) if several else None
    return run_job(shortlist_job(planned, options.out, candidates), settings)


def index_extractor(index: Manifest) -> dict[str, Any]:
    """The extractor of an index's gallery."""
    extractor: dict[str, Any] = Store(index.facts["stores"][0]["url"]).extractor
    return extractor


def choose_k(options: Options, index: Manifest) -> int:
    """How many candidates are kept. Raises UserError where a given k is less than the protocols need."""
    rows = int(index.facts["rows"])
    needed = options.shortlist
    if options.ground_truth:
        needed = required_depth(load_ground_truth(options.ground_truth), options.shortlist)
    if not options.k:
        return rows if rows <= KEEP_ALL_UP_TO else min(rows, max(KEPT, needed))
    if options.k < min(needed, rows):
        why = "the shortlist is as long"
        if options.ground_truth:
            why = f"the shortlist of {options.shortlist} plus the largest number of easy + junk of a query"
        raise UserError(f"search: --k is {options.k}, but at least {needed} must be kept ({why})")
    return min(options.k, rows)


def query_blocks(queries: Store, size: int) -> list[list[list[int]]]:
    """Blocks of described queries as [part, row] pairs, in the order of the store."""
    rows = [
        [number, int(row)]
        for number, part in enumerate(queries.parts)
        for row in np.flatnonzero(queries.read_global(part).ok)
    ]
    if not rows:
        raise UserError(f"{queries.place.url}: no query was described")
    return [rows[start : start + size] for start in range(0, len(rows), size)]


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
        self.open: tuple[str, Any] = ("", None)  # the search file of the last unit: neighbours share it

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the candidates of a block in a file."""
        options = self.job.settings
        _, descriptors = read_queries(self.queries, unit.payload["rows"])
        if self.open[0] != unit.payload["file"]:
            self.open = ("", None)  # let go of one before the next is read
            self.open = (unit.payload["file"], read_search_file(options["index"], unit.payload["file"]))
        ids = indexes.search(self.open[1], descriptors, options["fetched"], options["nprobe"])
        query, place = np.nonzero(ids >= 0)
        path = attempt.path("candidates.parquet")
        table = pa.table({"query": query.astype(np.int32), "row_id": ids[query, place]}, schema=CANDIDATES)
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
        names, descriptors = read_queries(self.queries, unit.payload["rows"])
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
            place = Place(self.job.inputs["candidates"]["url"])
            block = unit.name.removeprefix("part-")
            for entry in read_entries(place.url):
                if entry.name.split(".")[0].endswith(f"-{block}"):
                    table = pq.read_table(io.BytesIO(place.read(entry.name)))
                    query, row_id = table.column("query").to_numpy(), table.column("row_id").to_numpy()
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
        """Exact scores a query, and the record ids of all candidates; each gallery part is read once."""
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


def shortlist_files(url: str) -> list[FileEntry]:
    """The parts of a run's shortlist; queries in the order of their store."""
    require_manifest(f"{url}/shortlist", "shortlist", "search")
    return sorted(read_entries(f"{url}/shortlist"), key=lambda entry: entry.name)


def queries_in(url: str, name: str) -> int:
    """How many queries a part of the shortlist holds."""
    ids = pq.read_table(io.BytesIO(Place(f"{url}/shortlist").read(name)), columns=["query_id"])
    return len(ids.column("query_id").unique())


def read_shortlist_part(url: str, name: str) -> list[tuple[str, pa.Table]]:
    """(query id, its candidates) of a part of the shortlist."""
    return split_by_query(pq.read_table(io.BytesIO(Place(f"{url}/shortlist").read(name))))


def split_by_query(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """(query id, its rows) of a table whose rows stand query by query."""
    ids = table.column("query_id").to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, int)
    stops = [*starts[1:], len(ids)]
    return [(ids[start], table.slice(start, stop - start)) for start, stop in zip(starts, stops, strict=True)]
