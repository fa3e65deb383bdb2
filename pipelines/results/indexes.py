"""Opening the files of an index."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.jobs.manifests import read_entries, require_manifest
from pipelines.storage.place import open_place
from schemas.manifest import Manifest


def open_search(url: str) -> tuple[Manifest, list[str]]:
    """The manifest of an index and the names of its search files. Raises UserError."""
    manifest = require_manifest(f"{url}/search", "index", "index")
    return manifest, [entry.name for entry in read_entries(f"{url}/search")]


def read_index(url: str, name: str) -> Any:
    """A faiss index in memory, from a file of one of an index's folders."""
    import faiss

    place = open_place(url)
    if place.local:
        return faiss.read_index(place.path(name))
    return faiss.deserialize_index(np.frombuffer(place.read(name), np.uint8))
