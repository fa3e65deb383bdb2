"""The commit protocol: jobs, units, attempts, markers, manifests (docs/architecture.md, "Commit protocol").

A stage is a chain of *jobs*; a job fills one output folder by deterministic *units*. A worker does one unit at
a time: an `Attempt` gathers finished files, gives them their final name by content and then drops the unit's
marker by exclusive create. The first attempt wins; a loser deletes nothing. What the markers do not name is
rubbish; what they name is done. The driver writes the manifest when every unit has its marker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from pipelines.stages import worker_class
from pipelines.storage import Place, full_disk, sha256_file
from schemas.errors import UserError
from schemas.inside import check_inside, check_unit_name
from schemas.manifest import (
    Counts,
    FileEntry,
    Marker,
    canonical_json,
    recipe_hash,
    sha256_text,
)

PIECES = "pieces"  # folder of the markers of committed pieces
REPAIR_RECORD = "repair/record.json"  # of a repair under way
PACKAGES = ("apache-beam", "torch", "numpy", "pyarrow", "h5py", "pillow", "opencv-python-headless", "faiss-cpu")


@dataclass(frozen=True)
class Unit:
    """A piece of work: its name (also of its marker), what it must know (small JSON), how many inputs.

    Some keys of a payload speak to the driver: "open" (inputs are not known before; "bytes" tells how large it is,
    "rows" how many inputs a piece has), "last" (it waits for all other units) and "again" (its inputs failed in an
    earlier unit and are not counted twice).
    """

    name: str
    payload: dict[str, Any]
    inputs: int

    def __post_init__(self) -> None:
        check_unit_name(self.name)
        if again := self.payload.get("again"):  # the table of the images that are described once more
            check_inside(again)

    @property
    def slice(self) -> str:
        """Identity of the unit's slice of the plan."""
        return sha256_text(canonical_json([self.name, self.payload, self.inputs]))


@dataclass(frozen=True)
class Job:
    """One output folder to be filled.

    `recipe` and the content of `inputs` decide skip or refuse; `settings` are all other options (they never
    change bytes); `worker` is the name of a UnitWorker (pipelines/stages.py); `facts` go into the manifest.
    """

    stage: str
    output: str
    worker: str
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    units: tuple[Unit, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    noun: str = "units"  # what `inputs` of the units counts, for progress: images, queries ...
    most_failed: str = ""  # N or P%: of more failed inputs the job is given up; "" never

    @property
    def identity(self) -> dict[str, Any]:
        """The recipe together with the content of the inputs."""
        contents = {name: entry["content"] for name, entry in self.inputs.items()}
        return {"stage": self.stage, "schema_version": 1, **self.recipe, "inputs": contents}

    @property
    def recipe_hash(self) -> str:
        """Hex SHA-256 of the identity."""
        return recipe_hash(self.identity)

    def to_json(self, units: Sequence[Unit] = ()) -> str:
        """The job with only the given units, for the worker processes."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        value["units"] = [unit.__dict__ for unit in units]
        return json.dumps(value)

    @staticmethod
    def from_json(text: str) -> Job:
        """The inverse of `to_json`."""
        value = json.loads(text)
        value["units"] = tuple(Unit(**unit) for unit in value["units"])
        return Job(**value)


class UnitWorker(ABC):
    """Does units of a job, one at a time. One lives in a process."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Do the unit: hand finished files to `attempt.add` and give the counts."""


def make_worker(job: Job) -> UnitWorker:
    """The worker that the job names. Raises UserError for a name that is in no registry."""
    module, _, name = worker_class(job.worker).partition(":")
    worker: UnitWorker = getattr(importlib.import_module(module), name)(job)
    return worker


class Attempt:
    """One try at a unit. Its scratch folder and its `attempts/` file are its own."""

    def __init__(self, place: Place, job: Job, unit: Unit) -> None:
        self.place, self.job, self.unit = place, job, unit
        self.id = secrets.token_hex(6)
        self.started = time.monotonic()
        self.finished: list[tuple[str, str, int, dict[str, Any] | None, bool]] = []
        self.pieces: list[FileEntry] = []  # files of the pieces that are committed
        self.summary: dict[str, Any] = {}
        earlier = [name for name in place.names("attempts") if name.endswith(".json")]
        self.number = 1 + sum(name.startswith(f"{unit.name}.") for name in earlier)
        self.name = f"attempts/{unit.name}.{self.id}.json"
        self._told = 0.0
        about = {"pid": os.getpid(), "host": socket.gethostname()}
        place.write(self.name, json.dumps(about).encode(), durable=False)
        if place.local:  # on the same disk, so that the final rename is one step
            self.scratch = place.path(f"scratch/{unit.name}.{self.id}")
            os.makedirs(self.scratch)
        else:
            self.scratch = tempfile.mkdtemp(prefix="rrt-")

    def path(self, name: str) -> str:
        """A path in the attempt's scratch folder."""
        return os.path.join(self.scratch, name)

    def add(
        self,
        local_file: str,
        stem: str,
        rows: int,
        layout: dict[str, Any] | None = None,
        *,
        plain_name: bool = False,
    ) -> None:
        """Hand over a finished file, to be ``stem.<hash12>.suffix`` (or exactly `stem`) when the unit commits."""
        self.finished.append((local_file, stem, rows, layout, plain_name))

    def _place_files(self) -> Iterator[FileEntry]:
        """Hash the finished files and bring them to their names."""
        for local_file, stem, rows, layout, plain_name in self.finished:
            digest = sha256_file(local_file)
            base, suffix = os.path.splitext(stem)
            name = stem if plain_name else f"{base}.{digest[:12]}{suffix}"
            size = os.path.getsize(local_file)
            self.place.put(local_file, name)
            yield FileEntry(name, rows, size, digest, layout)

    def tell(self, done: int, failed: int = 0, share: float = 0.0, reason: str = "") -> None:
        """Say how far it is, for progress (at most once a second).

        done, failed  inputs so far;  share  of an open unit's bytes, 0..1;  reason  of the last failure
        """
        now = time.monotonic()
        if self.place.local and now - self._told > 1.0:
            self._told = now
            state = {"done": done, "failed": failed, "share": round(share, 4), "reason": reason}
            path = self.place.path(f"{self.name}.progress")
            with contextlib.suppress(OSError):
                with open(f"{path}.tmp", "w") as file:
                    file.write(json.dumps(state))
                os.replace(f"{path}.tmp", path)

    def read_piece(self, number: int) -> Marker | None:
        """The marker of a piece of this unit that an earlier attempt committed, where it is valid."""
        return _valid_marker(self.place, self.job, self.unit, self._piece_name(number))

    def pieces_from(self, first: int) -> dict[str, Marker | None]:
        """Markers of this unit's committed pieces from the number `first` on, by name; None where one is not valid."""
        found = {}
        for name in self.place.names(PIECES):
            unit, _, number = name.removesuffix(".json").rpartition(".")
            if unit == self.unit.name and number.isdecimal() and int(number) >= first:
                found[f"{PIECES}/{name}"] = _valid_marker(self.place, self.job, self.unit, f"{PIECES}/{name}")
        return found

    def drop_pieces(self, first: int) -> None:
        """Take back the committed pieces from the number `first` on: their markers, then their files."""
        dropped = self.pieces_from(first)
        for name in sorted(dropped, reverse=True):  # the last first: a kill leaves pieces without a gap
            self.place.remove(name)
        for marker in dropped.values():
            for entry in marker.files if marker else ():
                self.place.remove(entry.name)

    def take_piece(self, marker: Marker) -> None:
        """Count a committed piece's files among the unit's."""
        self.pieces += marker.files

    def commit_piece(self, number: int, counts: Counts, summary: dict[str, Any]) -> None:
        """Commit the files added since the last piece, so that they are never made again; `summary` is kept with them.

        What a unit of many pieces is spared by it when it is killed. Earlier attempts no longer count: they ended in an
        earlier piece.
        """
        marker = self._marker(tuple(self._place_files()), counts, summary)
        self.take_piece(self._create(self._piece_name(number), marker))
        self.finished.clear()
        for name in self.place.names("attempts"):
            if name.startswith(f"{self.unit.name}.") and self.id not in name:
                self.place.remove(f"attempts/{name}")
        self.number = 1

    def _piece_name(self, number: int) -> str:
        return f"{PIECES}/{self.unit.name}.{number:05}.json"

    def commit(self, counts: Counts) -> Marker:
        """Bring the files to their names, then drop the marker.

        Where another attempt was first, its marker is the one that counts.
        """
        marker = self._marker((*self.pieces, *self._place_files()), counts, self.summary)
        return self._create(marker_name(self.unit), marker)

    def _marker(self, files: tuple[FileEntry, ...], counts: Counts, summary: dict[str, Any]) -> Marker:
        return Marker(
            unit=self.unit.name,
            recipe=self.job.recipe_hash,
            slice=self.unit.slice,
            files=files,
            counts=counts,
            summary=summary,
            seconds=round(time.monotonic() - self.started, 3),
            host=socket.gethostname(),
            versions=software_versions(),
        )

    def _create(self, name: str, marker: Marker) -> Marker:
        """Create a marker exclusively; gives the one that counts."""
        while not self.place.create(name, marker.to_bytes()):
            other = _valid_marker(self.place, self.job, self.unit, name)
            if other is not None:
                return other
            self.place.remove(name)  # an unreadable marker counts as absent
        return marker

    def close(self, *, failed: bool = False) -> None:
        """End this attempt. A failed one stays written down and counts, like one whose process was killed."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.place.local:
            self.place.remove(f"{self.name}.progress")
        if not failed:
            self.place.remove(self.name)


def do_unit(worker: UnitWorker, unit: Unit) -> bool:
    """Do a unit from attempt to marker; an exception is written to `errors/`, not raised. True if done."""
    return begin_unit(worker, unit)()


def begin_unit(worker: UnitWorker, unit: Unit) -> Callable[[], bool]:
    """Do a unit's work; what is given back commits it, and may do so in a thread while the next one is begun.

    Exceptions are written to `errors/`, here as there. The commit tells whether the unit is done.
    """
    place = Place(worker.job.output)
    if read_marker(place, worker.job, unit) is not None:
        return lambda: True
    attempt: Attempt | None = None
    try:
        attempt = Attempt(place, worker.job, unit)
        counts = worker.do(unit, attempt)
    except Exception as error:  # noqa: BLE001  whatever a stage or an extractor raises is the driver's to judge
        _fail(place, unit, attempt, error)
        return lambda: False
    begun = attempt

    def commit() -> bool:
        try:
            begun.commit(counts)
            begun.close()
        except Exception as error:  # noqa: BLE001  as above
            _fail(place, unit, begun, error)
            return False
        return True

    return commit


def _fail(place: Place, unit: Unit, attempt: Attempt | None, error: Exception) -> None:
    if attempt is not None:
        with contextlib.suppress(UserError):  # a place that does not answer: its first error is what counts
            attempt.close(failed=not _final(error, place))
    write_error(place, unit.name, error)


def _final(error: Exception, place: Place) -> UserError | None:
    """The user's mistake, or the disk's refusal, behind an error: no retry mends it."""
    if isinstance(error, UserError):
        return error
    return full_disk(error, place.url) if isinstance(error, OSError) else None


def write_error(place: Place, unit: str, error: Exception) -> None:
    """Write a unit's exception down for the driver: a sentence, whether a retry is of use, the traceback."""
    final = _final(error, place)
    record = {
        "unit": unit,
        "sentence": str(final) if final else f"{type(error).__name__}: {error}",
        "final": final is not None,
        "later": final is not None and not final.at_once,
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError, UserError):  # a full disk: the driver finds it out by itself
        place.write(f"errors/{unit}.json", json.dumps(record).encode(), durable=False)


def marker_name(unit: Unit) -> str:
    """Where a unit's marker lies."""
    return f"done/{unit.name}.json"


def read_marker(place: Place, job: Job, unit: Unit) -> Marker | None:
    """The unit's marker where it is valid: readable, of this recipe and slice, its files in place."""
    return _valid_marker(place, job, unit, marker_name(unit))


def _valid_marker(place: Place, job: Job, unit: Unit, name: str) -> Marker | None:
    try:
        marker = Marker.from_bytes(place.read(name))
    except (FileNotFoundError, IsADirectoryError):
        return None
    if marker is None or marker.recipe != job.recipe_hash or marker.slice != unit.slice:
        return None
    if any(place.size(entry.name) != entry.bytes for entry in marker.files):
        return None
    return marker


@cache
def software_versions() -> dict[str, str]:
    """Versions of what can change bytes, with the Python and the CPU type."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
