"""What `run` would take: extraction of gallery and queries is probed; of later stages it is what
counts say, and the time of a pair among the probe's own images.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import replace
from pathlib import Path

from pipelines.engines.settings import RunSettings
from pipelines.estimate.model import Estimate
from pipelines.estimate.probe import local
from pipelines.extract import estimate as estimate_extract
from pipelines.extract import options as extract_options
from pipelines.index import estimate as estimate_index
from pipelines.index import stage as index
from pipelines.index.plan import key_of
from pipelines.rerank import estimate as estimate_rerank
from pipelines.run import config as run_config
from pipelines.run import stage as run
from pipelines.search import stage as search
from pipelines.storage.place import open_place
from pipelines.stores.store import Store
from rrt_core.extractors import create
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.manifest import MANIFEST_NAME


def estimate(
    folder: Path, options: run.Options, settings: RunSettings, begun: float
) -> list[Estimate]:
    """The estimates of a configuration's stages, which began at `begun` by time.monotonic().

    Raises UserError.
    """
    config = run_config.read_config(options.config, options.set)
    stages = run_config.stages_of(config, options.config)

    extracted = []
    for name, extract in (("gallery", stages.gallery), ("queries", stages.queries)):
        if not isinstance(extract, extract_options.Options):
            raise UserError(f"{options.config}: a run that imports its stores has no estimate")
        (folder / name).mkdir()
        extracted.append(estimate_extract.estimate(folder / name, extract, settings, begun))
        begun = time.monotonic()

    gallery, queries = (one.inputs for one in extracted)
    probed = folder / ("queries" if stages.lazy else "gallery") / "probe"
    reranking = _rerank(stages, gallery, queries, probed, folder, settings)
    if stages.lazy:
        reranking.notes.append(
            "local descriptors of what is reranked are made after the search, and not counted here"
        )
    return [*extracted, _index(stages, gallery), reranking]


def _index(stages: run_config.Stages, rows: int) -> Estimate:
    gallery = stages.gallery
    assert isinstance(gallery, extract_options.Options)
    dimension = create(gallery.extractor, **gallery.extractor_option).global_dim
    key = key_of(stages.index, rows, dimension)
    sizes = estimate_index.sizes_of(key, dimension)

    made = Estimate("index", stages.index.out, "images", rows, f"as above, key {key}")
    made.disk = {"search files": sizes.total(1, rows)}
    if rows > stages.index.rows_per_shard:
        made.disk["shards"] = sizes.total(-(-rows // stages.index.rows_per_shard), rows)
    made.notes = ["once the store is finished, 'index --dry-run' estimates the time"]
    return made


def _rerank(
    stages: run_config.Stages,
    gallery: int,
    queries: int,
    probed: Path,
    folder: Path,
    settings: RunSettings,
) -> Estimate:
    """Pairs at most, by the time of a pair among images of the extraction's probe."""
    size = stages.rerank.shortlist
    pairs, known = queries * min(size, gallery), "counted"
    if stages.rerank.ground_truth:
        truth = load_ground_truth(stages.rerank.ground_truth)
        removed = sum(len(query.easy) + len(query.junk) for query in truth.queries)
        pairs = min(queries * gallery, queries * size + removed)
        known = "at most: easy and junk images drop out"

    made = Estimate("rerank", stages.rerank.out, "pairs", pairs, known)
    if not open_place(str(probed)).exists(MANIFEST_NAME):
        made.notes = [
            (
                "the store is finished, so that no pair was probed; after 'search', 'rerank "
                "--dry-run' estimates it"
            )
        ]
        return made

    store, out, place = str(probed), str(folder / "run"), str(folder / "index")
    searching = search.Options(queries=store, index=place, out=out, shortlist=size)
    with contextlib.redirect_stderr(io.StringIO()):
        index.run(index.Options(stores=(store,), out=place, key="Flat"), local(settings, 1))
        search.run(searching, local(settings, 1))

    options = replace(stages.rerank, queries=store, out=out, ground_truth="")
    (folder / "pairs").mkdir()
    small = estimate_rerank.estimate(folder / "pairs", options, settings, time.monotonic())
    scored = small.probe
    assert scored is not None  # its shortlist is new, so that no pair is scored yet

    def seconds(workers: int) -> float:
        work = pairs * scored.seconds_an_input / min(workers, max(1, queries))
        return scored.start_seconds + work

    made.takes(settings, seconds)
    made.probe, made.workers = scored, settings.worker_count
    made.memory_worker, made.memory_total = small.memory_worker, small.memory_total
    images = Store(store).manifest.counts.succeeded
    made.notes = [f"the probe paired the {images} images of the extraction's probe"]
    return made
