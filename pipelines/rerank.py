"""rerank: shortlist + locals -> scores (each pair once, raw logits) -> a ranking for each protocol.

The shortlists of all protocols are scored as one union; each protocol's ranking is then replayed from the
scores without the model.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.commit import Attempt, Job, Unit, UnitWorker
from pipelines.driver import RunSettings, run_job
from pipelines.locals_reader import LocalsReader
from pipelines.options import option
from pipelines.outputs import as_input, read_entries, require_manifest
from pipelines.search import queries_in, read_shortlist_part, shortlist_files, split_by_query
from pipelines.storage import Place
from pipelines.stores import Gallery, Store, open_stores
from pipelines.truth import Truth, truth_input
from rrt_core.metrics import PROTOCOLS, positions_of, protocols_of, replay, shortlist_positions
from rrt_core.rerankers import Locals, Reranker, create
from rrt_core.rerankers.cascade import best, combine
from schemas.errors import UserError
from schemas.ground_truth import load_ground_truth
from schemas.manifest import Counts, Manifest
from schemas.ranking import DEPLOY, RANKING
from schemas.scores import CASCADE_SCORES, KEEP_KEY, SCORES

STAGE = "rerank"
UNIT_BYTES = 256_000_000  # locals of one unit's candidates in memory
BLOCKS_WISHED = 16


@dataclass(frozen=True)
class Options:
    """Options of `rerank`."""

    queries: str = option("store of the queries")
    out: str = option("run folder that holds the shortlist; scores and rankings are made below it")
    reranker: str = option("rrt, geometric, mutual_nn, cascade, or package.module:Class", "rrt")
    reranker_option: dict[str, Any] = option("an option of the reranker, such as gallery_tokens=128", {})
    shortlist: int = option("how many of the shortlist are reranked", 100)
    ground_truth: str = option("ground-truth file: Medium and Hard are ranked too, after their junk is removed", "")
    queries_per_unit: int = option("queries a unit; 0 chooses by memory", 0)


def run(options: Options, settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) scores and rankings. Raises UserError and driver.JobFailed."""
    job = plan_scores(options, settings)
    scores = run_job(job, settings)
    names = rankings_of(options)
    files = {entry.name.split(".")[0]: entry.name for entry in read_entries(f"{options.out}/scores")}
    replays = _replay_units(job.units, names, files)
    return run_job(
        Job(
            stage=STAGE,
            output=f"{options.out}/ranking",
            worker="rerank/replay",
            recipe={"shortlist": options.shortlist, "protocols": names},
            inputs={**job.inputs, "scores": as_input(f"{options.out}/scores", scores)},
            units=tuple(replays),
            settings=job.settings,
            facts={"kind": "ranking", "protocols": names},
            noun="query rankings",
        ),
        settings,
    )


def plan_scores(options: Options, settings: RunSettings) -> Job:
    """The job that scores the pairs. Raises UserError."""
    queries = Store(options.queries)
    shortlist = require_manifest(f"{options.out}/shortlist", "shortlist", "search")
    if shortlist.inputs["queries"]["content"] != queries.manifest.content:
        raise UserError(f"{queries.place.url} is not the store that {options.out}/shortlist was made for; search again")
    reranker = create(options.reranker, **options.reranker_option)
    notes: dict[str, Any] = getattr(reranker, "notes", {})
    _refuse_other_descriptors(notes, queries)
    inputs = {"shortlist": as_input(f"{options.out}/shortlist", shortlist), "queries": queries.as_input}
    if options.ground_truth:
        inputs["ground_truth"] = truth_input(options.ground_truth)
    return Job(
        stage=STAGE,
        output=f"{options.out}/scores",
        worker="rerank/score",
        recipe={
            "reranker": identity_of(reranker),
            "shortlist": options.shortlist,
            "threads": settings.threads_per_worker,
        },
        inputs=inputs,
        units=tuple(_units(options, queries, int(reranker.config.get("gallery_tokens", 500)))),
        settings=asdict(options),
        facts={"kind": "scores", "weights_notes": notes},
        noun="queries",
    )


def rankings_of(options: Options) -> list[str]:
    """The protocols whose rankings are made."""
    return [DEPLOY, *(name for name in _protocols(options) if name != "easy")]


def identity_of(reranker: Reranker) -> dict[str, Any]:
    """What of a reranker goes into a recipe."""
    return {
        "name": reranker.name,
        "revision": reranker.revision,
        "weights_sha256": reranker.weights_sha256,
        "config": reranker.config,
    }


def _refuse_other_descriptors(notes: dict[str, Any], store: Store) -> None:
    """Raise UserError where the weights say that they were trained for other descriptors than the store's."""
    trained, stored = notes.get("extractor"), store.extractor
    if trained and any(trained[key] != stored[key] for key in ("name", "weights_sha256")):
        raise UserError(
            f"the reranker's weights were trained for descriptors of {trained['name']} (weights "
            f"{trained['weights_sha256'][:12]}), but {store.place.url} holds those of {stored['name']} (weights "
            f"{stored['weights_sha256'][:12]}); give weights trained for these, or another reranker"
        )


def _protocols(options: Options) -> Sequence[str]:
    return protocols_of(load_ground_truth(options.ground_truth)) if options.ground_truth else ()


def _units(options: Options, queries: Store, tokens: int) -> list[Unit]:
    """Runs of queries within a part of the shortlist, so few that their candidates' locals fit in memory."""
    counts = [(entry.name, queries_in(options.out, entry.name)) for entry in shortlist_files(options.out)]
    size = options.queries_per_unit
    if not size:
        a_query = 1.5 * options.shortlist * tokens * (int(queries.extractor["local_dim"]) * 4 + 13)
        total = sum(count for _, count in counts)
        size = max(1, min(int(UNIT_BYTES // a_query), -(-total // BLOCKS_WISHED)))
    slices = [(name, first, min(size, count - first)) for name, count in counts for first in range(0, count, size)]
    return [
        Unit(f"part-{number:05}", {"shortlist": name, "first": first}, count)
        for number, (name, first, count) in enumerate(slices)
    ]


def _replay_units(scored: Sequence[Unit], protocols: Sequence[str], scores: dict[str, str]) -> list[Unit]:
    """A unit a protocol and part of the shortlist; it names the files of scores that hold the part's queries."""
    needed: dict[str, list[str]] = {}
    queries: Counter[str] = Counter()
    for unit in scored:
        needed.setdefault(unit.payload["shortlist"], []).append(scores[unit.name])
        queries[unit.payload["shortlist"]] += unit.inputs
    units = []
    for protocol in protocols:
        for number, (name, files) in enumerate(needed.items()):
            payload = {"protocol": protocol, "number": number, "shortlist": name, "scores": files}
            units.append(Unit(f"{protocol}-{number:05}", payload, queries[name]))
    return units


class ScorePairs(UnitWorker):
    """Scores the union of the protocols' shortlists of some queries, each pair once."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        options = job.settings
        self.reranker = create(options["reranker"], **options["reranker_option"])
        self.queries = LocalsReader(Gallery([Store(options["queries"])]))
        manifest = require_manifest(f"{options['out']}/shortlist", "shortlist", "search")
        self.locals = LocalsReader(Gallery(open_stores(manifest.facts["stores"])))
        config = self.reranker.config
        self.query_tokens = int(config.get("query_tokens", 500))
        self.gallery_tokens = int(config.get("gallery_tokens", 500))

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Read the locals of the unit's pairs once, score, write."""
        first, url = unit.payload["first"], self.job.settings["out"]
        shortlists = read_shortlist_part(url, unit.payload["shortlist"])[first : first + unit.inputs]
        truth = truth_of(self.job.settings["ground_truth"], shortlists)
        size = int(self.job.settings["shortlist"])
        chosen = [(name, *reranked_rows(name, rows, truth, size)) for name, rows in shortlists]
        gallery_ids = np.unique(np.concatenate([rows.column("row_id").to_numpy() for _, rows, _ in chosen]))
        gallery = self._read(self.locals, gallery_ids, self.gallery_tokens)
        queries = self._read_queries([name for name, _, _ in chosen])
        tables = []
        for number, (name, rows, lists) in enumerate(chosen):
            row_ids = rows.column("row_id").to_numpy()
            candidates = [gallery[i] for i in np.searchsorted(gallery_ids, row_ids)]
            scores = self.reranker.score_query(queries[number], candidates, lists)
            columns = {
                "query_id": [name] * len(rows),
                "record_id": rows.column("record_id"),
                "global_score": rows.column("score"),
                "logit": scores.logit,
            }
            schema = SCORES
            if scores.first is not None:
                columns["first_logit"] = scores.first
                schema = CASCADE_SCORES.with_metadata({**CASCADE_SCORES.metadata, KEEP_KEY: str(scores.keep)})
            tables.append(pa.table(columns, schema=schema))
            attempt.tell(number + 1)
        table = pa.concat_tables(tables)
        path = attempt.path("scores.parquet")
        pq.write_table(table, path, compression="zstd")
        attempt.add(path, f"{unit.name}.parquet", len(table))
        attempt.summary = {"pairs": len(table)}
        return Counts(unit.inputs, unit.inputs)

    def _read(self, reader: LocalsReader, row_ids: np.ndarray, tokens: int) -> list[Locals]:
        _, descriptors = reader.gallery.read_globals(row_ids)
        return reader.read(row_ids, descriptors, tokens)

    def _read_queries(self, names: Sequence[str]) -> list[Locals]:
        store = self.queries.gallery.stores[0]
        where: dict[str, int] = {}
        for part in store.parts:
            read = store.read_global(part)
            for row in np.flatnonzero(read.ok):
                where[read.record_ids[row]] = int(store.row_ids(part, np.array([row]))[0])
        return self._read(self.queries, np.array([where[name] for name in names], np.int64), self.query_tokens)


def reranked_rows(
    name: str, rows: pa.Table, truth: Truth | None, size: int
) -> tuple[pa.Table, list[np.ndarray]]:
    """The rows of a query's shortlist that any protocol reranks, in global order; which of them each protocol does."""
    places = [np.arange(min(size, len(rows)))]
    query = truth.query(name) if truth else None
    if truth and query:
        ranking = truth.positions(rows.column("record_id").to_pylist())
        for protocol in ("medium", "hard"):
            junk = positions_of(query, PROTOCOLS[protocol].junk)
            places.append(shortlist_positions(ranking, junk, size))
    wanted = np.unique(np.concatenate(places))
    return rows.take(wanted), [np.searchsorted(wanted, each) for each in places]


def truth_of(url: str, shortlists: Sequence[tuple[str, pa.Table]]) -> Truth | None:
    """The ground truth, where there is one, seen from some shortlists."""
    if not url:
        return None
    gallery = {record for _, rows in shortlists for record in rows.column("record_id").to_pylist()}
    return Truth(url, [name for name, _ in shortlists], sorted(gallery))


class Replay(UnitWorker):
    """Replays one protocol's ranking of a part of the shortlist from the scores."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the ranking of the part's queries under one protocol."""
        options, protocol = self.job.settings, unit.payload["protocol"]
        shortlists = read_shortlist_part(options["out"], unit.payload["shortlist"])
        scores = read_scores(options["out"], unit.payload["scores"])
        truth = truth_of(options["ground_truth"], shortlists) if protocol != DEPLOY else None
        tables = [self._rank(name, rows, scores.get(name, NO_SCORES), truth, protocol) for name, rows in shortlists]
        table = pa.concat_tables(tables)
        path = attempt.path("ranking.parquet")
        pq.write_table(table, path, compression="zstd")
        attempt.add(path, f"protocol={protocol}/part-{unit.payload['number']:05}.parquet", len(table))
        return Counts(unit.inputs, unit.inputs)

    def _rank(
        self, name: str, rows: pa.Table, scores: StoredScores, truth: Truth | None, protocol: str
    ) -> pa.Table:
        size = self.job.settings["shortlist"]
        record_ids = rows.column("record_id").to_pylist()
        ranking = truth.positions(record_ids) if truth else np.full(len(rows), -1)
        query = truth.query(name) if truth else None
        junk: Any = positions_of(query, PROTOCOLS[protocol].junk) if query else np.zeros(0, np.int64)
        shortlist = shortlist_positions(ranking, junk, size)
        scored = np.full(len(rows), np.nan)
        scored[shortlist] = scores.logits_of([record_ids[place] for place in shortlist])
        order = replay(ranking, junk, size, scored)
        reranked = np.zeros(len(rows), bool)
        reranked[shortlist] = True
        return pa.table(
            {
                "query_id": [name] * len(rows),
                "rank": np.arange(len(rows), dtype=np.int32),
                "record_id": [record_ids[i] for i in order],
                "global_score": rows.column("score").to_numpy()[order],
                "logit": scored.astype(np.float32)[order],
                "reranked": reranked[order],
            },
            schema=RANKING,
        )


@dataclass
class StoredScores:
    """What is stored of one query's pairs: record id -> raw logit; of a cascade its first reranker's logits too."""

    logit: dict[str, float]
    first: dict[str, float]
    keep: int

    def logits_of(self, record_ids: Sequence[str]) -> np.ndarray:
        """float32 [n]: the logits of one list, in global order, by which it is ranked; NaN where a pair was not scored.

        Those of a cascade are combined for this very list (rrt_core/rerankers/cascade.py).
        """
        logits = np.array([self.logit.get(record, np.nan) for record in record_ids], np.float32)
        if not self.first:
            return logits
        first = np.array([self.first.get(record, np.nan) for record in record_ids], np.float32)
        return combine(first, logits, best(first, self.keep))


NO_SCORES = StoredScores({}, {}, 0)


def read_scores(url: str, names: Sequence[str]) -> dict[str, StoredScores]:
    """query id -> its scores, of some files of a run's scores."""
    place = Place(f"{url}/scores")
    found: dict[str, StoredScores] = {}
    for name in names:
        table = pq.read_table(io.BytesIO(place.read(name)))
        keep = int((table.schema.metadata or {}).get(KEEP_KEY.encode(), b"0"))
        for query, rows in split_by_query(table):
            scores = found.setdefault(query, StoredScores({}, {}, keep))
            records = rows.column("record_id").to_pylist()
            scores.logit.update(zip(records, rows.column("logit").to_pylist(), strict=True))
            if "first_logit" in rows.column_names:
                scores.first.update(zip(records, rows.column("first_logit").to_pylist(), strict=True))
    return found


def read_ranking(url: str, protocol: str) -> list[tuple[str, pa.Table]]:
    """(query id, its ranking) under a protocol."""
    place = Place(f"{url}/ranking")
    names = sorted(
        entry.name for entry in read_entries(place.url) if entry.name.startswith(f"protocol={protocol}/")
    )
    table = pa.concat_tables([pq.read_table(io.BytesIO(place.read(name))) for name in names])
    return split_by_query(table)
