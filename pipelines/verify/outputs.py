"""The output folders at or below a place, each with its own files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from pipelines.verify.problems import Report
from schemas.layout import BESIDE_NAME, NEXT, PLAN_NAME, SWAP_NAME
from schemas.manifest import MANIFEST_NAME, PARTS_NAME, FileEntry, Manifest, Marker, content_hash
from schemas.plan import Unit

TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class Listed:
    """A file that exists: bytes, and when it was written (seconds since 1970; None unknown).

    `link`: it is a link to a folder, and is not followed.
    """

    bytes: int
    written: float | None
    link: bool = False


@dataclass
class Output:
    """What an output folder says of itself, as far as it can be read."""

    place: Place
    folder: str  # below the place that was named
    listing: dict[str, Listed] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)  # to folders
    manifest: Manifest | None = None
    planned: dict[str, Any] | None = None  # the recipe of the plan
    units: dict[str, Unit] = field(default_factory=dict)
    markers: dict[str, Marker] = field(default_factory=dict)  # valid ones, by unit
    pieces: dict[str, Marker] = field(default_factory=dict)  # valid ones, by file name
    parts: dict[str, tuple[str, FileEntry]] = field(default_factory=dict)  # of parts.parquet
    report: Report = field(default_factory=Report)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the plan, else of the manifest."""
        return self.planned or (self.manifest.recipe if self.manifest else {})

    @property
    def missing(self) -> int:
        """Units that are not done yet, of an output that is not finished."""
        return sum(unit not in self.markers for unit in self.units) if self.manifest is None else 0

    @property
    def complete(self) -> bool:
        """Whether each unit has a valid marker."""
        return bool(self.markers) and len(self.markers) >= len(self.units)

    @cached_property
    def expected(self) -> dict[str, tuple[str, FileEntry]]:
        """Each file that must exist, with its unit: of markers, else of pieces or parts.parquet."""
        pieces = [marker for marker in self.pieces.values() if marker.unit not in self.markers]
        files = {name: of for name, of in self.parts.items() if of[0] not in self.markers}
        for marker in (*pieces, *self.markers.values()):
            files.update({entry.name: (marker.unit, entry) for entry in marker.files})
        return files

    def contents(self) -> dict[str, str]:
        """The content hashes of what is complete of parts table and markers, by their names."""
        hashes = {}
        if self.parts and self.manifest is not None:
            entries = [entry for _, entry in self.parts.values()]
            units = self.manifest.facts.get("units")
            hashes[PARTS_NAME] = content_hash(entries, units if isinstance(units, dict) else {})
        if self.complete:
            entries = [entry for marker in self.markers.values() for entry in marker.files]
            summaries = {unit: one.summary for unit, one in self.markers.items() if one.summary}
            hashes["the markers"] = content_hash(entries, summaries)
        return hashes

    def remove(self, name: str) -> None:
        """Remove a file of the listing, which follows no links: nothing behind one is removed."""
        if name in self.listing:
            self.place.remove(name)


def find_outputs(place: Place) -> list[Output]:
    """The folders with a manifest or a plan at or below a place, each with its own files.

    What --overwrite makes beside an output is no output yet: its files are that one's.
    """
    listing = dict(
        _remote_files(place) if isinstance(place, RemotePlace) else _local_files(place.root)
    )
    folders = {
        name[: -len(end)].rstrip("/")
        for name in listing
        for end in (MANIFEST_NAME, PLAN_NAME, f"{NEXT}/{BESIDE_NAME}", f"{NEXT}/{SWAP_NAME}")
        if f"/{name}".endswith(f"/{end}")
    }
    folders -= {folder for folder in folders if f"{folder}/{BESIDE_NAME}" in listing}
    outputs = {
        folder: Output(place.below(folder) if folder else place, folder)
        for folder in sorted(folders)
    }

    for name, listed in sorted(listing.items()):
        above = name
        while above and above not in outputs:
            above = above.rpartition("/")[0]
        if above in outputs:
            below = name[len(above) :].lstrip("/")
            if listed.link:
                outputs[above].links.append(below)
            else:
                outputs[above].listing[below] = listed
    return list(outputs.values())


def _local_files(root: str) -> Iterator[tuple[str, Listed]]:
    for above, folders, names in os.walk(root):
        paths = [os.path.join(above, name) for name in (*names, *folders)]
        for path in paths:
            with contextlib.suppress(OSError):
                about = os.stat(path)
                folder = stat.S_ISDIR(about.st_mode)
                if not folder or os.path.islink(path):
                    listed = Listed(about.st_size, about.st_mtime, folder)
                    yield os.path.relpath(path, root), listed


def _remote_files(place: RemotePlace, folder: str = "") -> Iterator[tuple[str, Listed]]:
    for entry in place.listed(folder):
        last = entry["name"].rstrip("/").rpartition("/")[2]
        name = f"{folder}/{last}" if folder else last
        if entry["type"] == "directory":
            yield from _remote_files(place, name)
        elif not entry["name"].endswith("/"):
            yield name, Listed(int(entry["size"] or 0), _written(entry))


def _written(about: Mapping[str, Any]) -> float | None:
    """When a remote file was written, by whatever name its file system has for that."""
    value = next((about[key] for key in TIMES if about.get(key)), None)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) else None
