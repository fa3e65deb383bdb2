"""What is indexed: the stores, and which parts go into which shard and search file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.engines.settings import RunSettings
from pipelines.index.options import Options
from pipelines.jobs.existing_output import recipe_at
from pipelines.stores.gallery import entries_of, open_gallery, store_inputs
from pipelines.stores.store import Store
from rrt_core.indexes import kinds
from schemas.errors import UserError
from schemas.plan import Job

STAGE = "index"
OLD_METRIC = "inner_product"  # of every kind once; of an index that names none
Group = list[tuple[int, int]]  # (number of the store, number of the part)


@dataclass(frozen=True)
class Plan:
    """What is indexed, and how.

    key       the kind of index, as faiss names it
    job       what the three jobs share; without output, worker and units
    rows      that were described
    to_train  rows that the index is trained on; 0 where its kind needs none
    shards    the parts of each, and their rows
    files     the shards of each search file, and their rows
    """

    key: str
    job: Job
    stores: list[Store]
    rows: int
    to_train: int
    shards: list[tuple[Group, int]]
    files: list[tuple[list[int], int]]


def plan(options: Options, settings: RunSettings) -> Plan:
    """Open the stores and choose the kind of index. Raises UserError."""
    stores = open_gallery(options.stores)
    dimension, rows = stores[0].dimension, sum(store.manifest.counts.succeeded for store in stores)
    if not rows:
        raise UserError(
            f"{', '.join(options.stores)}: no image was described, so that there is nothing to "
            f"index"
        )

    key = key_of(options, rows, dimension)
    entries = entries_of(stores)
    chosen: dict[str, Any] = {"key": key, "dimension": dimension}
    metric = kinds.metric_of(key, dimension)
    if metric != OLD_METRIC and not _keeps_old_metric(options.out, key, settings.overwrite):
        chosen["metric"] = metric
    job = Job(
        stage=STAGE,
        output="",
        worker="",
        recipe={
            **chosen,
            "seed": options.seed,
            "threads": settings.threads_per_worker,
        },
        inputs=store_inputs(stores),
        units=(),
        settings={**asdict(options), "stores": entries, **chosen},
        facts={**chosen, "rows": rows, "stores": entries},
        noun="images",
    )
    to_train = 0
    if kinds.needs_training(key, dimension):
        to_train = options.training_rows or kinds.training_rows(key, dimension)
        least, given = kinds.least_rows(key, dimension), min(to_train, rows)
        if given < least:
            raise UserError(
                f"index key {key!r} needs {least:,} images or more to be trained, and would be "
                f"trained on {given:,}; choose one of fewer lists or smaller codes, or Flat"
            )

    shards = _shards(stores, options.rows_per_shard)
    files = _files(shards, options.max_memory, key, dimension)
    return Plan(key, job, stores, rows, to_train, shards, files)


def key_of(options: Options, rows: int, dimension: int) -> str:
    """The kind of index for a gallery of so many rows, as faiss names it. Raises UserError."""
    if not options.key.isascii():
        raise UserError(f"index: --key is {options.key!r}; it must be a key that faiss knows")
    return kinds.choose_key(rows, dimension) if options.key == "auto" else options.key


def _keeps_old_metric(out: str, key: str, overwrite: bool) -> bool:
    """Whether the folder holds an index of that kind, finished or not, of before metrics were
    chosen: it stays as it is, and is continued as it was begun.
    """
    for folder in () if overwrite else ("trained", "shards", "search"):
        if recipe := recipe_at(f"{out}/{folder}"):
            return recipe.get("key") == key and "metric" not in recipe
    return False


def _shards(stores: Sequence[Store], rows_per_shard: int) -> list[tuple[Group, int]]:
    """Runs of parts of about `rows_per_shard` rows, with their rows."""
    shards: list[tuple[Group, int]] = []
    for number, store in enumerate(stores):
        for part in store.parts:
            if not shards or shards[-1][1] + part.globals.rows > rows_per_shard:
                shards.append(([], 0))
            group, count = shards[-1]
            shards[-1] = ([*group, (number, part.number)], count + part.globals.rows)
    return shards


def _files(
    shards: Sequence[tuple[Group, int]], max_memory: int, key: str, dimension: int
) -> list[tuple[list[int], int]]:
    """Shards put together into as few search files as memory allows."""
    code = kinds.code_bytes(kinds.empty_index(key, dimension))
    files: list[tuple[list[int], int]] = []
    for number, (_, count) in enumerate(shards):
        if not files or (files[-1][1] + count) * (code + 8) > max_memory:
            files.append(([], 0))
        files[-1] = ([*files[-1][0], number], files[-1][1] + count)
    return files
