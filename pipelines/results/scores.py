"""Reading scores and rankings."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.manifests import read_entries
from pipelines.results.shortlists import split_by_query
from pipelines.storage.place import open_place
from rrt_core.rerankers.cascade import best, combine
from schemas.scores import KEEP_KEY


@dataclass
class StoredScores:
    """What is stored of one query's pairs: record id -> raw logit; of a cascade its first
    reranker's logits too.
    """

    logit: dict[str, float]
    first: dict[str, float]
    keep: int

    def logits_of(self, record_ids: Sequence[str]) -> np.ndarray:
        """float32 [n]: the logits of one list, in global order, by which it is ranked; NaN where a
        pair was not scored.

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
    place = open_place(f"{url}/scores")
    found: dict[str, StoredScores] = {}
    for name in names:
        table = pq.read_table(io.BytesIO(place.read(name)))
        keep = int((table.schema.metadata or {}).get(KEEP_KEY.encode(), b"0"))
        for query, rows in split_by_query(table):
            scores = found.setdefault(query, StoredScores({}, {}, keep))
            records = rows.column("record_id").to_pylist()
            scores.logit.update(zip(records, rows.column("logit").to_pylist(), strict=True))
            if "first_logit" in rows.column_names:
                scores.first.update(
                    zip(records, rows.column("first_logit").to_pylist(), strict=True)
                )
    return found


def read_ranking(url: str, protocol: str) -> Iterator[tuple[str, pa.Table]]:
    """(query id, its ranking) under a protocol, in the shortlist's order; a part is in memory."""
    place = open_place(f"{url}/ranking")
    for name in sorted(entry.name for entry in read_entries(place.url)):
        if name.startswith(f"protocol={protocol}/"):
            yield from split_by_query(pq.read_table(io.BytesIO(place.read(name))))
