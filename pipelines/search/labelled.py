"""The jobs that place each labelled image of a ground truth in the whole gallery.

`labelled/scores/` finds and scores the labelled images, by runs of the gallery's parts;
`labelled/counts/` counts, by run and block of queries, the rows that come before each;
`labelled/places/` sums. What an index proposes, and how long lists are, plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.manifests import as_input
from pipelines.results.truth import truth_input
from pipelines.search.options import Options
from pipelines.stores.gallery import ROWS_A_RUN, entries_of, runs_of, store_inputs
from pipelines.stores.store import Store
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.manifest import Manifest
from schemas.plan import Job, LabelledCounts, LabelledPlaces, LabelledScores, Unit


def place_labelled(
    options: Options,
    queries: Store,
    gallery: Sequence[Store],
    settings: RunSettings,
    excluded: dict[str, dict[str, str]],
) -> Manifest | None:
    """Make (or finish, or skip) the labelled places; None where the ground truth knows no query.

    excluded: the job that found what lists leave out, as an input; rows that are a query's own
    image have no place, and count for none.

    Raises UserError and JobFailed.
    """
    known = len(known_queries(options.ground_truth, queries))
    if not known:
        return None

    stores = entries_of(gallery)
    runs = runs_of(gallery)
    blocks = range(-(-known // options.queries_per_block))
    job = Job(
        stage="search",
        output="",
        worker="",
        recipe={"bases": [store.base for store in gallery], "rows_a_run": ROWS_A_RUN},
        inputs={
            **store_inputs(gallery),
            "queries": queries.as_input,
            "ground_truth": truth_input(options.ground_truth),
            **excluded,
        },
        units=(),
        settings={**asdict(options), "stores": stores},
        facts={"stores": stores},
        noun="images",
    )

    def make(before: Job, name: str, units: list[Unit]) -> Manifest:
        made = replace(
            before,
            output=f"{options.out}/labelled/{name}",
            worker=f"search/labelled-{name}",
            units=tuple(units),
            facts={**job.facts, "kind": f"labelled {name}"},
        )
        return run_job(made, settings)

    scored = [
        Unit(f"run-{number:05}", LabelledScores(parts), rows)
        for number, (parts, rows) in enumerate(runs)
    ]
    made = make(job, "scores", scored)
    job = replace(
        job,
        recipe={**job.recipe, "queries_per_block": options.queries_per_block},
        inputs={**job.inputs, "scores": as_input(f"{options.out}/labelled/scores", made)},
    )
    counted = [
        Unit(f"run-{number:05}-{block:05}", LabelledCounts(parts, block), rows)
        for number, (parts, rows) in enumerate(runs)
        for block in blocks
    ]
    made = make(job, "counts", counted)
    job = replace(
        job,
        inputs={**job.inputs, "counts": as_input(f"{options.out}/labelled/counts", made)},
        noun="queries",
    )
    placed = [
        Unit(
            f"part-{block:05}",
            LabelledPlaces(block),
            min(options.queries_per_block, known - block * options.queries_per_block),
        )
        for block in blocks
    ]
    return make(job, "places", placed)


def known_queries(truth: str, queries: Store) -> list[tuple[str, int]]:
    """Record and row ids of the described queries that a ground truth knows, in the store's order.

    Raises UserError.
    """
    described = dict(queries.described_rows())
    known = load_ground_truth(truth).query_positions(described)
    return [(name, row) for name, row in described.items() if name in known]
