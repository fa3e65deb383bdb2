"""What an output folder of any stage says of itself: manifest, plan, markers and parts table,
checked on each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.markers import counted
from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from pipelines.verify.problems import COMMAND, FINISH, REWRITE, Problem
from schemas.layout import (
    IMAGES_NAME,
    JOB_NAME,
    LAYER,
    PIECES,
    PLAN_NAME,
    ROTATION_NAME,
    SOURCE_NAME,
)
from schemas.manifest import (
    MANIFEST_NAME,
    PARTS_NAME,
    Counts,
    FileEntry,
    Manifest,
    Marker,
    content_hash,
    entries_of,
    recipe_hash,
)
from schemas.plan import Unit

FULL = f"local/{LAYER}/"  # locals of all ok rows
PIECE_BYTES = 8_000_000  # read at a time where only a hash is wanted
UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, pa.ArrowException)


@dataclass(frozen=True)
class Listed:
    """A file that is there: bytes, and when it was written (seconds since 1970; None unknown)."""

    bytes: int
    written: float | None


@dataclass
class Output:
    """What an output folder says of itself, as far as it can be read."""

    place: Place
    folder: str
    listing: dict[str, Listed]
    manifest: Manifest | None = None
    units: dict[str, Unit] = field(default_factory=dict)
    markers: dict[str, Marker] = field(default_factory=dict)  # valid ones
    pieces: dict[str, Marker] = field(default_factory=dict)  # by file name
    parts: dict[str, tuple[str, FileEntry]] = field(
        default_factory=dict
    )  # file -> unit, entry; of parts.parquet
    planned: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def expected(self) -> dict[str, tuple[str, FileEntry]]:
        """Each file that must be there, with its unit: of the markers, else of parts.parquet or the
        pieces.
        """
        named = {
            entry.name: (unit, entry)
            for unit, marker in self.markers.items()
            for entry in marker.files
        }
        for marker in self.pieces.values():
            if marker.unit not in self.markers:
                named.update({entry.name: (marker.unit, entry) for entry in marker.files})
        for name, (unit, entry) in self.parts.items():
            if unit not in self.markers:
                named.setdefault(name, (unit, entry))
        return named

    @property
    def missing(self) -> int:
        """Units that are not done yet, of an output that is not finished."""
        return sum(unit not in self.markers for unit in self.units) if self.manifest is None else 0

    def add(self, file: str, what: str, mend: str = REWRITE) -> None:
        """A problem that belongs to no unit."""
        self.problems.append(Problem(file, what, mend=mend))

    def redo(self, unit: str, file: str, what: str) -> None:
        """A problem of a unit."""
        self.problems.append(Problem(file, what, unit))


def find_outputs(place: Place) -> list[Output]:
    """The output folders at or below a place, those with a manifest or a plan, each with its own
    files.
    """
    listing = _listing(place)
    ends = (MANIFEST_NAME, PLAN_NAME)
    folders = {
        name[: -len(end)].rstrip("/")
        for name in listing
        for end in ends
        if f"/{name}".endswith(f"/{end}")
    }
    found = {
        folder: Output(place.below(folder) if folder else place, folder, {})
        for folder in sorted(folders)
    }
    for name, listed in sorted(listing.items()):
        above = name
        while above and above not in found:
            above = above.rpartition("/")[0]
        if above in found:
            found[above].listing[name[len(above) :].lstrip("/")] = listed
    return list(found.values())


def _listing(place: Place, folder: str = "") -> dict[str, Listed]:
    """All files below a folder of a place, by name."""
    found: dict[str, Listed] = {}
    if not isinstance(place, RemotePlace):
        for above, _, names in os.walk(place.path(folder)):
            for path in (os.path.join(above, name) for name in names):
                with contextlib.suppress(OSError):
                    about = os.stat(path)
                    found[os.path.relpath(path, place.root)] = Listed(about.st_size, about.st_mtime)
        return found
    for entry in place.listed(folder):
        last = entry["name"].rstrip("/").rpartition("/")[2]
        name = f"{folder}/{last}" if folder else last
        if entry["type"] == "directory":
            found |= _listing(place, name)
        elif not entry["name"].endswith("/"):
            found[name] = Listed(int(entry["size"] or 0), _written(entry))
    return found


def _written(about: Mapping[str, Any]) -> float | None:
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = about.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
            except ValueError:
                continue
    return None


def read_output(output: Output, pool: ThreadPoolExecutor) -> None:
    """Read and check manifest, plan, markers and parts table; problems are noted."""
    _read_manifest(output)
    _read_plan(output)
    _read_markers(output, pool)
    _read_parts(output)
    _compare(output)


def _read_manifest(output: Output) -> None:
    if MANIFEST_NAME not in output.listing:
        output.add(
            MANIFEST_NAME,
            "it is missing: the output is not finished, or a repair was interrupted",
            FINISH,
        )
        return
    try:
        manifest = Manifest.from_bytes(output.place.read(MANIFEST_NAME))
        if recipe_hash(manifest.recipe) != manifest.recipe_hash:
            output.add(MANIFEST_NAME, "its recipe hash is not that of its recipe")
        output.manifest = manifest
    except UNREADABLE as error:
        output.add(MANIFEST_NAME, f"it cannot be read: {error}")


def _read_plan(output: Output) -> None:
    manifest = output.manifest
    if PLAN_NAME not in output.listing:
        if any(name.startswith("done/") for name in output.listing):
            output.add(PLAN_NAME, "it is missing", COMMAND)
        return
    try:
        planned = json.loads(output.place.read(PLAN_NAME))
        units = {unit["name"]: Unit(**unit) for unit in planned["units"]}
        if recipe_hash(planned["recipe"]) != planned["recipe_hash"]:
            raise ValueError("its recipe hash is not that of its recipe")
    except UNREADABLE as error:
        output.add(PLAN_NAME, f"it is damaged: {error}", COMMAND)
        return
    output.planned, output.units = planned, units
    if manifest is not None and planned["recipe_hash"] != manifest.recipe_hash:
        output.add(MANIFEST_NAME, f"its recipe is not that of {PLAN_NAME}")
    if JOB_NAME in output.listing:
        try:
            job = json.loads(output.place.read(JOB_NAME))
            contents = {name: entry["content"] for name, entry in job["inputs"].items()}
            identity = {
                "stage": job["stage"],
                "schema_version": 1,
                **job["recipe"],
                "inputs": contents,
            }
            if recipe_hash(identity) != planned["recipe_hash"]:
                raise ValueError(f"its recipe is not that of {PLAN_NAME}")
        except (*UNREADABLE, AttributeError) as error:
            output.add(JOB_NAME, f"it is damaged: {error}", COMMAND)
    _check_plan_files(output)


def _check_plan_files(output: Output) -> None:
    """The tables of images and archives are what was listed; the rotation of binary locals is the
    recipe's.
    """
    told: dict[str, str] = {}
    recipe = (output.planned or {}).get("recipe", {})
    if "rotation" in recipe:
        told[ROTATION_NAME] = str(recipe["rotation"])
    if SOURCE_NAME in output.listing:
        try:
            source = json.loads(output.place.read(SOURCE_NAME))
            told |= {IMAGES_NAME: source["images_sha256"], **source.get("files", {})}
        except (*UNREADABLE, AttributeError) as error:
            output.add(SOURCE_NAME, f"it is damaged: {error}", COMMAND)
    for name, expected in told.items():
        if name not in output.listing:
            output.add(name, "it is missing", COMMAND)
            continue
        digest = hashlib.sha256()
        for piece in pieces_of(output.place, name, output.listing[name].bytes):
            digest.update(piece)
        if digest.hexdigest() != expected:
            output.add(name, "its SHA-256 is not the one of the plan", COMMAND)


def _read_markers(output: Output, pool: ThreadPoolExecutor) -> None:
    there = [
        name
        for name in output.listing
        if name.startswith((f"{PIECES}/", "done/")) and name.endswith(".json")
    ]
    units = output.units
    read: Iterable[bytes] = pool.map(output.place.read, there)
    done = set()
    for name, data in zip(there, read, strict=True):
        unit = name.partition("/")[2].removesuffix(".json")
        if name.startswith(f"{PIECES}/"):
            unit = unit.rpartition(".")[0]
        if units and unit not in units:
            continue  # a leftover
        if name.startswith("done/"):
            done.add(unit)
        marker = Marker.from_bytes(data)
        wrong = _marker_wrong(output, unit, data, marker)
        if marker is None or wrong:
            output.redo(unit, name, wrong or "it is no marker")
        elif name.startswith("done/"):
            output.markers[unit] = marker
        else:
            output.pieces[name] = marker
    if output.manifest is not None:  # what is not finished lacks markers, which is no damage
        for unit in units:
            if unit not in done:
                output.redo(unit, f"done/{unit}.json", "the marker is missing")


def _marker_wrong(output: Output, name: str, data: bytes, marker: Marker | None) -> str:
    """What is wrong with a marker, in words; "" where nothing is."""
    if marker is None:
        try:
            Counts(**json.loads(data)["counts"])
        except (KeyError, TypeError):
            return "it is no marker"
        except ValueError as error:
            return str(error) if "inputs are not" in str(error) else "it is damaged: it is no JSON"
        return "it is no marker"
    unit = output.units.get(name)
    if marker.unit != name:
        return f"it is the marker of {marker.unit}"
    recipe = (
        output.planned["recipe_hash"]
        if output.planned
        else output.manifest and output.manifest.recipe_hash
    )
    if recipe and marker.recipe != recipe:
        return "it is of another recipe"
    if unit is not None and marker.slice != unit.slice:
        return "it is of another plan"
    return ""


def _read_parts(output: Output) -> None:
    if output.manifest is None:
        return
    told = output.manifest.parts
    try:
        data = output.place.read(PARTS_NAME)
        if hashlib.sha256(data).hexdigest() != told.get("sha256"):
            output.add(PARTS_NAME, "its SHA-256 is not the one in the manifest")
            return
        table = pq.read_table(io.BytesIO(data))
        entries = entries_of(table)
    except FileNotFoundError:
        output.add(PARTS_NAME, "it is missing")
        return
    except UNREADABLE as error:
        output.add(PARTS_NAME, f"it cannot be read: {error}")
        return
    units = table.column("unit").to_pylist()
    output.parts = {entry.name: (unit, entry) for unit, entry in zip(units, entries, strict=True)}
    sums = {"files": len(entries), "bytes": sum(entry.bytes for entry in entries)}
    for key, value in sums.items():
        if told.get(key) != value:
            output.add(MANIFEST_NAME, f"it says {told.get(key)} {key}; {PARTS_NAME} has {value:,}")
    if content_hash(entries, output.manifest.facts.get("units")) != output.manifest.content:
        output.add(MANIFEST_NAME, f"its content hash is not that of the files in {PARTS_NAME}")


def _compare(output: Output) -> None:
    """Markers against plan, parts table and manifest."""
    for unit, marker in output.markers.items():
        planned = output.units.get(unit)
        wrong = _counts_wrong(
            marker, planned.inputs if planned and not planned.payload.get("open") else 0
        )
        if wrong:
            output.redo(unit, f"done/{unit}.json", wrong)
    for name, marker in output.pieces.items():
        wrong = _counts_wrong(marker, 0)
        if wrong:
            output.redo(marker.unit, name, wrong)
    manifest = output.manifest
    if manifest is None or not output.markers:
        return
    if output.parts:
        named = {
            (unit, entry.name) for unit, marker in output.markers.items() for entry in marker.files
        }
        told = {(unit, name) for name, (unit, _) in output.parts.items() if unit in output.markers}
        for unit, name in sorted(named ^ told):
            has, lacks = ("marker", PARTS_NAME) if (unit, name) in named else (PARTS_NAME, "marker")
            output.redo(
                unit, f"done/{unit}.json", f"{name} is in the {has}, but not in the {lacks}"
            )
        for unit, marker in output.markers.items():
            for entry in marker.files:
                other = output.parts.get(entry.name)
                if other is not None and other[1] != entry:
                    output.redo(
                        unit, f"done/{unit}.json", f"{entry.name} is not told as in {PARTS_NAME}"
                    )
    if len(output.markers) < len(output.units):
        return
    files = [entry for marker in output.markers.values() for entry in marker.files]
    summaries = {unit: marker.summary for unit, marker in output.markers.items() if marker.summary}
    if content_hash(files, summaries) != manifest.content and (
        not output.parts or not output.problems
    ):
        output.add(MANIFEST_NAME, "its content hash is not that of the files in the markers")
    pairs = [(output.units.get(unit), marker) for unit, marker in output.markers.items()]
    counts = sum((counted(unit, m) if unit else m.counts for unit, m in pairs), Counts(0, 0, 0))
    if counts != manifest.counts:
        output.add(
            MANIFEST_NAME,
            f"it counts {_words(manifest.counts)}; the markers sum up to {_words(counts)}",
        )


def _words(counts: Counts) -> str:
    return f"{counts.inputs:,} inputs = {counts.succeeded:,} succeeded + {counts.failed:,} failed"


def _counts_wrong(marker: Marker, inputs: int) -> str:
    """Counts against the plan's inputs (0: unknown) and against the rows of a store's files; ""
    where they fit.
    """
    counts = marker.counts
    if inputs and counts.inputs != inputs:
        return f"it counts {counts.inputs:,} inputs; the plan gave the unit {inputs:,}"
    if min(counts.inputs, counts.succeeded, counts.failed) < 0:
        return f"it counts {_words(counts)}"
    rows: dict[str, int] = {}
    for entry in marker.files:
        kind = FULL if entry.name.startswith(FULL) else entry.name.partition("/")[0]
        rows[kind] = rows.get(kind, 0) + entry.rows
    if "global" not in rows:
        return ""
    for kind, told in (
        ("global", counts.inputs),
        ("failures", counts.failed),
        (FULL, counts.succeeded),
    ):
        if kind in rows and rows[kind] != told:
            return (
                f"it counts {_words(counts)}; its files of {kind.rstrip('/')}/ have "
                f"{rows[kind]:,} rows"
            )
    return ""


def pieces_of(place: Place, name: str, size: int) -> Iterator[bytes]:
    """A file's bytes, a piece at a time."""
    for start in range(0, size, PIECE_BYTES):
        yield place.read_ranges([name], [start], [min(size, start + PIECE_BYTES)])[0]
