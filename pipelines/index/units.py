"""The unit workers of `index`: train, fill a shard, merge shards into a search file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.index.plan import OLD_METRIC
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.manifests import read_entries
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.indexes import read_index
from pipelines.stores.gallery import open_stores
from rrt_core.indexes import faiss_index as indexes
from rrt_core.indexes.kinds import empty_index
from schemas.errors import Damaged
from schemas.manifest import Counts
from schemas.plan import IndexFilling, IndexMerging, IndexTraining, Job, Unit


class _IndexWorker(UnitWorker):
    """What the three workers share: stores, an index to start from, reading and writing it."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.stores = open_stores(stores_of(job.settings["stores"]), job.output)
        self.key, self.dimension = job.settings["key"], job.settings["dimension"]
        self.metric = job.settings.get("metric", OLD_METRIC)

    def start(self) -> Any:
        """An empty index, trained where the kind needs it."""
        if "trained" in self.job.inputs:
            return self.read("trained", "trained")
        return empty_index(self.key, self.dimension, self.metric)

    def read(self, folder: str, unit: str) -> Any:
        """The index that a unit of an earlier job wrote."""
        url = self.job.inputs[folder]["url"]
        name = next(entry.name for entry in read_entries(url) if entry.name.startswith(f"{unit}."))
        return read_index(url, name)

    def write(self, index: Any, unit: Unit, attempt: Attempt, rows: int) -> Counts:
        """Write and add the index as the unit's file; rows that failed are not in it.

        Raises Damaged where it does not hold just as many rows as were put into it.
        """
        import faiss

        if index.ntotal != rows:
            raise Damaged(
                f"index: {unit.name} holds {index.ntotal:,} rows of {rows:,}; make it again with "
                f"--overwrite"
            )

        path = attempt.path("index.faiss")
        faiss.write_index(index, path)
        attempt.add(path, f"{unit.name}.faiss", index.ntotal)
        return Counts(unit.inputs, index.ntotal, unit.inputs - index.ntotal)

    def fill(self, index: Any, listed: Sequence[Sequence[int]], attempt: Attempt) -> int:
        """Add all ok rows of parts, and give their number; a part at a time is in memory."""
        seen, described = 0, 0
        for number, part_number in listed:
            store = self.stores[number]
            part = store.part(part_number)
            read = store.read_global(part)
            rows = np.flatnonzero(read.ok)
            indexes.add(index, read.descriptors[rows], store.row_ids(part, rows))
            seen, described = seen + part.globals.rows, described + len(rows)
            attempt.report(seen)
        return described


class Train(_IndexWorker):
    """Trains on the rows of the smallest hash(seed, record id)."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Sample, train, write the empty trained index."""
        keys, places = [], []  # hashes, and (store, part, row), of each part's described images
        for number, store in enumerate(self.stores):
            for part in store.parts:
                read = store.read_ids(part)
                rows = np.flatnonzero(read.ok)
                ids = [read.record_ids[row] for row in rows]
                keys.append(indexes.sample_order(ids, self.job.settings["seed"]))
                places.append(np.insert(rows[:, None], [0, 0], [number, part.number], axis=1))

        order = np.argsort(np.concatenate(keys), kind="stable")
        chosen = np.concatenate(places)[order[: unit.of(IndexTraining).rows]]
        chosen = chosen[np.lexsort(chosen.T[::-1])]
        sample = np.zeros((len(chosen), self.dimension), np.float32)
        for number, part_number in np.unique(chosen[:, :2], axis=0):
            mine = np.flatnonzero((chosen[:, :2] == (number, part_number)).all(axis=1))
            store = self.stores[number]
            sample[mine] = store.read_global(store.part(part_number)).descriptors[chosen[mine, 2]]

        index = self.start()
        indexes.train(index, sample)
        self.write(index, unit, attempt, 0)
        return Counts(unit.inputs, unit.inputs)


class Fill(_IndexWorker):
    """Adds the parts of a shard to the trained index."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Fill and write one shard."""
        index = self.start()
        rows = self.fill(index, unit.of(IndexFilling).parts, attempt)
        return self.write(index, unit, attempt, rows)


class Merge(_IndexWorker):
    """Makes a search file: merged from shards, or filled at once where there is only one."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write one search file."""
        work = unit.of(IndexMerging)
        if "shards" in self.job.inputs:
            first, *others = (f"shard-{number:04}" for number in work.shards)
            index = self.read("shards", first)
            rows = int(index.ntotal)
            for name in others:
                shard = self.read("shards", name)
                rows += int(shard.ntotal)  # none afterwards
                indexes.merge(index, shard)
        else:
            index = self.start()
            rows = self.fill(index, work.parts, attempt)
        return self.write(index, unit, attempt, rows)
