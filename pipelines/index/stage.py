"""index: globals of stores -> a trained index, shards, and the few files that `search` opens.

Three jobs: `trained/` (left out where the kind needs none), `shards/` (left out where one is
enough) and `search/`. The folder's own manifest is that of `search/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.index.options import Options as Options
from pipelines.index.plan import plan
from pipelines.jobs.manifests import as_input
from schemas.manifest import Manifest
from schemas.plan import IndexFilling, IndexMerging, IndexTraining, Unit


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the index. Raises UserError and JobFailed."""
    planned = plan(options, settings)
    shards, inputs = planned.shards, dict(planned.job.inputs)

    def make(folder: str, worker: str, units: Iterable[Unit], **recipe: Any) -> Manifest:
        job = replace(
            planned.job,
            output=f"{options.out}/{folder}",
            worker=f"index/{worker}",
            recipe={**planned.job.recipe, **recipe},
            inputs=dict(inputs),
            units=tuple(units),
            facts={"kind": folder, **planned.job.facts},
        )
        made = run_job(job, settings)
        inputs[folder] = as_input(job.output, made)  # of the jobs that follow
        return made

    if planned.to_train:
        rows = min(planned.to_train, planned.rows)
        unit = Unit("trained", IndexTraining(rows), rows)
        make("trained", "train", [unit], training_rows=planned.to_train)

    if len(shards) > 1:
        filled = (
            Unit(f"shard-{number:04}", IndexFilling(tuple(group)), count)
            for number, (group, count) in enumerate(shards)
        )
        make("shards", "fill", filled, rows_per_shard=options.rows_per_shard)

    merged = []
    for number, (members, count) in enumerate(planned.files):
        parts = tuple(part for member in members for part in shards[member][0])
        merged.append(Unit(f"search-{number:03}", IndexMerging(parts, tuple(members)), count))
    return make("search", "merge", merged, files=len(merged))
