"""What `rerank` would take: its pairs counted, some queries scored, rankings made up to see their
size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.engines.driver import refuse_other
from pipelines.engines.pool import LARGE
from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import bookkeeping
from pipelines.estimate.model import Estimate, Probe, elsewhere
from pipelines.estimate.probe import SEED, WISHED, Probed, Round, probe, probe_folder, rounds
from pipelines.estimate.schedule import wall_seconds
from pipelines.jobs.markers import read_marker
from pipelines.rerank import stage as rerank
from pipelines.rerank import units as rerank_units
from pipelines.results import scores as results_scores
from pipelines.results import truth as results_truth
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.storage.place import free_bytes, open_place
from pipelines.stores.store import Store
from schemas.plan import Job, Pairs, Unit
from schemas.ranking import DEPLOY
from schemas.scores import SCORES

MOST_ROWS = 300_000  # of a ranking that is made up to see its size
MOST_UNITS = 4  # of scores that are


@dataclass(frozen=True)
class Query:
    """A query of a part of the shortlist: its place there, the row ids that are reranked, the
    length of its list.
    """

    part: str
    place: int
    row_ids: np.ndarray
    rows: int


def estimate(options: rerank.Options, settings: RunSettings, before: float) -> list[Estimate]:
    """The estimate of a reranking. Raises UserError."""
    with probe_folder() as folder:
        return [estimate_in(folder, options, settings, before)]


def estimate_in(
    folder: Path, options: rerank.Options, settings: RunSettings, before: float
) -> Estimate:
    """As `estimate`, with a folder for the probe."""
    begun = time.monotonic()
    job = rerank.plan_scores(options, settings)
    before += time.monotonic() - begun
    place = open_place(job.output)
    refuse_other(place, job, settings)
    queries = _queries(options)
    of_unit = {unit.name: _of(unit, queries) for unit in job.units}
    there = set() if settings.overwrite else set(place.names("done"))
    left = [
        u for u in job.units if f"{u.name}.json" not in there or read_marker(place, job, u) is None
    ]
    pairs = sum(len(query.row_ids) for query in queries)
    told = Estimate(
        "rerank",
        place.url.removesuffix("/scores"),
        "pairs",
        pairs,
        f"counted, {len(queries):,} queries",
    )
    left_pairs = sum(len(query.row_ids) for unit in left for query in of_unit[unit.name])
    told.done, told.free, told.workers = (
        pairs - left_pairs,
        free_bytes(job.output),
        settings.worker_count,
    )
    if not left:
        told.seconds, told.elsewhere = before, elsewhere(settings, lambda _: before)
        told.notes = ["all pairs are scored"]
        return told
    began = time.monotonic()
    workers = min(settings.worker_count, len(left))
    probed = _probe(job, left, of_unit, settings, workers, folder)
    measured = sum(int(marker.summary["pairs"]) for _, marker in probed.measured)
    each = probed.busy / max(1, measured)
    lengths = [each * sum(len(query.row_ids) for query in of_unit[unit.name]) for unit in left]
    ranking_bytes, ranking_seconds = _rankings(job, options, folder)
    replays = len(shortlist_files(options.out)) * len(rerank.rankings_of(options))

    def seconds(count: int) -> float:
        again = (
            probed.start if probed.peaks.worker > LARGE else 0.0
        )  # the pool ends large workers between the jobs
        last = wall_seconds([ranking_seconds / replays] * replays, count, again, probed.share)
        return before + wall_seconds(lengths, count, probed.start, probed.share) + last

    told.seconds, told.elsewhere = seconds(settings.worker_count), elsewhere(settings, seconds)
    told.workers = workers
    told.disk = {
        "scores": round(_scores_bytes(job, options, queries, probed, folder)),
        "rankings": round(ranking_bytes),
        "bookkeeping": round(
            bookkeeping(job, {}, probed, folder, len(job.units), 0)
            + bookkeeping(
                replace(job, units=job.units[:1] * replays),
                {},
                probed,
                folder / "ranking",
                replays,
                0,
            )
        ),
    }
    tokens, dimension = _tokens(job)
    held = [
        len(np.unique(np.concatenate([query.row_ids for query in of_unit[unit.name]])))
        for unit in left
    ]
    seen = [
        len(np.unique(np.concatenate([q.row_ids for q in _of(unit, queries)])))
        for unit, _ in probed.measured
    ]
    growth = max(0, max(held) - max(seen)) * tokens * (4 * dimension + 13)
    told.memory_worker = probed.peaks.worker + growth
    told.memory_total = probed.peaks.total + workers * growth
    each_unit = [m.seconds / max(1, int(m.summary["pairs"])) for _, m in probed.measured]
    spread = float(np.std(each_unit, ddof=1) / np.mean(each_unit)) if len(each_unit) > 1 else 0.0
    told.probe = Probe(measured, each, spread, probed.start, workers, time.monotonic() - began)
    return told


def _queries(options: rerank.Options) -> list[Query]:
    """All queries of the shortlist, with what is reranked of each."""
    found = []
    for entry in shortlist_files(options.out):
        shortlists = read_shortlist_part(options.out, entry.name)
        truth = results_truth.truth_of(options.ground_truth, shortlists)
        for place, (name, rows) in enumerate(shortlists):
            chosen, _ = results_truth.reranked_rows(name, rows, truth, options.shortlist)
            found.append(Query(entry.name, place, chosen.column("row_id").to_numpy(), len(rows)))
    return found


def _of(unit: Unit, queries: Sequence[Query]) -> list[Query]:
    name, first = unit.of(Pairs).shortlist, unit.of(Pairs).first
    return [
        query
        for query in queries
        if query.part == name and first <= query.place < first + unit.inputs
    ]


def _probe(
    job: Job,
    left: Sequence[Unit],
    of_unit: dict[str, list[Query]],
    settings: RunSettings,
    workers: int,
    folder: Path,
) -> Probed:
    """Score some queries, in a seeded order of the units that are left."""
    order = [left[index] for index in np.random.default_rng(SEED).permutation(len(left))]
    each_has = max(unit.inputs for unit in left)
    number = iter(range(1_000_000))

    def units(count: int, size: int) -> Round:
        made = []
        for _ in range(count):
            turn = next(number)
            unit = order[turn % len(order)]
            work = unit.of(Pairs)
            first = work.first + (turn // len(order)) * size % unit.inputs
            size_here = min(size, work.first + unit.inputs - first)
            made.append(Unit(f"part-{turn:05}", Pairs(work.shortlist, first), size_here))
        return made, {}

    def second(taken: float) -> Round:
        many = rounds(taken)
        all_left = sum(len(of_unit[unit.name]) for unit in left)
        many = max(1, min(many, all_left // workers))
        size = round(WISHED / many / max(1e-6, taken))
        return units(workers * many, max(1, min(size, each_has, all_left // (workers * many))))

    return probe(job, settings, folder / "scores", workers, units(workers, 1), second)


def _tokens(job: Job) -> tuple[int, int]:
    extractor = Store(str(job.settings["queries"])).extractor
    reranker = job.recipe["reranker"]["config"]
    return int(reranker.get("gallery_tokens", 500)), int(extractor["local_dim"])


def _scores_bytes(
    job: Job, options: rerank.Options, queries: Sequence[Query], probed: Probed, folder: Path
) -> float:
    """Bytes of all files of scores: some are made up with logits by chance, which no coding makes
    smaller.
    """
    name = probed.measured[0][1].files[0].name
    written = pq.read_schema(probed.place.path(name))
    if written.names != SCORES.names:  # a cascade's: as dense as those of the probe
        files = [entry for _, marker in probed.units for entry in marker.files]
        pairs = sum(len(query.row_ids) for query in queries)
        return (
            sum(entry.bytes for entry in files) / max(1, sum(entry.rows for entry in files)) * pairs
        )
    chance, sizes, pairs = np.random.default_rng(SEED), 0, 0
    for unit in job.units[:: -(-len(job.units) // MOST_UNITS)]:
        first = unit.of(Pairs).first
        shortlists = read_shortlist_part(options.out, unit.of(Pairs).shortlist)[
            first : first + unit.inputs
        ]
        truth = results_truth.truth_of(options.ground_truth, shortlists)
        tables = []
        for query, rows in shortlists:
            chosen, _ = results_truth.reranked_rows(query, rows, truth, options.shortlist)
            columns = {
                "query_id": [query] * len(chosen),
                "record_id": chosen.column("record_id"),
                "global_score": chosen.column("score"),
                "logit": chance.standard_normal(len(chosen)).astype(np.float32),
            }
            tables.append(pa.table(columns, schema=SCORES))
        path = folder / "scores.parquet"
        pq.write_table(pa.concat_tables(tables), path, compression="zstd")
        sizes, pairs = sizes + os.path.getsize(path), pairs + sum(map(len, tables))
    return sizes / max(1, pairs) * sum(len(query.row_ids) for query in queries)


def _rankings(job: Job, options: rerank.Options, folder: Path) -> tuple[float, float]:
    """(bytes, seconds of one worker) of all rankings: some are made by the stage's worker, from
    logits by chance.
    """
    chance, worker = np.random.default_rng(SEED), rerank_units.Replay(job)
    size, taken, rows, all_rows = 0, 0.0, 0, 0
    for entry in shortlist_files(options.out):
        all_rows += entry.rows
        if rows:
            continue
        shortlists = read_shortlist_part(options.out, entry.name)
        lengths = np.cumsum([len(listed) for _, listed in shortlists])
        shortlists = shortlists[: max(1, int(np.searchsorted(lengths, MOST_ROWS)) + 1)]
        truth = results_truth.truth_of(options.ground_truth, shortlists)
        scores = {name: _by_chance(listed, chance) for name, listed in shortlists}
        for protocol in rerank.rankings_of(options):
            begun = time.monotonic()
            seen = truth if protocol != DEPLOY else None
            tables = [
                worker._rank(name, listed, scores[name], seen, protocol)
                for name, listed in shortlists
            ]
            path = folder / "ranking.parquet"
            pq.write_table(pa.concat_tables(tables), path, compression="zstd")
            taken += time.monotonic() - begun
            size += os.path.getsize(path)
            rows += sum(map(len, tables))
    share = all_rows * len(rerank.rankings_of(options)) / max(1, rows)
    return size * share, taken * share


def _by_chance(listed: pa.Table, chance: np.random.Generator) -> results_scores.StoredScores:
    records = listed.column("record_id").to_pylist()
    logits = chance.standard_normal(len(records)).tolist()
    return results_scores.StoredScores(dict(zip(records, logits, strict=True)), {}, 0)
