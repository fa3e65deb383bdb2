"""Reading what `extract` made: parts of globals, and slices of locals by byte ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.jobs.manifests import as_input, parts_of, read_manifest, require_manifest
from pipelines.storage.byte_sources import read_columns
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table, reading
from rrt_core.extractors import comparable
from schemas import global_descriptors
from schemas.errors import Damaged, UserError
from schemas.global_descriptors import GlobalPart, rows_at
from schemas.image_list import ImageReference, references_of
from schemas.layout import IMAGES_NAME, LAYERS, ROWS_A_PART
from schemas.manifest import MANIFEST_NAME, PARTS_NAME, FileEntry
from schemas.openers.parquet import check_types
from schemas.plan import Unit

MOST_SHARE = 0.5  # of a part's rows that are read one by one
REMOTE_GAP = 256_000  # bytes, which come sooner than a further request
_PART = re.compile(r"part-(\d+)\.")


def part_number(name: str) -> int | None:
    """The number of the part of a store that a file belongs to by its name; None of other files."""
    match = _PART.search(name.rpartition("/")[2])
    return int(match[1]) if match else None


def row_runs(rows: np.ndarray, most_gap: int) -> list[tuple[int, int]]:
    """Runs of ascending rows, first .. last, over gaps of at most `most_gap` other rows."""
    ends = np.flatnonzero(np.diff(rows) > most_gap + 1)
    firsts = rows[np.concatenate([[0], ends + 1])]
    lasts = rows[np.concatenate([ends, [len(rows) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


@dataclass(frozen=True)
class PartIds:
    """Which images a part holds: record ids, and which rows are ok, bool [rows]."""

    record_ids: list[str]
    ok: np.ndarray


@dataclass(frozen=True)
class PartFiles:
    """The files of one part of a store."""

    number: int
    unit: str  # name of the unit that wrote them
    globals: FileEntry
    locals: FileEntry | None
    failures: FileEntry | None
    # further local descriptors, made for a shortlist
    layers: tuple[tuple[Place, FileEntry], ...] = ()


class Store:
    """A finished store.

    `base` places its parts among those of an index: row ids start at base * 4096.
    """

    def __init__(self, url: str, base: int = 0) -> None:
        self.place = open_place(url)
        self.base = base
        self.manifest = require_manifest(url, "store", "extract")
        if self.manifest.facts.get("kind") != "store":
            raise UserError(
                f"{self.place.url} is an output of '{self.manifest.stage}', not a store of "
                f"'extract'"
            )

        with reading(self.place, MANIFEST_NAME):
            self.extractor: dict[str, Any] = dict(self.manifest.recipe["extractor"])
            self.dimension = int(self.extractor["global_dim"])
            self.scales = tuple(float(scale) for scale in self.extractor["scales"])
        self.parts = self._parts()
        self._by_number = {part.number: part for part in self.parts}

    def part(self, number: int) -> PartFiles:
        """The part of a number; archives leave numbers out."""
        return self._by_number[number]

    def makers(self, units: Iterable[Unit]) -> dict[int, Unit]:
        """Part number -> the one of the plan's units that wrote the part."""
        named = {unit.name: unit for unit in units}
        return {part.number: named[part.unit] for part in self.parts if part.unit in named}

    @property
    def described_by(self) -> dict[str, Any]:
        """What of its extractor makes descriptors comparable."""
        return comparable(self.extractor)

    @property
    def span(self) -> int:
        """How many part numbers the store takes up in an index."""
        return max(self._by_number, default=-1) + 1

    @property
    def as_input(self) -> dict[str, str]:
        """What a job records of this store."""
        return as_input(self.place.url, self.manifest)

    def _parts(self) -> list[PartFiles]:
        """Raises Damaged where the list of files is not the manifest's, or no list of parts."""
        listed = parts_of(self.place, self.manifest)
        if listed is None:
            why = "it is missing, or not the one that the manifest names"
            raise Damaged.file(self.place.url, PARTS_NAME, why)

        files: dict[int, dict[str, FileEntry]] = {}
        units: dict[int, str] = {}
        for unit, entry in listed:
            number = part_number(entry.name)
            if number is None:
                why = f"it names {entry.name}, which is no part of a store"
                raise Damaged.file(self.place.url, PARTS_NAME, why)
            files.setdefault(number, {})[entry.name.split("/")[0]] = entry
            units[number] = unit

        for number, kinds in files.items():
            if "global" not in kinds:
                why = f"it names no globals of part {number}"
                raise Damaged.file(self.place.url, PARTS_NAME, why)

        layers = self._layers()
        return [
            PartFiles(
                number,
                units[number],
                kinds["global"],
                kinds.get("local"),
                kinds.get("failures"),
                layers.get(kinds["global"].name, ()),
            )
            for number, kinds in sorted(files.items())
        ]

    def _layers(self) -> dict[str, tuple[tuple[Place, FileEntry], ...]]:
        """Name of a file of globals -> local descriptors of some of its rows, from finished layers.

        A layer counts for the parts whose globals are still those that it was made for. One whose
        manifest or list of files is absent or damaged is being made again: it is not finished.
        """
        layers: dict[str, tuple[tuple[Place, FileEntry], ...]] = {}
        for name in sorted(self.place.folders(LAYERS)):
            place = self.place.below(f"{LAYERS}/{name}")
            try:
                manifest = read_manifest(place)
                if manifest is None or manifest.facts.get("kind") != "layer":
                    continue
                listed = parts_of(place, manifest)
            except UserError:
                continue
            for _, entry in listed or ():
                if entry.name.startswith("local/"):
                    with reading(place, MANIFEST_NAME):
                        globals_name = manifest.facts["globals"][str(part_number(entry.name))]
                        layers[globals_name] = (*layers.get(globals_name, ()), (place, entry))
        return layers

    def read_global(self, part: PartFiles) -> GlobalPart:
        """A part's ids, statuses and descriptors. Raises Damaged."""
        name = part.globals.name
        with reading(self.place, name):
            table = read_table(self.place, name, global_descriptors.PART_COLUMNS)
            self._check_rows(part, len(table))
            read = global_descriptors.part_of(table, self.dimension)
            lengths = np.einsum("nd,nd->n", read.descriptors, read.descriptors, dtype=np.float64)
            for row in np.flatnonzero(read.ok & ~np.isfinite(lengths))[:1]:
                raise ValueError(
                    f"row {row}: the global descriptor of {read.record_ids[row]} is not finite"
                )
            return read

    def reads_whole(self, part: PartFiles, rows: np.ndarray) -> bool:
        """Whether `read_rows` reads the part: many rows are wanted, or its layout is not known."""
        share = len(np.unique(rows)) / max(1, part.globals.rows)
        return part.globals.layout is None or share > MOST_SHARE

    def read_rows(self, part: PartFiles, rows: np.ndarray) -> np.ndarray:
        """The descriptors [n, D] of some rows of a part, in any order, as they are stored.

        Byte ranges are read where few are wanted, else the part. Raises Damaged; ValueError for a
        row that the part does not have.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        entry = part.globals
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < entry.rows:
            raise ValueError(f"row {wanted[-1]} of {entry.rows:,}")
        if entry.layout is None or self.reads_whole(part, wanted):
            return self.read_global(part).descriptors[rows]

        with reading(self.place, entry.name):
            at = rows_at(entry.layout, entry.bytes, entry.rows, self.dimension)
            most_gap = 0 if self.place.local else REMOTE_GAP // at.width
            runs = row_runs(wanted, most_gap)
            spans = [at.span(first, last) for first, last in runs]
            starts, stops = ([span[end] for span in spans] for end in (0, 1))
            data = self.place.read_ranges([entry.name] * len(spans), starts, stops)
            held = np.concatenate([at.of(piece) for piece in data])
            numbers = np.concatenate([np.arange(first, last + 1) for first, last in runs])
            found = held[np.searchsorted(numbers, wanted)]
            lengths = np.einsum("nd,nd->n", found, found, dtype=np.float64)
            for row in wanted[~np.isfinite(lengths)][:1]:
                raise ValueError(f"row {row}: the global descriptor is not finite")
        return found[places]

    @staticmethod
    def _check_rows(part: PartFiles, rows: int) -> None:
        if rows != part.globals.rows:
            raise ValueError(f"it has {rows:,} rows; {PARTS_NAME} says {part.globals.rows:,}")

    def read_ids(self, part: PartFiles) -> PartIds:
        """A part's ids and statuses; the descriptors are not read. Raises Damaged."""
        name = part.globals.name
        with reading(self.place, name):
            table = read_columns(self.place, name, ["record_id", "status"])
            check_types(table, global_descriptors.arrow_schema(self.dimension, "float32"))
            self._check_rows(part, len(table))
        ok = pc.equal(table.column("status"), "ok").to_numpy(zero_copy_only=False)
        return PartIds(table.column("record_id").to_pylist(), np.asarray(ok, bool))

    def row_ids(self, part: PartFiles, rows: np.ndarray) -> np.ndarray:
        """int64 row ids of rows of a part."""
        return (self.base + part.number) * ROWS_A_PART + rows.astype(np.int64)

    def described_ids(self) -> Iterator[str]:
        """The record ids of all described images."""
        yield from (record_id for record_id, _ in self.described_rows())

    def described_rows(self) -> Iterator[tuple[str, int]]:
        """(record id, row id) of all described images, in the order of the parts."""
        for part in self.parts:
            read = self.read_ids(part)
            rows = np.flatnonzero(read.ok)
            ids = (read.record_ids[row] for row in rows)
            yield from zip(ids, self.row_ids(part, rows).tolist(), strict=True)

    def digests(self, record_ids: Iterable[str]) -> dict[str, str]:
        """The SHA-256 (hex) of some images' files, by their record ids; "" where not known."""
        wanted, digests = pa.array(sorted(record_ids), pa.string()), dict[str, str]()
        for part in self.parts if len(wanted) else ():
            table = read_columns(self.place, part.globals.name, ["record_id", "sha256"])
            chosen = table.filter(pc.is_in(table.column("record_id"), wanted))
            columns = (chosen.column(name).to_pylist() for name in ("record_id", "sha256"))
            digests.update(zip(*columns, strict=True))
        return digests

    def read_digests(self, part: PartFiles) -> list[str]:
        """The SHA-256 (hex) of the file of each row of a part; "" where it is not known.

        Raises Damaged.
        """
        name = part.globals.name
        with reading(self.place, name):
            table = read_columns(self.place, name, ["sha256"])
            check_types(table, global_descriptors.arrow_schema(self.dimension, "float32"))
            self._check_rows(part, len(table))
        return list(table.column("sha256").to_pylist())

    def references(self, record_ids: Iterable[str]) -> dict[str, ImageReference]:
        """Where some images of the plan lie; absent are those of archives or of another store."""
        if not self.place.exists(IMAGES_NAME):  # an imported store
            return {}
        table = read_table(self.place, IMAGES_NAME)
        wanted = pa.array(sorted(record_ids), pa.string())
        chosen = references_of(table.filter(pc.is_in(table.column("record_id"), wanted)))
        return {reference.record_id: reference for reference in chosen}
