"""Reading what `extract` made: parts of globals, and slices of locals by byte ranges."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.commit import as_input, require_manifest
from pipelines.storage import Place
from rrt_core.rerankers import Locals
from schemas import global_descriptors
from schemas.errors import UserError
from schemas.global_descriptors import GlobalPart
from schemas.image_list import ImageReference, references_of
from schemas.local_descriptors import byte_range, decoded, from_bytes
from schemas.manifest import PARTS_NAME, FileEntry, entries_of
from schemas.shortlist import ROWS_A_PART

OFFSETS_KEPT = 256  # parts whose row and offset arrays stay in memory (at most 48 kB each)


@dataclass(frozen=True)
class PartFiles:
    """The files of one part of a store."""

    number: int
    globals: FileEntry
    locals: FileEntry | None
    failures: FileEntry | None


class Store:
    """A finished store. `base` places its parts among those of an index: row ids start at base * 4096."""

    def __init__(self, url: str, base: int = 0) -> None:
        self.place = Place(url)
        self.base = base
        self.manifest = require_manifest(url, "store", "extract")
        if self.manifest.facts.get("kind") != "store":
            raise UserError(f"{self.place.url} is an output of '{self.manifest.stage}', not a store of 'extract'")
        self.extractor: dict[str, Any] = self.manifest.recipe["extractor"]
        self.dimension = int(self.extractor["global_dim"])
        self.scales = tuple(float(scale) for scale in self.extractor["scales"])
        self.parts = self._parts()

    @property
    def as_input(self) -> dict[str, str]:
        """What a job records of this store."""
        return as_input(self.place.url, self.manifest)

    def _parts(self) -> list[PartFiles]:
        table = pq.read_table(io.BytesIO(self.place.read(PARTS_NAME)))
        files: dict[int, dict[str, FileEntry]] = {}
        for unit, entry in zip(table.column("unit").to_pylist(), entries_of(table), strict=True):
            kind = entry.name.split("/")[0]
            files.setdefault(int(unit.removeprefix("part-")), {})[kind] = entry
        return [
            PartFiles(number, kinds["global"], kinds.get("local"), kinds.get("failures"))
            for number, kinds in sorted(files.items())
        ]

    def read_global(self, part: PartFiles) -> GlobalPart:
        """A part's ids, statuses and descriptors."""
        return global_descriptors.read_part(io.BytesIO(self.place.read(part.globals.name)))

    def row_ids(self, part: PartFiles, rows: np.ndarray) -> np.ndarray:
        """int64 row ids of rows of a part."""
        return (self.base + part.number) * ROWS_A_PART + rows.astype(np.int64)

    def references(self, record_ids: Iterable[str]) -> dict[str, ImageReference]:
        """Where some images of the plan lie; ids that are not of this store are absent."""
        table = pq.read_table(io.BytesIO(self.place.read("plan/images.parquet")))
        wanted = pa.array(sorted(record_ids), pa.string())
        found = references_of(table.filter(pc.is_in(table.column("record_id"), wanted)))
        return {reference.record_id: reference for reference in found}


def open_stores(inputs: Sequence[dict[str, Any]]) -> list[Store]:
    """The stores that an index names, with their bases. Raises UserError where one was made again since."""
    stores = []
    for entry in inputs:
        store = Store(entry["url"], int(entry["base"]))
        if store.manifest.content != entry["content"]:
            raise UserError(f"{store.place.url} was made again since it was indexed; run 'index' again")
        stores.append(store)
    return stores


class Gallery:
    """Stores side by side in one space of row ids."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self._by_part = {store.base + part.number: (store, part) for store in stores for part in store.parts}

    def locate(self, row_ids: np.ndarray) -> dict[int, np.ndarray]:
        """Global part number -> which positions of `row_ids` lie in it, parts ascending."""
        parts = np.asarray(row_ids) // ROWS_A_PART
        return {int(part): np.flatnonzero(parts == part) for part in np.unique(parts)}

    def part(self, number: int) -> tuple[Store, PartFiles]:
        """The store and files of a global part number."""
        return self._by_part[number]

    def read_globals(self, row_ids: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Record ids and descriptors float32 [n, D] of rows; each part is read once."""
        names = [""] * len(row_ids)
        descriptors = np.zeros((len(row_ids), self.stores[0].dimension), np.float32)
        for number, positions in self.locate(row_ids).items():
            read = self.part(number)[0].read_global(self.part(number)[1])
            rows = np.asarray(row_ids)[positions] % ROWS_A_PART
            descriptors[positions] = read.descriptors[rows]
            for position, row in zip(positions, rows, strict=True):
                names[position] = read.record_ids[row]
        return names, descriptors


class LocalsReader:
    """Reads the locals of single images by byte ranges; keeps the offsets of the parts last used."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._offsets: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def read(self, row_ids: np.ndarray, globals_read: np.ndarray, most: int) -> list[Locals]:
        """The `most` strongest locals of each row, with its global descriptor float32 [n, D].

        Raises UserError where a row has no locals on disk.
        """
        found: list[Locals | None] = [None] * len(row_ids)
        for number, positions in self.gallery.locate(row_ids).items():
            store, part = self.gallery.part(number)
            if part.locals is None or part.locals.layout is None:
                raise UserError(f"{store.place.url}: part {part.number} holds no local descriptors")
            slices = self._slices(number, np.asarray(row_ids)[positions] % ROWS_A_PART, most)
            pieces = self._read_slices(store, part.locals, slices)
            for position, piece in zip(positions, pieces, strict=True):
                found[position] = Locals(
                    global_descriptor=globals_read[position],
                    descriptors=decoded(piece["descriptor"]),
                    xy=piece["xy"],
                    scale=piece["scale"],
                    strength=piece["strength"],
                    scales=store.scales,
                )
        return [item for item in found if item is not None]

    def _slices(self, number: int, rows: np.ndarray, most: int) -> list[tuple[int, int]]:
        """Entries start .. stop of each row in the part's datasets, the strongest first, at most `most`."""
        stored, offsets = self._part_offsets(number)
        places = np.searchsorted(stored, rows)
        slices = []
        for row, place in zip(rows, places, strict=True):
            if place >= len(stored) or stored[place] != row:
                store, part = self.gallery.part(number)
                raise UserError(f"{store.place.url}: row {row} of part {part.number} has no local descriptors")
            start, stop = int(offsets[place]), int(offsets[place + 1])
            slices.append((start, min(stop, start + most)))
        return slices

    def _part_offsets(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._offsets:
            store, part = self.gallery.part(number)
            assert part.locals is not None and part.locals.layout is not None
            layout = part.locals.layout
            spans = [(0, layout["row"]["shape"][0]), (0, layout["offset"]["shape"][0])]
            row, offset = _ranges(store, part.locals, ["row", "offset"], spans)
            self._offsets[number] = (row, offset)
            while len(self._offsets) > OFFSETS_KEPT:
                self._offsets.popitem(last=False)
        self._offsets.move_to_end(number)
        return self._offsets[number]

    @staticmethod
    def _read_slices(
        store: Store, entry: FileEntry, slices: Sequence[tuple[int, int]]
    ) -> list[dict[str, np.ndarray]]:
        names = ["descriptor", "xy", "scale", "strength"]
        flat = _ranges(store, entry, names * len(slices), [span for span in slices for _ in names])
        return [dict(zip(names, flat[i : i + 4], strict=True)) for i in range(0, len(flat), 4)]


def _ranges(
    store: Store, entry: FileEntry, names: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Entries of datasets of one file; empty ones are not asked for."""
    assert entry.layout is not None
    ranges = [byte_range(entry.layout, name, *span) for name, span in zip(names, spans, strict=True)]
    full = [index for index, (begin, end) in enumerate(ranges) if end > begin]
    read = store.place.read_ranges(
        [entry.name] * len(full), [ranges[index][0] for index in full], [ranges[index][1] for index in full]
    )
    data = dict(zip(full, read, strict=True))
    return [from_bytes(entry.layout, name, data.get(index, b"")) for index, name in enumerate(names)]

