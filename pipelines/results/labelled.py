"""Labelled places: reading them, and the order of a whole gallery that a list begins."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.jobs.facts import LabelledFacts, ShortlistFacts
from pipelines.jobs.manifests import input_content, read_entries, read_facts, read_manifest
from pipelines.results.shortlists import split_by_query
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table, reading
from schemas.layout import PLAN_NAME
from schemas.manifest import Manifest
from schemas.shortlist import PLACES

FOLDER = "labelled/places"


@dataclass(frozen=True)
class Labelled:
    """The labelled images of a query in the whole gallery, by place rising; all of length m.

    positions  int64, in the ground truth's gallery
    scores     float32
    places     int64, 0-based
    """

    record_ids: list[str]
    row_ids: np.ndarray
    positions: np.ndarray
    scores: np.ndarray
    places: np.ndarray

    def beyond(self, shortlist: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """(positions, places) int64 of those that a list lacks, in the order of a whole gallery
        that begins with the list and goes on with the other rows by exact score.

        A list of an exact search is how that order begins, and the places are the exact ones; one
        of an approximate index lacks rows, which come after its end.
        """
        row_ids = shortlist.column("row_id").to_numpy()
        rising = -shortlist.column("score").to_numpy()
        ids = shortlist.column("record_id").to_pylist()

        absent = np.flatnonzero(~np.isin(self.row_ids, row_ids))
        places = self.places[absent] + len(row_ids)
        for number, one in enumerate(absent):
            first, end = (
                np.searchsorted(rising, -self.scores[one], side) for side in ("left", "right")
            )
            ties = [(ids[row].encode(), int(row_ids[row])) for row in range(first, end)]
            key = (self.record_ids[one].encode(), int(self.row_ids[one]))
            places[number] -= first + bisect_left(ties, key)
        return self.positions[absent], places


NONE = Labelled([], *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))


def read_labelled(url: str) -> Iterator[tuple[str, Labelled]]:
    """(query id, its labelled images) of a run; queries of which none is described are absent.

    Raises Damaged.
    """
    place = open_place(f"{url}/{FOLDER}")
    for entry in sorted(read_entries(place.url), key=lambda entry: entry.name):
        for query, rows in split_by_query(read_table(place, entry.name, schema=PLACES)):
            columns = ("row_id", "position", "score", "place")
            row_ids, positions, scores, places = (rows.column(one).to_numpy() for one in columns)
            record_ids = rows.column("record_id").to_pylist()
            with reading(place, entry.name):
                if places.min() < 0 or (np.diff(places) <= 0).any() or np.isnan(scores).any():
                    raise ValueError(f"the places of {query} do not rise, or a score is no number")
            yield query, Labelled(record_ids, row_ids, positions.astype(np.int64), scores, places)


def labelled_of(
    url: str, shortlist: Manifest, facts: ShortlistFacts, truth: dict[str, str]
) -> tuple[Manifest | None, str]:
    """The manifest of a run's labelled places; where there are none for this shortlist and ground
    truth, None and why, "" where none were ever made.
    """
    place = open_place(f"{url}/{FOLDER}")
    manifest = read_manifest(place)
    if manifest is None:
        return None, "it is not finished; give 'search' again" if place.exists(PLAN_NAME) else ""

    places, queries = read_facts(place.url, manifest, LabelledFacts), "queries"
    excluded = [one.inputs.get("excluded", {}).get("content") for one in (manifest, shortlist)]
    if excluded[0] != excluded[1]:
        return None, "it leaves out other images than the shortlist"
    if input_content(place.url, manifest, "ground_truth") != truth["content"]:
        return None, f"it was made for another ground truth than {truth['url']}"
    searched = [(hint.content, hint.base) for hint in facts.stores]
    if searched != [(hint.content, hint.base) for hint in places.stores] or (
        input_content(place.url, manifest, queries) != input_content(url, shortlist, queries)
    ):
        return None, "it was made for another gallery or other queries than the shortlist"
    return manifest, ""
