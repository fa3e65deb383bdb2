"""Which parts go into which shard, and which shards into which search file."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.stores.store import Store
from rrt_core.indexes import faiss_index as indexes

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


def _parts_of(shards: Sequence[tuple[Group, int]], members: Sequence[int]) -> Group:
    return [item for member in members for item in shards[member][0]]
