"""Recipes, contents, completion markers and manifests: what names and proves every output.

Two identities (docs/architecture.md):

* the *recipe* decides skip or refuse: stage, schema version, model, options that change bytes, and
  the content of inputs;
* the *content* is the hash of the sorted (file name, SHA-256) list of what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from schemas.inside import check_inside, read_json, read_strictly

MANIFEST_SCHEMA = "rrt-manifest/1"
MARKER_SCHEMA = "rrt-marker/1"
MANIFEST_NAME = "manifest.json"
PARTS_NAME = "parts.parquet"

PARTS = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),  # the work unit that wrote the file
        pa.field("name", pa.string(), nullable=False),  # path below the output's folder
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        # JSON: HDF5 byte offsets; "" for other files
        pa.field("layout", pa.string(), nullable=False),
    ]
)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a recipe's canonical JSON."""
    return sha256_text(canonical_json(recipe))


def read_record(data: bytes, schema: str) -> dict[str, Any]:
    """A JSON object without its key "schema". Raises ValueError where it is of another schema."""
    value = read_json(data)
    made_by = value.pop("schema", None) if isinstance(value, dict) else None
    if made_by != schema:
        raise ValueError(f"its schema is {made_by!r}, this software reads {schema!r}")

    return value


@dataclass(frozen=True)
class FileEntry:
    """One data file of an output: its path below the folder, SHA-256 (hex), byte layout."""

    name: str
    rows: int
    bytes: int
    sha256: str
    layout: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_inside(self.name)
        if self.rows < 0 or self.bytes < 0:
            raise ValueError(f"{self.name} has {self.rows} rows and {self.bytes} bytes")


@dataclass(frozen=True)
class Counts:
    """inputs = succeeded + failed, always."""

    inputs: int
    succeeded: int
    failed: int = 0

    def __post_init__(self) -> None:
        if self.inputs != self.succeeded + self.failed:
            raise ValueError(
                f"{self.inputs} inputs are not {self.succeeded} succeeded + {self.failed} failed"
            )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.inputs + other.inputs, self.succeeded + other.succeeded, self.failed + other.failed
        )


Note = int | str
LEAST = "least_"  # how the name of a note begins, of which the least counts and not the sum


def summed_notes(noted: Iterable[Mapping[str, Note]]) -> dict[str, Note]:
    """The notes of an output's units as one: numbers added up, of texts the first."""
    total: dict[str, Note] = {}
    for notes in noted:
        for name, note in notes.items():
            before = total.get(name)
            if isinstance(note, int) and isinstance(before, int):
                note = min(note, before) if name.startswith(LEAST) else note + before
            total[name] = note if isinstance(note, int) or before is None else before
    return total


@dataclass(frozen=True)
class Marker:
    """A completed unit: what it was, what it wrote. Made by exclusive create, after the files."""

    unit: str
    recipe: str  # recipe hash of the job
    slice: str  # hash of the unit's slice of the plan
    files: tuple[FileEntry, ...]
    counts: Counts
    summary: dict[str, Any] = field(default_factory=dict)  # small results, part of the identity
    seconds: float = 0.0
    host: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)  # to be reported; outside the identity
    worker: dict[str, str] = field(default_factory=dict)  # the process: run, engine, worker, pid

    def __post_init__(self) -> None:
        if min(self.counts.succeeded, self.counts.failed) < 0:
            raise ValueError(
                f"it counts {self.counts.succeeded} succeeded and {self.counts.failed} failed"
            )

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        value = {"schema": MARKER_SCHEMA, **asdict(self)}
        for name in ("notes", "worker"):  # older markers have none
            if not value[name]:
                del value[name]
        return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> Marker | None:
        """The marker; None where the bytes are no marker: an unreadable one counts as absent."""
        try:
            return Marker.decoded(data)
        except ValueError:
            return None

    @staticmethod
    def decoded(data: bytes) -> Marker:
        """The marker. Raises ValueError, with the place of what is wrong."""
        return read_strictly(read_record(data, MARKER_SCHEMA), Marker)


def content_hash(files: Iterable[FileEntry], summaries: Mapping[str, Any] | None = None) -> str:
    """Hash of the sorted (file name, SHA-256) list; wall times and versions are outside it."""
    listed = sorted((entry.name, entry.sha256) for entry in files)
    return sha256_text(canonical_json([listed, dict(summaries or {})]))


def parts_table(markers: Iterable[Marker]) -> pa.Table:
    """All files of an output as a table of schema PARTS, sorted by unit, then name."""
    rows = [
        {
            "unit": marker.unit,
            "name": entry.name,
            "rows": entry.rows,
            "bytes": entry.bytes,
            "sha256": entry.sha256,
            "layout": canonical_json(entry.layout) if entry.layout else "",
        }
        for marker in sorted(markers, key=lambda marker: marker.unit)
        for entry in sorted(marker.files, key=lambda entry: entry.name)
    ]
    return pa.Table.from_pylist(rows, schema=PARTS)


def entries_of(table: pa.Table) -> list[FileEntry]:
    """The file entries of a PARTS table, in its order.

    Raises ValueError where it is none, or names what no file of an output can be called.
    """
    if table.schema.names != PARTS.names or table.schema.types != PARTS.types:
        raise ValueError(f"its columns are not {', '.join(PARTS.names)}")
    if any(column.null_count for column in table.columns):
        raise ValueError("it has rows without a value")

    return [
        FileEntry(
            name=row["name"],
            rows=row["rows"],
            bytes=row["bytes"],
            sha256=row["sha256"],
            layout=read_strictly(read_json(row["layout"]), dict) if row["layout"] else None,
        )
        for row in table.to_pylist()
    ]


@dataclass(frozen=True)
class Manifest:
    """A finished output. Written last, by the driver alone."""

    stage: str
    recipe: dict[str, Any]
    recipe_hash: str
    content: str
    inputs: dict[str, dict[str, str]]  # name -> {"url", "content"}
    counts: Counts
    facts: dict[str, Any]  # the stage's own, for readers (dimensions, scales, search files ...)
    parts: dict[str, Any]  # {"name", "sha256", "files", "bytes"}
    versions: dict[str, str]
    made_at: str  # ISO 8601, UTC
    wall_seconds: float
    work_seconds: float  # summed over the units

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        value = {"schema": MANIFEST_SCHEMA, **asdict(self)}
        return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """The manifest.

        Raises ValueError, with the place of what is wrong, also where the schema is another one.
        """
        return read_strictly(read_record(data, MANIFEST_SCHEMA), Manifest)
