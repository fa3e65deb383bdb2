"""The nearest neighbours that `train` mines in: computed exactly in blocks, or read from a
shortlist.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.jobs.manifests import require_manifest
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.train.records import Records, save_rows
from rrt_core.training.mining import NONE, nearest
from rrt_core.training.processes import Processes
from schemas.errors import UserError
from schemas.manifest import Manifest

QUERIES = 1_024  # of a block: with 8,192 of the pool, some 300 MB at once


def exact_neighbours(
    records: Records,
    descriptors: np.ndarray,
    count: int,
    cache: Path,
    processes: Processes,
    progress: Callable[[int], None],
) -> np.ndarray:
    """The nearest `count` records of each record on its own side of the split, int32 [n, count]
    (NONE at the end).

    Blocks are files in `cache`, shared out among the processes; a rerun makes the missing ones
    only.

    Args:
        descriptors: [n, D], as copy_globals made them.
        progress: called with the number of records done.
    """
    pools = [np.flatnonzero(records.held_out == side) for side in (False, True)]
    blocks = [
        (pool, pool[first : first + QUERIES])
        for pool in pools
        for first in range(0, len(pool), QUERIES)
    ]
    paths = [cache / f"block-{number:05}.npy" for number in range(len(blocks))]
    done = 0
    for number, (pool, queries) in enumerate(blocks):
        done += len(queries)
        if number % processes.world == processes.rank and not paths[number].exists():
            save_rows(
                paths[number], nearest(descriptors, queries, pool, count, device=processes.device)
            )
        progress(done)
    processes.wait()
    neighbours = np.full((len(records), count), NONE, np.int32)
    for path, (_, queries) in zip(paths, blocks, strict=True):
        neighbours[queries] = np.load(path)
    return neighbours


def require_shortlist(run: str, records: Records, count: int) -> Manifest:
    """The manifest of a run's shortlist.

    Raises UserError where it is not of the stores against themselves.
    """
    manifest = require_manifest(f"{run}/shortlist", "shortlist", "search")
    ours = [store.manifest.content for store in records.stores]
    if [entry["content"] for entry in manifest.facts["stores"]] != ours:
        raise UserError(
            f"{run}/shortlist is of an index of other stores; index those of --stores, in their "
            f"order"
        )
    if manifest.inputs["queries"]["content"] not in ours:
        raise UserError(
            f"{run}/shortlist has queries of another store; search with --queries one of --stores"
        )
    rows = int(manifest.facts["gallery_rows"])
    if int(manifest.facts["k"]) < min(count + 1, rows):
        raise UserError(
            f"{run}/shortlist keeps {manifest.facts['k']} a query, but {count} neighbours beside "
            f"the record itself are"
            f" asked for; search again with --k {count + 1} or more"
        )
    return manifest


def shortlist_neighbours(records: Records, run: str, count: int) -> np.ndarray:
    """The first `count` of each record's shortlist, itself and records of the split's other side
    left out.

    int32 [n, count], NONE at the end: of a record that was no query all are. A query itself is
    known by its id.
    """
    neighbours = np.full((len(records), count), NONE, np.int32)
    place = {record_id: row for row, record_id in enumerate(records.record_ids)}
    for entry in shortlist_files(run):
        for query, table in read_shortlist_part(run, entry.name):
            own = place.get(query)
            if own is None:
                continue
            row_ids = table.column("row_id").to_numpy()
            rows = np.minimum(np.searchsorted(records.row_ids, row_ids), len(records) - 1)
            kept = (records.row_ids[rows] == row_ids) & (rows != own)
            kept &= records.held_out[rows] == records.held_out[own]
            found = rows[kept][:count]
            neighbours[own, : len(found)] = found
    return neighbours
