"""What `rerank` would take: its pairs counted, those of some queries scored."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.engines.local.pool import LARGE
from pipelines.engines.settings import RunSettings
from pipelines.estimate.disk import bookkeeping, parquet_bytes, parquet_sizes, written, written_plan
from pipelines.estimate.model import Estimate
from pipelines.estimate.probe import SEED, Round, probe, sized, unfinished
from pipelines.estimate.schedule import wall_seconds
from pipelines.jobs.existing_output import refuse_other
from pipelines.rerank import stage as rerank
from pipelines.rerank.units import rank
from pipelines.results.scores import StoredScores, scored_lists
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import reranked_rows, truth_of
from pipelines.storage.place import open_place
from pipelines.stores.store import Store
from schemas.plan import Pairs, Unit
from schemas.ranking import DEPLOY

MOST_ROWS = 300_000  # of the rankings that are made in memory


def estimate(
    folder: Path, options: rerank.Options, settings: RunSettings, begun: float
) -> Estimate:
    """The estimate of a reranking, which began at `begun` by time.monotonic(). Raises UserError."""
    job = rerank.plan_scores(options, settings)
    before = time.monotonic() - begun
    refuse_other(open_place(job.output), job, settings.overwrite)

    queries = _row_ids(options)
    known = f"counted, {sum(map(len, queries.values())):,} queries"
    pairs = {unit.name: sum(map(len, _of(queries, unit))) for unit in job.units}
    left, all_pairs = unfinished(job, settings), sum(pairs.values())
    done = all_pairs - sum(pairs[unit.name] for unit in left)
    made = Estimate.begin("rerank", options.out, "pairs", all_pairs, known, done)
    if not left:
        return made.nothing_left(settings, before, "all pairs are scored")

    order = [left[i] for i in np.random.default_rng(SEED).permutation(len(left))]
    turns = count()

    def units(number: int, size: int) -> Round:
        """Runs of queries, in turn of each unit that is left."""
        made = []
        for turn in (next(turns) for _ in range(number)):
            unit = order[turn % len(order)]
            skipped = turn // len(order) * size % unit.inputs
            work = Pairs(unit.of(Pairs).shortlist, unit.of(Pairs).first + skipped)
            made.append(Unit(f"part-{turn:05}", work, min(size, unit.inputs - skipped)))
        return made, {}

    workers, most = min(settings.worker_count, len(left)), max(unit.inputs for unit in left)
    rounds = sized(units, workers, 1, most, sum(unit.inputs for unit in left))
    scored = probe(
        job, settings, folder, workers, *rounds, count=lambda marker: int(marker.summary["pairs"])
    )

    lengths = [scored.seconds_an_input * pairs[unit.name] for unit in left]
    held = max(_images(queries, unit) for unit in left)
    seen = max(_images(queries, one.unit) for one in scored.measured)

    extractor = Store(options.queries).extractor
    tokens = int(job.recipe["reranker"]["config"].get("gallery_tokens", 500))
    an_image = tokens * (4 * int(extractor["local_dim"]) + 13)
    made.rests_on(scored, settings, before, lengths, max(0, held - seen) * an_image)

    ranking_bytes, ranking_seconds = _rankings(options)
    replays = len(queries) * len(rerank.rankings_of(options))
    # the pool ends large workers between the jobs
    start = scored.start_seconds if scored.peaks.worker > LARGE else 0.0

    def seconds(workers: int) -> float:
        replayed = [ranking_seconds / replays] * replays
        last = wall_seconds(replayed, workers, start, scored.share)
        return before + scored.wall(lengths, workers) + last

    made.takes(settings, seconds)

    table = written(scored).slice(0, max(pairs.values()))
    ranking = replace(job, units=job.units[:1] * replays)
    plans = written_plan(folder / "plan", job), written_plan(folder / "plan-ranking", ranking)
    made.disk = {
        "scores": parquet_sizes(table, compression="zstd").total(len(pairs), all_pairs),
        "rankings": round(ranking_bytes),
        "bookkeeping": bookkeeping(scored, plans[0], len(pairs))
        + bookkeeping(scored, plans[1], replays),
    }
    return made


def _row_ids(options: rerank.Options) -> dict[str, list[np.ndarray]]:
    """Row ids of what is reranked of each query, by the part of the shortlist that holds it."""
    queries = {}
    for entry in shortlist_files(options.out):
        shortlists = read_shortlist_part(options.out, entry.name)
        truth = truth_of(options.ground_truth, shortlists)
        chosen = [reranked_rows(name, rows, truth, options.shortlist) for name, rows in shortlists]
        queries[entry.name] = [rows.column("row_id").to_numpy() for rows, _ in chosen]
    return queries


def _of(queries: dict[str, list[np.ndarray]], unit: Unit) -> list[np.ndarray]:
    work = unit.of(Pairs)
    return queries[work.shortlist][work.first : work.first + unit.inputs]


def _images(queries: dict[str, list[np.ndarray]], unit: Unit) -> int:
    """Images of the gallery whose locals the unit holds in memory."""
    return len(np.unique(np.concatenate(_of(queries, unit))))


def _rankings(options: rerank.Options) -> tuple[float, float]:
    """(bytes, seconds of one worker) of all rankings, by some of the first part, in memory, with
    logits by chance: no coding makes these smaller.
    """
    files, chance = shortlist_files(options.out), np.random.default_rng(SEED)
    shortlists = read_shortlist_part(options.out, files[0].name)
    ends = np.cumsum([len(rows) for _, rows in shortlists])
    shortlists = shortlists[: int(np.searchsorted(ends, MOST_ROWS)) + 1]

    begun, scores = time.monotonic(), dict[str, StoredScores]()
    for name, rows in shortlists:
        logits = chance.standard_normal(len(rows)).tolist()
        records = rows.column("record_id").to_pylist()
        scores[name] = StoredScores(dict(zip(records, logits, strict=True)), {}, 0)
    lists = scored_lists(shortlists, scores)
    table = pa.concat_tables(rank(one, DEPLOY, None, options.shortlist) for one in lists)

    size = parquet_bytes(table, compression="zstd")
    times = sum(entry.rows for entry in files) * len(rerank.rankings_of(options)) / len(table)
    return size * times, (time.monotonic() - begun) * times
