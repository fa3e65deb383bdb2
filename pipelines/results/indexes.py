"""Opening the files of an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.jobs.facts import IndexFacts
from pipelines.jobs.manifests import read_entries, read_facts, require_manifest
from pipelines.storage.place import open_place
from pipelines.storage.tables import reading
from schemas.manifest import Manifest


@dataclass(frozen=True)
class SearchedIndex:
    """An index as `search` sees it: its folder, manifest, facts, the names of its files, and the
    bytes of the largest.
    """

    url: str
    manifest: Manifest
    facts: IndexFacts
    files: list[str]
    largest: int


def open_search(url: str) -> SearchedIndex:
    """The search files of an index. Raises UserError."""
    folder = open_place(f"{url}/search").url
    manifest = require_manifest(folder, "index", "index")
    facts = read_facts(folder, manifest, IndexFacts)
    entries = read_entries(folder)
    largest = max((entry.bytes for entry in entries), default=0)
    return SearchedIndex(folder, manifest, facts, [entry.name for entry in entries], largest)


def read_index(url: str, name: str) -> Any:
    """A faiss index in memory, from a file of one of an index's folders. Raises Damaged."""
    import faiss

    place = open_place(url)
    with reading(place, name):
        if place.local and not place.exists(name):
            raise FileNotFoundError
        if place.local:
            return faiss.read_index(place.path(name))
        return faiss.deserialize_index(np.frombuffer(place.read(name), np.uint8))
