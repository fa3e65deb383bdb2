"""The unit workers of `rerank`: score pairs once, then replay each protocol's ranking from the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.manifests import require_manifest
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.scores import NO_SCORES, StoredScores, read_scores
from pipelines.results.shortlists import read_shortlist_part
from pipelines.results.truth import Truth, reranked_rows, truth_of
from pipelines.stores.gallery import Gallery, open_stores
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import PROTOCOLS, positions_of, replay, shortlist_positions
from rrt_core.rerankers import Locals, create
from schemas.manifest import Counts
from schemas.plan import Job, Pairs, RankingPart, Unit
from schemas.ranking import DEPLOY, RANKING
from schemas.scores import CASCADE_SCORES, KEEP_KEY, SCORES


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
        work, url = unit.of(Pairs), self.job.settings["out"]
        shortlists = read_shortlist_part(url, work.shortlist)
        shortlists = shortlists[work.first : work.first + unit.inputs]
        truth = truth_of(self.job.settings["ground_truth"], shortlists)
        size = int(self.job.settings["shortlist"])
        chosen = [(name, *reranked_rows(name, rows, truth, size)) for name, rows in shortlists]
        gallery_ids = np.unique(
            np.concatenate([rows.column("row_id").to_numpy() for _, rows, _ in chosen])
        )
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
                schema = CASCADE_SCORES.with_metadata(
                    {**CASCADE_SCORES.metadata, KEEP_KEY: str(scores.keep)}
                )
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
        return self._read(
            self.queries, np.array([where[name] for name in names], np.int64), self.query_tokens
        )


class Replay(UnitWorker):
    """Replays one protocol's ranking of a part of the shortlist from the scores."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the ranking of the part's queries under one protocol."""
        options, work = self.job.settings, unit.of(RankingPart)
        protocol = work.protocol
        shortlists = read_shortlist_part(options["out"], work.shortlist)
        scores = read_scores(options["out"], work.scores)
        truth = truth_of(options["ground_truth"], shortlists) if protocol != DEPLOY else None
        tables = [
            self._rank(name, rows, scores.get(name, NO_SCORES), truth, protocol)
            for name, rows in shortlists
        ]
        table = pa.concat_tables(tables)
        path = attempt.path("ranking.parquet")
        pq.write_table(table, path, compression="zstd")
        attempt.add(path, f"protocol={protocol}/part-{work.number:05}.parquet", len(table))
        return Counts(unit.inputs, unit.inputs)

    def _rank(
        self, name: str, rows: pa.Table, scores: StoredScores, truth: Truth | None, protocol: str
    ) -> pa.Table:
        size = self.job.settings["shortlist"]
        record_ids = rows.column("record_id").to_pylist()
        ranking = truth.positions(record_ids) if truth else np.full(len(rows), -1)
        query = truth.query(name) if truth else None
        junk: Any = (
            positions_of(query, PROTOCOLS[protocol].junk) if query else np.zeros(0, np.int64)
        )
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
