"""Where pictures lie now: at the places that the command names, where they were, or beside their
store, as they lay when it was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pipelines.jobs.inputs import places_near
from pipelines.storage.place import open_place
from schemas.errors import UserError


class Whereabouts:
    """Of the files that a store was made of: images, or archives of them.

    given: folders that stand for the recorded ones. home: the store's place.
    """

    def __init__(self, given: Sequence[str], home: str) -> None:
        self.home = home
        self.given = [os.fsencode(open_place(folder).url) for folder in given]
        self._near: dict[bytes, list[bytes]] = {}  # folder -> those beside the store like it

    def of(self, location: bytes, below: bytes = b"") -> Iterator[bytes]:
        """Where a file that lay at `location` may lie now.

        below: its path below the folder of its source, where it has one.
        """
        if not below or not location.endswith(b"/" + below):
            below = location.rpartition(b"/")[2]
        root = location[: -len(below) - 1]
        for folder in (*self.given, root, *self._beside(root)):
            yield folder + b"/" + below

    def _beside(self, root: bytes) -> list[bytes]:
        if b"://" in root:  # each try is a request
            return []
        if root not in self._near:
            near = places_near(os.fsdecode(root), self.home)
            self._near[root] = [os.fsencode(folder) for folder in near if os.path.isdir(folder)]
        return self._near[root]


def check_folders(given: Sequence[str]) -> None:
    """Raise UserError where a folder that the command names is not there."""
    for folder in given:
        if not open_place(folder).is_folder():
            raise UserError(f"report: --images {folder}: there is no such folder")


def why_unreadable(location: bytes, below: bytes, error: OSError) -> str:
    """Why a picture cannot be read, in words: its whole folder may be gone."""
    root = location.removesuffix(b"/" + below)
    if root.startswith(b"/") and not os.path.isdir(root):
        return f"{os.fsdecode(root)}: no such folder"
    return f"{os.fsdecode(location)}: {error.strerror or error}"
