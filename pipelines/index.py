"""index: globals of one or more stores -> a trained index, shards, and the few files that `search` opens.

Three jobs: `trained/` (left out where the kind needs none), `shards/` (left out where one is enough) and
`search/`. The folder's own manifest is that of `search/`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.commit import Attempt, Job, Unit, UnitWorker
from pipelines.driver import RunSettings, run_job
from pipelines.options import option
from pipelines.outputs import as_input, read_entries
from pipelines.storage import Place
from pipelines.stores import PartFiles, Store, open_stores
from rrt_core import index as indexes
from schemas.errors import UserError
from schemas.manifest import Counts, Manifest

STAGE = "index"


@dataclass(frozen=True)
class Options:
    """Options of `index`."""

    stores: tuple[str, ...] = option("stores of 'extract' that make the gallery, comma-separated")
    out: str = option("the index to make: a folder (path or URL)")
    key: str = option("faiss factory key (Flat, IVF4096,PQ64x8 ...); auto: exact up to 100,000 images", "auto")
    seed: int = option("seed of the training sample", 0)
    training_rows: int = option("images to train on; 0 chooses by the key", 0)
    rows_per_shard: int = option("images a unit of adding", 131_072)
    max_memory: int = option("bytes that one search file may take in memory", 8_000_000_000)


def run(options: Options, settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the index. Raises UserError and driver.JobFailed."""
    stores = _open(options.stores)
    dimension = stores[0].dimension
    rows = sum(store.manifest.counts.succeeded for store in stores)
    if not rows:
        raise UserError(f"{', '.join(options.stores)}: no image was described, so that there is nothing to index")
    key = indexes.choose_key(rows, dimension) if options.key == "auto" else options.key
    recipe = {"key": key, "seed": options.seed, "dimension": dimension, "threads": settings.threads_per_worker}
    described = [{**store.as_input, "base": store.base} for store in stores]
    settings_json = {**asdict(options), "stores": described, "dimension": dimension, "key": key}
    inputs = {f"store-{number}": store.as_input for number, store in enumerate(stores)}

    def job(folder: str, worker: str, units: Sequence[Unit], more: dict[str, Any], extra: dict[str, Any]) -> Job:
        return Job(
            stage=STAGE,
            output=f"{options.out}/{folder}",
            worker=f"index/{worker.lower()}",
            recipe={**recipe, **more},
            inputs={**inputs, **extra},
            units=tuple(units),
            settings=settings_json,
            facts={"kind": folder, "key": key, "dimension": dimension, "rows": rows, "stores": described},
            noun="images",
        )

    chain: dict[str, Any] = {}
    if indexes.needs_training(key, dimension):
        wanted = options.training_rows or indexes.training_rows(key, dimension)
        unit = Unit("trained", {"rows": min(wanted, rows)}, min(wanted, rows))
        trained = run_job(job("trained", "Train", [unit], {"training_rows": wanted}, {}), settings)
        chain["trained"] = as_input(f"{options.out}/trained", trained)
    shards = _groups(stores, options.rows_per_shard)
    if len(shards) > 1:
        units = [
            Unit(f"shard-{number:04}", {"parts": [list(item) for item in group]}, count)
            for number, (group, count) in enumerate(shards)
        ]
        more = {"rows_per_shard": options.rows_per_shard}
        filled = run_job(job("shards", "Fill", units, more, dict(chain)), settings)
        chain["shards"] = as_input(f"{options.out}/shards", filled)
    files = _files(shards, rows, options.max_memory, key, dimension)
    units = [
        Unit(f"search-{number:03}", {"shards": list(members), "parts": _parts_of(shards, members)}, count)
        for number, (members, count) in enumerate(files)
    ]
    return run_job(job("search", "Merge", units, {"files": len(files)}, chain), settings)


def _open(urls: Sequence[str]) -> list[Store]:
    """The stores with their bases, one after the other. Raises UserError where they do not fit together."""
    stores: list[Store] = []
    base = 0
    for url in urls:
        store = Store(url, base)
        if stores and store.extractor != stores[0].extractor:
            raise UserError(
                f"{store.place.url} was described by {store.extractor['name']} with other settings or weights than "
                f"{stores[0].place.url}; describe both alike"
            )
        stores.append(store)
        base += store.span
    if not stores:
        raise UserError("index: --stores is empty")
    return stores


Group = list[tuple[int, int]]  # (number of the store, number of the part)


def _groups(stores: Sequence[Store], rows_per_shard: int) -> list[tuple[Group, int]]:
    """Runs of parts of about `rows_per_shard` rows, with their rows."""
    groups: list[tuple[Group, int]] = []
    for number, store in enumerate(stores):
        for part in store.parts:
            if not groups or groups[-1][1] + part.globals.rows > rows_per_shard:
                groups.append(([], 0))
            group, count = groups[-1]
            groups[-1] = ([*group, (number, part.number)], count + part.globals.rows)
    return groups


def _files(
    shards: Sequence[tuple[Group, int]], rows: int, max_memory: int, key: str, dimension: int
) -> list[tuple[list[int], int]]:
    """Shards put together into as few search files as memory allows."""
    code = indexes.code_bytes(indexes.empty_index(key, dimension))
    files: list[tuple[list[int], int]] = []
    for number, (_, count) in enumerate(shards):
        if not files or (files[-1][1] + count) * (code + 8) > max_memory:
            files.append(([], 0))
        files[-1] = ([*files[-1][0], number], files[-1][1] + count)
    return files


def _parts_of(shards: Sequence[tuple[Group, int]], members: Sequence[int]) -> list[list[int]]:
    return [list(item) for member in members for item in shards[member][0]]


class _IndexWorker(UnitWorker):
    """What the three workers share: the stores, an index to start from, reading and writing indexes."""

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
        return self.read(trained["url"], "trained") if trained else indexes.empty_index(self.key, self.dimension)

    def read(self, url: str, unit: str) -> Any:
        """The index that a unit of another job wrote."""
        import faiss

        name = next(entry.name for entry in read_entries(url) if entry.name.startswith(f"{unit}."))
        return faiss.deserialize_index(np.frombuffer(Place(url).read(name), np.uint8))

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
        wanted = int(unit.payload["rows"])
        keys: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for number, store in enumerate(self.stores):
            for part in store.parts:
                read = store.read_global(part)
                rows = np.flatnonzero(read.ok)
                keys.append(indexes.sample_order([read.record_ids[row] for row in rows], self.job.settings["seed"]))
                places.append(np.stack([np.full(len(rows), number), np.full(len(rows), part.number), rows], 1))
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
        self.fill(index, unit.payload["parts"], attempt)
        self.write(index, unit, attempt)
        return Counts(unit.inputs, index.ntotal, unit.inputs - index.ntotal)  # failed rows are not indexed


class Merge(_IndexWorker):
    """Makes a search file: merged from shards, or filled at once where there is only one."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write one search file."""
        shards = self.job.inputs.get("shards")
        if shards:
            first, *others = (f"shard-{number:04}" for number in unit.payload["shards"])
            index = self.read(shards["url"], first)
            for name in others:
                indexes.merge(index, self.read(shards["url"], name))
        else:
            index = self.start()
            self.fill(index, unit.payload["parts"], attempt)
        self.write(index, unit, attempt)
        return Counts(unit.inputs, index.ntotal, unit.inputs - index.ntotal)


def open_search(url: str) -> tuple[Manifest, list[str]]:
    """The manifest of an index and the names of its search files. Raises UserError."""
    from pipelines.outputs import require_manifest

    manifest = require_manifest(f"{url}/search", "index", "index")
    return manifest, [entry.name for entry in read_entries(f"{url}/search")]


def read_search_file(url: str, name: str) -> Any:
    """A search file in memory."""
    import faiss

    place = Place(f"{url}/search")
    if place.local:
        return faiss.read_index(place.path(name))
    return faiss.deserialize_index(np.frombuffer(io.BytesIO(place.read(name)).getbuffer(), np.uint8))
