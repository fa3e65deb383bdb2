"""Reading scores and rankings, and each query's list as a protocol sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.jobs.manifests import read_entries
from pipelines.results.shortlists import split_by_query
from pipelines.results.truth import Truth
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from rrt_core.metrics.revisited import shortlist_positions
from rrt_core.rerankers.cascade import best, combine
from schemas.ranking import RANKING
from schemas.scores import KEEP_KEY, SCORES


@dataclass
class StoredScores:
    """What is stored of one query's pairs.

    logit   record id -> raw logit
    first   of a cascade: record id -> its first reranker's logit
    keep    of a cascade: how many of a list its second reranker scores
    """

    logit: dict[str, float]
    first: dict[str, float]
    keep: int

    def logits_of(self, record_ids: Sequence[str]) -> np.ndarray:
        """float32 [n]: the logits of one list, in global order, by which it is ranked; NaN where a
        pair was not scored.

        Those of a cascade are combined for this very list (rrt_core/rerankers/cascade.py).
        """
        logits, first = (
            np.array([stored.get(record, np.nan) for record in record_ids], np.float32)
            for stored in (self.logit, self.first)
        )
        return combine(first, logits, best(first, self.keep)) if self.first else logits


NO_SCORES = StoredScores({}, {}, 0)


def read_scores(url: str, names: Iterable[str]) -> dict[str, StoredScores]:
    """query id -> its scores, of some files of a run's scores."""
    place, scores = open_place(f"{url}/scores"), dict[str, StoredScores]()
    for name in names:
        table = read_table(place, name, schema=SCORES)
        keep = int((table.schema.metadata or {}).get(KEEP_KEY.encode(), b"0"))
        for query, rows in split_by_query(table):
            one = scores.setdefault(query, StoredScores({}, {}, keep))
            records = rows.column("record_id").to_pylist()
            for column, stored in (("logit", one.logit), ("first_logit", one.first)):
                if column in rows.column_names:
                    stored.update(zip(records, rows.column(column).to_pylist(), strict=True))
    return scores


@dataclass(frozen=True)
class Shortlisted:
    """A query's list as one protocol sees it.

    ranking  int64 [n], gallery positions in the global order; -1 for distractors, and where no
             truth is known
    junk     gallery positions that the protocol moves to the end
    places   int64 [m], places in the ranking: the first that are no junk, as many as the run
             reranked
    logits   float64 [n], NaN elsewhere than at `places`
    """

    ranking: np.ndarray
    junk: np.ndarray
    places: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class ScoredList:
    """A query's list in the global order.

    record_ids     n record ids
    global_scores  float64 [n]
    scores         what its pairs scored
    """

    query_id: str
    record_ids: list[str]
    global_scores: np.ndarray
    scores: StoredScores

    def under(self, protocol: str, truth: Truth | None, shortlist: int) -> Shortlisted:
        """The list under a protocol; without a truth (`deploy`) no junk is known."""
        ranking = truth.positions(self.record_ids) if truth else np.full(len(self.record_ids), -1)
        junk = truth.junk(self.query_id, protocol) if truth else np.zeros(0, np.int64)
        places = shortlist_positions(ranking, junk, shortlist)

        logits = np.full(len(ranking), np.nan)
        logits[places] = self.scores.logits_of([self.record_ids[place] for place in places])
        return Shortlisted(ranking, junk, places, logits)


def scored_lists(
    shortlists: Iterable[tuple[str, pa.Table]], scores: dict[str, StoredScores]
) -> list[ScoredList]:
    """Shortlists with their scores, in their order."""
    return [
        ScoredList(
            query,
            rows.column("record_id").to_pylist(),
            rows.column("score").to_numpy().astype(np.float64),
            scores.get(query, NO_SCORES),
        )
        for query, rows in shortlists
    ]


def read_ranking(url: str, protocol: str) -> Iterator[tuple[str, pa.Table]]:
    """(query id, its ranking) under a protocol, in the shortlist's order; a part is in memory."""
    place = open_place(f"{url}/ranking")
    for name in sorted(entry.name for entry in read_entries(place.url)):
        if name.startswith(f"protocol={protocol}/"):
            yield from split_by_query(read_table(place, name, schema=RANKING))
