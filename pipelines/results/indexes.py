"""Opening the search files of an index."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from pipelines.jobs.manifests import read_entries
from pipelines.storage.place import open_place
from schemas.manifest import Manifest


def open_search(url: str) -> tuple[Manifest, list[str]]:
    """The manifest of an index and the names of its search files. Raises UserError."""
    from pipelines.jobs.manifests import require_manifest

    manifest = require_manifest(f"{url}/search", "index", "index")
    return manifest, [entry.name for entry in read_entries(f"{url}/search")]


def read_search_file(url: str, name: str) -> Any:
    """A search file in memory."""
    import faiss

    place = open_place(f"{url}/search")
    if place.local:
        return faiss.read_index(place.path(name))
    return faiss.deserialize_index(
        np.frombuffer(io.BytesIO(place.read(name)).getbuffer(), np.uint8)
    )
