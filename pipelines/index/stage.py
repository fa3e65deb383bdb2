"""index: globals of one or more stores -> a trained index, shards, and the few files that `search`
opens.

Three jobs: `trained/` (left out where the kind needs none), `shards/` (left out where one is
    enough) and
`search/`. The folder's own manifest is that of `search/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.index.options import Options as Options
from pipelines.index.plan import _files, _groups, _parts_of
from pipelines.jobs.manifests import as_input
from pipelines.stores.gallery import _open
from rrt_core.indexes import faiss_index as indexes
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.plan import IndexFilling, IndexMerging, IndexTraining, Job, Unit

STAGE = "index"


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the index. Raises UserError and JobFailed."""
    stores = _open(options.stores)
    dimension = stores[0].dimension
    rows = sum(store.manifest.counts.succeeded for store in stores)
    if not rows:
        raise UserError(
            f"{', '.join(options.stores)}: no image was described, so that there is nothing to "
            f"index"
        )
    key = indexes.choose_key(rows, dimension) if options.key == "auto" else options.key
    recipe = {
        "key": key,
        "seed": options.seed,
        "dimension": dimension,
        "threads": settings.threads_per_worker,
    }
    described = [{**store.as_input, "base": store.base} for store in stores]
    settings_json = {**asdict(options), "stores": described, "dimension": dimension, "key": key}
    inputs = {f"store-{number}": store.as_input for number, store in enumerate(stores)}

    def job(
        folder: str, worker: str, units: Sequence[Unit], more: dict[str, Any], extra: dict[str, Any]
    ) -> Job:
        return Job(
            stage=STAGE,
            output=f"{options.out}/{folder}",
            worker=f"index/{worker.lower()}",
            recipe={**recipe, **more},
            inputs={**inputs, **extra},
            units=tuple(units),
            settings=settings_json,
            facts={
                "kind": folder,
                "key": key,
                "dimension": dimension,
                "rows": rows,
                "stores": described,
            },
            noun="images",
        )

    chain: dict[str, Any] = {}
    if indexes.needs_training(key, dimension):
        wanted = options.training_rows or indexes.training_rows(key, dimension)
        unit = Unit("trained", IndexTraining(min(wanted, rows)), min(wanted, rows))
        trained = run_job(job("trained", "Train", [unit], {"training_rows": wanted}, {}), settings)
        chain["trained"] = as_input(f"{options.out}/trained", trained)
    shards = _groups(stores, options.rows_per_shard)
    if len(shards) > 1:
        units = [
            Unit(f"shard-{number:04}", IndexFilling(tuple(group)), count)
            for number, (group, count) in enumerate(shards)
        ]
        more = {"rows_per_shard": options.rows_per_shard}
        filled = run_job(job("shards", "Fill", units, more, dict(chain)), settings)
        chain["shards"] = as_input(f"{options.out}/shards", filled)
    files = _files(shards, rows, options.max_memory, key, dimension)
    units = [
        Unit(
            f"search-{number:03}",
            IndexMerging(tuple(_parts_of(shards, members)), tuple(members)),
            count,
        )
        for number, (members, count) in enumerate(files)
    ]
    return run_job(job("search", "Merge", units, {"files": len(files)}, chain), settings)
