"""The unit workers of labelled places: score the labelled images, count what comes before, sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.manifests import read_entries
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.excluded import NOTHING, Excluded, read_excluded
from pipelines.results.truth import Truth
from pipelines.search.labelled import known_queries
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from pipelines.stores.gallery import Gallery, open_stores, parts_of
from pipelines.stores.store import PartFiles, Store
from rrt_core.indexes.exact import rows_before, score_matrix
from rrt_core.indexes.faiss_index import exact_scores
from schemas.errors import Damaged
from schemas.ground_truth.ground_truth import LISTS, load_ground_truth
from schemas.ground_truth.name_matching import Names
from schemas.manifest import Counts
from schemas.plan import Job, LabelledCounts, LabelledPlaces, LabelledScores, Unit
from schemas.shortlist import COUNTED, NAMED, PLACES, SCORED

QUERIES_AT_ONCE = 256  # descriptors in memory while single pairs are scored


class Image(NamedTuple):
    """A labelled image of a query; its position is that in the ground truth's gallery."""

    query: int  # place among the queries of the ground truth
    row_id: int
    record_id: str
    position: int
    label: str
    score: float


class _Labelled(UnitWorker):
    """What the workers share: stores, and the queries that the ground truth knows."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.stores = open_stores(stores_of(job.settings["stores"]), job.output)
        queries = Store(job.settings["queries"])
        self.queries = Gallery([queries])
        self.known = known_queries(job.settings["ground_truth"], queries)

    def described(self, numbers: Sequence[int]) -> np.ndarray:
        """Descriptors float32 [n, D] of known queries."""
        row_ids = [self.known[number][1] for number in numbers]
        return self.queries.read_descriptors(np.array(row_ids, np.int64))

    def block(self, number: int) -> range:
        """Places of the queries of a block."""
        size = int(self.job.settings["queries_per_block"])
        return range(number * size, min(len(self.known), (number + 1) * size))

    def read(self, job: str, stem: str, schema: pa.Schema, end: str = "") -> pa.Table:
        """The tables that an earlier job's units wrote under names that begin and end so, as one,
        in the order of the runs.
        """
        place = open_place(self.job.inputs[job]["url"])
        names = sorted(entry.name for entry in read_entries(place.url))
        named = [
            name for name in names if name.startswith(stem) and name.partition(".")[0].endswith(end)
        ]
        return pa.concat_tables(read_table(place, name, schema=schema) for name in named)


class ScoreLabelled(_Labelled):
    """Finds the rows that names of the ground truth may mean, and scores them for the queries that
    they may be labelled for.
    """

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write both for a run of parts."""
        truth = load_ground_truth(self.job.settings["ground_truth"])
        names, positions = Names(truth.gallery), truth.query_positions(dict(self.known))
        of_image: dict[int, list[int]] = {}  # position in the gallery -> queries
        for number, (name, _) in enumerate(self.known):
            query = truth.queries[positions[name]]
            for label in LISTS:
                for position in getattr(query, label):
                    of_image.setdefault(position, []).append(number)

        seen = ok_rows = 0
        named: list[tuple[str, int]] = []
        scored: list[tuple[int, int, float]] = []
        for store, part in parts_of(self.stores, unit.of(LabelledScores).scored):
            read, wanted = store.read_ids(part), dict[int, list[int]]()  # query -> rows
            for row in np.flatnonzero(read.ok).tolist():
                possible = names.possible(read.record_ids[row])
                if possible:
                    named.append((read.record_ids[row], int(store.row_ids(part, np.array(row)))))
                for number in sorted({one for each in possible for one in of_image.get(each, ())}):
                    wanted.setdefault(number, []).append(row)

            scored += self._scores(store, part, wanted)
            seen, ok_rows = seen + part.globals.rows, ok_rows + int(read.ok.sum())
            attempt.report(seen)

        for stem, schema, rows in (("named", NAMED, named), ("scored", SCORED, scored)):
            listed = zip(*rows, strict=True) if rows else [()] * len(schema)
            columns = map(pa.array, listed, schema.types)
            table = pa.table(list(columns), schema=schema)
            attempt.add_table(table, f"{stem}-{unit.name}.parquet")
        return Counts(unit.inputs, ok_rows, unit.inputs - ok_rows)

    def _scores(
        self, store: Store, part: PartFiles, wanted: dict[int, list[int]]
    ) -> Iterator[tuple[int, int, float]]:
        """(query, row id, score) of a part's rows that are wanted for a query."""
        if not wanted:
            return
        descriptors = store.read_global(part).descriptors
        listed = sorted(wanted)
        for first in range(0, len(listed), QUERIES_AT_ONCE):
            numbers = listed[first : first + QUERIES_AT_ONCE]
            for number, query in zip(numbers, self.described(numbers), strict=True):
                rows = np.array(wanted[number])
                scores = exact_scores(query, descriptors[rows]).tolist()
                row_ids = store.row_ids(part, rows).tolist()
                yield from ((number, *each) for each in zip(row_ids, scores, strict=True))


class _Placing(_Labelled):
    """What the last two jobs share: a block's labelled images, as all runs together tell them."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        named = self.read("scores", "named-", NAMED)
        record_ids = named.column("record_id").to_pylist()
        self.record_ids = dict(zip(named.column("row_id").to_pylist(), record_ids, strict=True))
        names = [name for name, _ in self.known]
        self.truth = Truth(job.settings["ground_truth"], names, self.record_ids.values())
        self.scored = self.read("scores", "scored-", SCORED)
        if not {*self.scored.column("row_id").to_pylist()} <= self.record_ids.keys():
            raise Damaged(
                f"{job.inputs['scores']['url']} scores rows that it does not name; search again "
                f"with --overwrite"
            )
        self.excluded = read_excluded(job.inputs)

    def images(self, block: range) -> list[Image]:
        """The labelled images of the queries of a block, by query, then row id."""
        query = self.scored.column("query").to_numpy()
        mine = np.flatnonzero((query >= block.start) & (query < block.stop))
        rows = self.scored.take(mine).to_pylist()
        rows = [row for row in rows if not self._own(row["query"], row["row_id"])]
        rows.sort(key=lambda row: (row["query"], row["row_id"]))

        images, labels, last = list[Image](), dict[int, str](), -1
        for row in rows:
            if row["query"] != last:
                last, found = row["query"], self.truth.query(self.known[row["query"]][0])
                assert found is not None  # known queries are those of the truth
                labels = {place: label for label in LISTS for place in getattr(found, label)}
            record_id = self.record_ids[row["row_id"]]
            position = int(self.truth.positions([record_id])[0])
            if position in labels:
                label = labels[position]
                images.append(Image(last, row["row_id"], record_id, position, label, row["score"]))
        return images

    def _own(self, query: int, row_id: int) -> bool:
        """Whether a row is the query's own image, which its list leaves out."""
        return row_id in self.excluded.get(self.known[query][0], NOTHING).row_ids


@dataclass(frozen=True)
class _Marks:
    """The labelled images of one query, as `rows_before` takes them; `places` in the block, and
    the rows that its list leaves out.
    """

    excluded: Excluded
    places: np.ndarray
    scores: np.ndarray
    keys: list[tuple[bytes, int]]


class CountLabelled(_Placing):
    """Counts a run's rows that come before each labelled image of a block of queries."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the counts; a part is in memory at a time."""
        work = unit.of(LabelledCounts)
        images = self.images(self.block(work.block))
        query = np.array([image.query for image in images], np.int32)
        asked = np.unique(query)
        marks = []
        for number in asked:
            places = np.flatnonzero(query == number)
            own = [images[place] for place in places]
            keys = [(image.record_id.encode(), image.row_id) for image in own]
            excluded = self.excluded.get(self.known[number][0], NOTHING)
            scores = np.array([one.score for one in own], np.float32)
            marks.append(_Marks(excluded, places, scores, keys))
        descriptors = self.described(asked.tolist())

        before, seen, ok_rows = np.zeros(len(images), np.int64), 0, 0
        for store, part in parts_of(self.stores, work.counted):
            read = store.read_global(part)
            rows = np.flatnonzero(read.ok)
            record_ids = [read.record_ids[row] for row in rows]
            scores = score_matrix(descriptors, read.descriptors[rows])
            row_ids = store.row_ids(part, rows)
            for mine, each in zip(marks, scores, strict=True):
                counted = rows_before(each, record_ids, row_ids, mine.scores, mine.keys)
                out = np.flatnonzero(np.isin(row_ids, mine.excluded.row_ids))
                if len(out):
                    ids = [record_ids[row] for row in out]
                    counted -= rows_before(each[out], ids, row_ids[out], mine.scores, mine.keys)
                before[mine.places] += counted
            seen, ok_rows = seen + part.globals.rows, ok_rows + len(rows)
            attempt.report(seen)

        row_id = np.array([image.row_id for image in images], np.int64)
        table = pa.table([query, row_id, before], schema=COUNTED)
        attempt.add_table(table, f"counted-{unit.name}.parquet")
        return Counts(unit.inputs, ok_rows, unit.inputs - ok_rows)


class PlaceLabelled(_Placing):
    """Sums the counts of all runs for a block of queries."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the places. Raises Damaged where counts are not those of the labelled images."""
        number = unit.of(LabelledPlaces).placed
        images = self.images(self.block(number))
        place = np.zeros(len(images), np.int64)
        counted = self.read("counts", "counted-", COUNTED, f"-{number:05}")
        listed = [(image.query, image.row_id) for image in images]
        for first in range(0, len(counted), max(1, len(images))):
            run = counted.slice(first, len(images))
            pairs = zip(*(run.column(one).to_pylist() for one in ("query", "row_id")), strict=True)
            if list(pairs) != listed:
                raise Damaged(
                    f"{self.job.inputs['counts']['url']} counts for other images than "
                    f"{self.job.inputs['scores']['url']} has; search again with --overwrite"
                )
            place += run.column("before").to_numpy()

        order = sorted(range(len(images)), key=lambda one: (images[one].query, place[one]))
        columns = {
            "query_id": [self.known[images[one].query][0] for one in order],
            **{
                name: [getattr(images[one], name) for one in order]
                for name in ("record_id", "row_id", "position", "label", "score")
            },
            "place": place[order],
        }
        attempt.add_table(pa.table(columns, schema=PLACES), f"{unit.name}.parquet")
        return Counts(unit.inputs, unit.inputs)
