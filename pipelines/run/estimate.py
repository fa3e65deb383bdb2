"""What `run` would take: extraction probed for gallery and queries; of later stages what counts and
a probe tell.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

from pipelines.engines.settings import RunSettings
from pipelines.estimate.model import Estimate, elsewhere
from pipelines.estimate.probe import probe_folder
from pipelines.extract import estimate as estimate_extract
from pipelines.index import stage as index
from pipelines.index.estimate import key_of, shape_of
from pipelines.rerank import estimate as estimate_rerank
from pipelines.run import config as run_config
from pipelines.run import stage as run
from pipelines.search import stage as search
from pipelines.stores.store import Store
from rrt_core.extractors import create
from schemas.ground_truth.ground_truth import load_ground_truth


def estimate(options: run.Options, settings: RunSettings, before: float) -> list[Estimate]:
    """The estimates of a configuration's stages. Raises UserError."""
    stages = run_config.stages_of(
        run_config.read_config(options.config, options.set), options.config
    )
    with probe_folder() as folder:
        gallery = estimate_extract.estimate_in(folder / "gallery", stages.gallery, settings, before)
        queries = estimate_extract.estimate_in(folder / "queries", stages.queries, settings, 0.0)
        later = [_index(stages, gallery.inputs, settings)]
        probed = folder / ("queries" if stages.lazy else "gallery") / "probe"
        later.append(_rerank(stages, gallery.inputs, queries.inputs, probed, folder, settings))
    if stages.lazy:
        later[-1].notes.append(
            "local descriptors of what is reranked are made after the search, and not told here"
        )
    return [gallery, queries, *later]


def _index(stages: run_config.Stages, rows: int, settings: RunSettings) -> Estimate:
    extractor = create(stages.gallery.extractor, **stages.gallery.extractor_option)
    key = key_of(stages.index, rows, extractor.global_dim)
    shape = shape_of(key, extractor.global_dim)
    several = rows > stages.index.rows_per_shard
    told = Estimate("index", stages.index.out, "images", rows, f"as above, key {key}")
    told.disk = {"search files": round(rows * shape.row + shape.fixed)}
    if several:
        told.disk["shards"] = round(
            rows * shape.row + -(-rows // stages.index.rows_per_shard) * shape.fixed
        )
    told.notes = ["time is told by 'index --dry-run' when the store is there"]
    return told


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
        pairs, known = (
            min(queries * gallery, queries * size + removed),
            "at most: easy and junk images drop out",
        )
    told = Estimate(
        "rerank", stages.rerank.out, "pairs", pairs, known, workers=settings.worker_count
    )
    if not (probed / "manifest.json").exists():
        told.workers = 0
        told.notes = [
            (
                "the store is there, so that no pair was probed; after 'search', 'rerank "
                "--dry-run' "
                "tells"
            )
        ]
        return told
    store, place = str(probed), str(folder / "small")
    quiet = replace(
        settings, dry_run=False, overwrite=False, workers=1, runner="local", beam_options=()
    )
    with contextlib.redirect_stderr(io.StringIO()):
        index.run(index.Options(stores=(store,), out=f"{place}/index", key="Flat"), quiet)
        search.run(
            search.Options(
                queries=store, index=f"{place}/index", out=f"{place}/run", shortlist=size
            ),
            quiet,
        )
    asked = replace(stages.rerank, queries=store, out=f"{place}/run", ground_truth="")
    small = estimate_rerank.estimate_in(folder / "pairs", asked, settings, 0.0)
    found = small.probe
    assert found is not None

    def seconds(count: int) -> float:
        return found.start_seconds + pairs * found.seconds_an_input / min(count, max(1, queries))

    told.probe, told.seconds, told.elsewhere = (
        found,
        seconds(settings.worker_count),
        elsewhere(settings, seconds),
    )
    told.memory_worker, told.memory_total = small.memory_worker, small.memory_total
    images = Store(store).manifest.counts.succeeded
    told.notes = [f"the probe paired the {images} images of the extraction's probe"]
    return told
