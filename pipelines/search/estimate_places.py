"""What the places of labelled images add to a search: a part is read and counted here, once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.estimate.model import Estimate
from pipelines.jobs.manifests import read_manifest
from pipelines.results.labelled import FOLDER
from pipelines.search.labelled import known_queries
from pipelines.search.options import Options
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery, runs_of
from pipelines.stores.store import Store
from rrt_core.indexes.exact import rows_before, score_matrix
from schemas.ground_truth.ground_truth import LISTS, load_ground_truth
from schemas.ground_truth.name_matching import Names

A_PLACE, A_COUNT = 40, 6  # bytes on disk of a labelled image, and of its count in a run of parts


def add_places(
    made: Estimate, options: Options, settings: RunSettings, gallery: Sequence[Store]
) -> None:
    """Add time and disk of the labelled places to the estimate of a search. Raises UserError."""
    if not settings.overwrite and read_manifest(open_place(f"{options.out}/{FOLDER}")) is not None:
        return

    queries = Store(options.queries)
    known = known_queries(options.ground_truth, queries)
    if not known:
        return

    truth = load_ground_truth(options.ground_truth)
    labelled = [sum(len(getattr(one, label)) for label in LISTS) for one in truth.queries]
    block = min(len(known), options.queries_per_block)
    store, part = max(
        ((store, part) for store in gallery for part in store.parts),
        key=lambda one: one[1].globals.rows,
    )
    row_ids = np.array([row_id for _, row_id in known[:block]], np.int64)
    descriptors = Gallery([queries]).read_descriptors(row_ids)

    begun, names = time.monotonic(), Names(truth.gallery)
    read = store.read_ids(part)
    for record_id in read.record_ids:
        names.possible(record_id)
    found = time.monotonic()
    globals_ = store.read_global(part)
    ids = store.row_ids(part, np.arange(len(globals_.record_ids)))
    marks = max(1, round(float(np.mean(labelled))))
    for scores in score_matrix(descriptors, globals_.descriptors):
        chosen = np.resize(scores, marks)
        keys = [(b"", 0)] * marks
        rows_before(scores, globals_.record_ids, ids, chosen, keys)
    counted = time.monotonic()

    parts = sum(one.globals.rows for each in gallery for one in each.parts) / part.globals.rows
    seconds = parts * (found - begun + (counted - found) * len(known) / block)
    made.seconds += seconds / max(1, settings.worker_count)
    made.elsewhere = {count: was + seconds / count for count, was in made.elsewhere.items()}
    images = round(len(known) * float(np.mean(labelled)))
    made.disk["labelled places"] = images * (A_PLACE + A_COUNT * len(runs_of(gallery)))
    made.notes.append(
        f"in it {seconds / max(1, settings.worker_count):.1f} s for the places of {images:,} "
        f"labelled images in the whole gallery"
    )
