"""The unit workers of `index`: train, fill a shard, merge shards into a search file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.manifests import read_entries
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.storage.place import open_place
from pipelines.stores.gallery import open_stores
from pipelines.stores.store import PartFiles, Store
from rrt_core.indexes import faiss_index as indexes
from schemas.manifest import Counts
from schemas.plan import IndexFilling, IndexMerging, IndexTraining, Job, Unit


class _IndexWorker(UnitWorker):
    """What the three workers share: the stores, an index to start from, reading and writing
    indexes.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.stores = open_stores(job.settings["stores"])
        self.key, self.dimension = job.settings["key"], job.settings["dimension"]

    def parts(self, listed: Sequence[Sequence[int]]) -> Iterator[tuple[Store, PartFiles]]:
        """The parts that a unit names."""
        for store, part in listed:
            yield self.stores[store], self.stores[store].part(part)

    def start(self) -> Any:
        """An empty index, trained where the kind needs it."""
        trained = self.job.inputs.get("trained")
        return (
            self.read(trained["url"], "trained")
            if trained
            else indexes.empty_index(self.key, self.dimension)
        )

    def read(self, url: str, unit: str) -> Any:
        """The index that a unit of another job wrote."""
        import faiss

        name = next(entry.name for entry in read_entries(url) if entry.name.startswith(f"{unit}."))
        return faiss.deserialize_index(np.frombuffer(open_place(url).read(name), np.uint8))

    def write(self, index: Any, unit: Unit, attempt: Attempt) -> None:
        """Write and add the index as the unit's file."""
        import faiss

        path = attempt.path("index.faiss")
        faiss.write_index(index, path)
        attempt.add(path, f"{unit.name}.faiss", index.ntotal)

    def fill(self, index: Any, listed: Sequence[Sequence[int]], attempt: Attempt) -> None:
        """Add all ok rows of parts; a part at a time is in memory."""
        seen = 0
        for store, part in self.parts(listed):
            read = store.read_global(part)
            rows = np.flatnonzero(read.ok)
            indexes.add(index, read.descriptors[rows], store.row_ids(part, rows))
            seen += part.globals.rows
            attempt.tell(seen)


class Train(_IndexWorker):
    """Trains on the rows of the smallest hash(seed, record id)."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Sample, train, write the empty trained index."""
        wanted = unit.of(IndexTraining).rows
        keys: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for number, store in enumerate(self.stores):
            for part in store.parts:
                read = store.read_global(part)
                rows = np.flatnonzero(read.ok)
                keys.append(
                    indexes.sample_order(
                        [read.record_ids[row] for row in rows], self.job.settings["seed"]
                    )
                )
                places.append(
                    np.stack([np.full(len(rows), number), np.full(len(rows), part.number), rows], 1)
                )
        chosen = np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")[:wanted]]
        chosen = chosen[np.lexsort((chosen[:, 2], chosen[:, 1], chosen[:, 0]))]
        sample = np.zeros((len(chosen), self.dimension), np.float32)
        for number, part in np.unique(chosen[:, :2], axis=0):
            mine = np.flatnonzero((chosen[:, 0] == number) & (chosen[:, 1] == part))
            read = self.stores[number].read_global(self.stores[number].part(part))
            sample[mine] = read.descriptors[chosen[mine, 2]]
        index = self.start()
        indexes.train(index, sample)
        self.write(index, unit, attempt)
        return Counts(unit.inputs, unit.inputs)


class Fill(_IndexWorker):
    """Adds the parts of a shard to the trained index."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Fill and write one shard."""
        index = self.start()
        self.fill(index, unit.of(IndexFilling).parts, attempt)
        self.write(index, unit, attempt)
        return Counts(
            unit.inputs, index.ntotal, unit.inputs - index.ntotal
        )  # failed rows are not indexed


class Merge(_IndexWorker):
    """Makes a search file: merged from shards, or filled at once where there is only one."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write one search file."""
        work, shards = unit.of(IndexMerging), self.job.inputs.get("shards")
        if shards:
            first, *others = (f"shard-{number:04}" for number in work.shards)
            index = self.read(shards["url"], first)
            for name in others:
                indexes.merge(index, self.read(shards["url"], name))
        else:
            index = self.start()
            self.fill(index, work.parts, attempt)
        self.write(index, unit, attempt)
        return Counts(unit.inputs, index.ntotal, unit.inputs - index.ntotal)
