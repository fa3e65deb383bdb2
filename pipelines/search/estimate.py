"""What `search` would take: some queries against the whole index, by the stage's own worker."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import bookkeeping
from pipelines.estimate.model import Estimate, Probe, elsewhere
from pipelines.estimate.probe import SEED, probe, probe_folder
from pipelines.estimate.schedule import wall_seconds
from pipelines.jobs.manifests import read_entries, read_manifest
from pipelines.jobs.markers import read_marker
from pipelines.search import stage as search
from pipelines.storage.place import free_bytes, open_place
from pipelines.storage.protocol import Place
from schemas.manifest import Manifest
from schemas.plan import Candidates, ShortlistBlock, Unit

FEW, MANY = (
    4,
    32,
)  # queries of the two measured blocks: what a block costs beside its queries is told apart


def estimate(options: search.Options, settings: RunSettings, before: float) -> list[Estimate]:
    """The estimate of a search. Raises UserError."""
    with probe_folder() as folder:
        return [_estimate(folder, options, settings, before)]


def _estimate(
    folder: Path, options: search.Options, settings: RunSettings, before: float
) -> Estimate:
    begun = began = time.monotonic()
    planned = search.plan(options, settings)
    before += time.monotonic() - begun
    place = open_place(f"{options.out}/shortlist")
    queries = sum(map(len, planned.blocks))
    told = Estimate("search", open_place(options.out).url, "queries", queries, "counted")
    told.free, told.workers = (
        free_bytes(options.out),
        min(settings.worker_count, len(planned.blocks)),
    )
    manifest = None if settings.overwrite else read_manifest(place)
    if manifest is not None:
        told.done, told.disk = queries, {"in place": manifest.parts["bytes"]}
        told.disk_there, told.notes = manifest.parts["bytes"], ["a shortlist is there already"]
        told.seconds, told.elsewhere = before, elsewhere(settings, lambda _: before)
        return told
    rows = [row for block in planned.blocks for row in block]
    chosen = [rows[index] for index in np.random.default_rng(SEED).permutation(len(rows))]
    files, blocks = len(planned.shared["files"]), len(planned.blocks)
    workers = told.workers
    rounds = _rounds(chosen, workers)
    fetching, candidates = 0.0, None
    if files > 1:
        start, fetching, candidates = _candidates(
            planned, options, [*rounds[0], *rounds[1]], settings, folder
        )
        before += start
    job = search.shortlist_job(planned, str(folder), candidates)
    probed = probe(
        job, settings, folder / "shortlist", workers, (rounds[0], {}), lambda _: (rounds[1], {})
    )
    fixed, each = _line([(u.inputs, m.seconds) for u, m in probed.measured])
    # Each worker opens index and stores once, for its first block.
    first = max(m.seconds - fixed - each * u.inputs for u, m in probed.first)
    lengths = [fixed + each * len(block) * (files if files > 1 else 1) for block in planned.blocks]

    def seconds(count: int) -> float:
        wall = wall_seconds(lengths, count, probed.start + max(0.0, first), probed.share)
        return before + fetching / min(count, files * blocks) + wall

    told.seconds, told.elsewhere = seconds(settings.worker_count), elsewhere(settings, seconds)
    told.disk = {"shortlist": round(_bytes(probed.place, queries, blocks))}
    told.disk["bookkeeping"] = round(bookkeeping(job, {}, probed, folder, blocks, 0))
    told.memory_worker, told.memory_total = probed.peaks.worker, probed.peaks.total
    inputs = sum(unit.inputs for unit, _ in probed.measured)
    told.probe = Probe(inputs, each, 0.0, probed.start, workers, time.monotonic() - began)
    if fixed > 0.05:
        told.notes.append(f"a block of queries takes {fixed:.1f} s beside its queries")
    if files > 1:
        told.notes.append(f"candidates come from {files} search files; one of them was probed")
    return told


def _rounds(chosen: list[tuple[int, int]], workers: int) -> tuple[list[Unit], list[Unit]]:
    """The blocks of the two rounds of a probe: few queries for each worker; then few and many."""
    turn = iter(range(1_000_000))

    def unit(size: int) -> Unit:
        number = next(turn)
        rows = [
            chosen[(number * MANY + place) % len(chosen)] for place in range(min(size, len(chosen)))
        ]
        return Unit(f"part-{number:05}", ShortlistBlock(tuple(rows)), len(rows))

    first = [unit(FEW) for _ in range(workers)]
    return first, [unit(size) for size in (FEW, MANY) for _ in range(workers)]


def _candidates(
    planned: search.Plan,
    options: search.Options,
    blocks: list[Unit],
    settings: RunSettings,
    folder: Path,
) -> tuple[float, float, Manifest]:
    """(start, seconds of one worker for all candidates, those of some blocks in the first search
    file).
    """
    file, files = planned.shared["files"][0], len(planned.shared["files"])
    units = tuple(
        Unit(
            block.name.replace("part", "candidates-000"),
            Candidates(block.of(ShortlistBlock).rows, file),
            block.inputs,
        )
        for block in blocks
    )
    job = search.candidates_job(planned, options.out)
    job = replace(job, stage="probe", output=str(folder / "candidates"), units=units)
    alone = replace(
        settings, workers=1, overwrite=False, dry_run=False, runner="local", beam_options=()
    )
    begun = time.monotonic()
    manifest = run_job(job, alone)
    start = max(0.0, time.monotonic() - begun - manifest.work_seconds)
    markers = [read_marker(open_place(job.output), job, unit) for unit in units]
    points = [
        (unit.inputs, marker.seconds) for unit, marker in zip(units, markers, strict=True) if marker
    ]
    fixed, each = _line(points[1:])
    load = max(0.0, points[0][1] - fixed - each * points[0][0])
    queries = sum(map(len, planned.blocks))
    return start, files * (load + len(planned.blocks) * fixed + queries * each), manifest


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(seconds or bytes of a block, those of each of its queries), neither below zero."""
    sizes, seconds = np.array([n for n, _ in points], float), np.array([s for _, s in points])
    if len(set(sizes)) < 2:
        return 0.0, float(seconds.mean() / sizes.mean())
    each, fixed = np.polyfit(sizes, seconds, 1)
    if each <= 0:
        return 0.0, float(seconds.sum() / sizes.sum())
    return max(0.0, float(fixed)), float(each)


def _bytes(place: Place, queries: int, blocks: int) -> float:
    """Bytes of the shortlist's parts: what a block takes beside its queries (names of the gallery),
    and a query.
    """
    points = [
        (_queries(place, entry.name), float(entry.bytes))
        for entry in read_entries(place.url)
        if entry.rows
    ]
    fixed, each = _line(points)
    return blocks * fixed + queries * each


def _queries(place: Place, name: str) -> int:
    return len(pq.read_table(place.path(name), columns=["query_id"]).column("query_id").unique())
