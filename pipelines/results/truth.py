"""A ground truth beside a run: its queries, and where ranked records stand in its gallery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipelines.jobs.inputs import file_content
from pipelines.storage.place import open_place
from rrt_core.metrics.revisited import PROTOCOLS, positions_of, shortlist_positions
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, load_ground_truth


def reranked_rows(
    name: str, rows: pa.Table, truth: Truth | None, size: int
) -> tuple[pa.Table, list[np.ndarray]]:
    """The rows of a query's shortlist that any protocol reranks, and which of them each does.

    Both are in the global order.
    """
    places = [np.arange(min(size, len(rows)))]
    if truth and truth.query(name):
        ranking = truth.positions(rows.column("record_id").to_pylist())
        junk = (truth.junk(name, protocol) for protocol in ("medium", "hard"))
        places += [shortlist_positions(ranking, each, size) for each in junk]

    union = np.unique(np.concatenate(places))
    return rows.take(union), [np.searchsorted(union, each) for each in places]


def truth_of(url: str, shortlists: Sequence[tuple[str, pa.Table]]) -> Truth | None:
    """The ground truth, where there is one, seen from some shortlists."""
    if not url:
        return None
    gallery = {record for _, rows in shortlists for record in rows.column("record_id").to_pylist()}
    return Truth(url, [name for name, _ in shortlists], sorted(gallery))


def truth_input(url: str) -> dict[str, str]:
    """What a job records of a ground-truth file. Raises UserError where it cannot be read."""
    try:
        return {"url": url, "content": file_content(open_place(url))}
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"The ground truth {url} cannot be read: {why}; give its file") from error


class Truth:
    """The ground truth seen from the record ids of a run."""

    def __init__(self, url: str, query_ids: Iterable[str], gallery_ids: Iterable[str]) -> None:
        self.truth: GroundTruth = load_ground_truth(url)
        self._queries = self.truth.query_positions(query_ids)
        self._gallery = self.truth.gallery_positions(gallery_ids)

    def query(self, record_id: str) -> QueryTruth | None:
        """The query of a record id; None where the ground truth does not know it."""
        position = self._queries.get(record_id)
        return None if position is None else self.truth.queries[position]

    def junk(self, record_id: str, protocol: str) -> np.ndarray:
        """Gallery positions int64 [m] of a query's junk; none of an unknown query."""
        query = self.query(record_id)
        return positions_of(query, PROTOCOLS[protocol].junk) if query else np.zeros(0, np.int64)

    def positions(self, record_ids: Sequence[str]) -> np.ndarray:
        """Gallery positions int64 [n] of ranked records; -1 for distractors."""
        return np.array([self._gallery.get(name, -1) for name in record_ids], np.int64)

    def by_query(self) -> dict[int, str]:
        """Position of a query in the ground truth -> its record id in the run."""
        return {position: record_id for record_id, position in self._queries.items()}

    @property
    def missing_from_gallery(self) -> int:
        """How many images of the ground truth's gallery no record stands for."""
        return len(self.truth.gallery) - len(self._gallery)
