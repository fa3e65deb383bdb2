"""The unit workers of `rerank`: score pairs once, then replay each protocol's ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.unit_worker import UnitWorker, refuse_other_weights
from pipelines.results.outputs import shortlist_facts
from pipelines.results.scores import ScoredList, read_scores, scored_lists
from pipelines.results.shortlists import read_shortlist_part
from pipelines.results.truth import Truth, reranked_rows, truth_of
from pipelines.stores.gallery import Gallery, open_stores
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import replay
from rrt_core.rerankers import Locals, QueryScores, create
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
        refuse_other_weights(job, "reranker", self.reranker.weights_sha256)
        self.queries = LocalsReader(Gallery([Store(options["queries"])]))
        hints = stores_of(options.get("stores") or [])  # older outputs' jobs name none
        if not hints:
            hints = shortlist_facts(options["out"]).stores
        self.locals = LocalsReader(Gallery(open_stores(hints, job.output)))
        config = self.reranker.config
        self.query_tokens = int(config.get("query_tokens", 500))
        self.gallery_tokens = int(config.get("gallery_tokens", 500))

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Read the locals of the unit's pairs once, score, write."""
        options, work = self.job.settings, unit.of(Pairs)
        shortlists = read_shortlist_part(options["out"], work.shortlist)
        shortlists = shortlists[work.first : work.first + unit.inputs]
        truth, size = truth_of(options["ground_truth"], shortlists), int(options["shortlist"])
        chosen = [(name, *reranked_rows(name, rows, truth, size)) for name, rows in shortlists]

        row_ids = [rows.column("row_id").to_numpy() for _, rows, _ in chosen]
        gallery_ids = np.unique(np.concatenate(row_ids))
        gallery = self._read(self.locals, gallery_ids, self.gallery_tokens)
        queries = self._read_queries([name for name, _, _ in chosen])

        tables = []
        for number, (name, rows, lists) in enumerate(chosen):
            places = np.searchsorted(gallery_ids, row_ids[number])
            candidates = [gallery[place] for place in places]
            scores = self.reranker.score_query(queries[number], candidates, lists)
            tables.append(_scores_table(name, rows, scores))
            attempt.report(number + 1)

        table = pa.concat_tables(tables)
        attempt.add_table(table, f"{unit.name}.parquet")
        attempt.summary = {"pairs": len(table)}
        return Counts(unit.inputs, unit.inputs)

    def _read(self, reader: LocalsReader, row_ids: np.ndarray, tokens: int) -> list[Locals]:
        return reader.read(row_ids, reader.gallery.read_descriptors(row_ids), tokens)

    def _read_queries(self, names: Sequence[str]) -> list[Locals]:
        row_ids = dict(self.queries.gallery.stores[0].described_rows())
        wanted = np.array([row_ids[name] for name in names], np.int64)
        return self._read(self.queries, wanted, self.query_tokens)


def _scores_table(query: str, rows: pa.Table, scores: QueryScores) -> pa.Table:
    """What a query's pairs scored (schemas/scores.py)."""
    columns = {
        "query_id": [query] * len(rows),
        "record_id": rows.column("record_id"),
        "global_score": rows.column("score"),
        "logit": scores.logit,
    }
    if scores.first is None:
        return pa.table(columns, schema=SCORES)

    metadata = {**CASCADE_SCORES.metadata, KEEP_KEY: str(scores.keep)}
    columns["first_logit"] = scores.first
    return pa.table(columns, schema=CASCADE_SCORES.with_metadata(metadata))


class Replay(UnitWorker):
    """Replays one protocol's ranking of a part of the shortlist from the scores."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write the ranking of the part's queries under one protocol."""
        options, work = self.job.settings, unit.of(RankingPart)
        protocol = work.protocol
        shortlists = read_shortlist_part(options["out"], work.shortlist)
        lists = scored_lists(shortlists, read_scores(options["out"], work.scores))
        truth = truth_of(options["ground_truth"], shortlists) if protocol != DEPLOY else None

        table = pa.concat_tables(
            rank(scored, protocol, truth, options["shortlist"]) for scored in lists
        )
        name = f"protocol={protocol}/part-{work.number:05}.parquet"
        attempt.add_table(table, name, undefined=("logit",))  # of what was not reranked
        return Counts(unit.inputs, unit.inputs)


def rank(scored: ScoredList, protocol: str, truth: Truth | None, shortlist: int) -> pa.Table:
    """The ranking of a query's list under a protocol (schemas/ranking.py)."""
    seen, records = scored.under(protocol, truth, shortlist), scored.record_ids
    order = replay(seen.ranking, seen.junk, shortlist, seen.logits)
    return pa.table(
        {
            "query_id": [scored.query_id] * len(records),
            "rank": np.arange(len(records), dtype=np.int32),
            "record_id": [records[place] for place in order],
            "global_score": scored.global_scores[order].astype(np.float32),
            "logit": seen.logits[order].astype(np.float32),
            "reranked": np.isin(order, seen.places),
        },
        schema=RANKING,
    )
