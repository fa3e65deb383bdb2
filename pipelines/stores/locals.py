"""Reading local descriptors of single images by byte ranges, from the layers of stores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pipelines.storage.protocol import Place
from pipelines.storage.tables import reading
from pipelines.stores.gallery import Gallery
from pipelines.stores.store import PartFiles, Store
from rrt_core.rerankers import Locals
from schemas.errors import UserError
from schemas.layout import ROWS_A_PART
from schemas.local_descriptors import (
    ROTATION,
    byte_range,
    check_layout,
    check_rows,
    decoded,
    from_bytes,
)
from schemas.manifest import FileEntry

# files whose row and offset arrays stay in memory (at most 48 kB each; a rotation is 64 kB)
OFFSETS_KEPT = 256
DATASETS = ("descriptor", "xy", "scale", "strength")


class LocalsFile:
    """One file of local descriptors: which rows it has, and where."""

    def __init__(self, place: Place, entry: FileEntry) -> None:
        if entry.layout is None:
            raise UserError(
                f"{place.url}/{entry.name}: its layout is not known; make the store again"
            )
        self.place, self.entry, self.layout = place, entry, entry.layout
        with reading(place, entry.name):
            self._check_size()
            check_layout(self.layout, entry.bytes)
            spans = [(0, self.layout["row"]["shape"][0]), (0, self.layout["offset"]["shape"][0])]
            self.rows, self.offsets = self._ranges(["row", "offset"], spans)
            check_rows(self.layout, self.rows, self.offsets)

        self.rotation: np.ndarray | None = None  # of binary descriptors
        if ROTATION in self.layout:
            (self.rotation,) = self._ranges([ROTATION], [(0, self.layout[ROTATION]["shape"][0])])

    def _check_size(self) -> None:
        """By size: a cut file gives short reads, which a remote place would try again."""
        size = self.place.size(self.entry.name)
        if size is None:
            raise FileNotFoundError
        if size != self.entry.bytes:
            raise ValueError(f"it has {size:,} bytes, not {self.entry.bytes:,}")

    def slice(self, row: int, most: int) -> tuple[int, int] | None:
        """Entries start .. stop of a row's first locals, at most `most`.

        None where the file has no such row.
        """
        place = int(np.searchsorted(self.rows, row))
        if place >= len(self.rows) or self.rows[place] != row:
            return None
        start, stop = int(self.offsets[place]), int(self.offsets[place + 1])
        return start, min(stop, start + most)

    def read(self, slices: Sequence[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        """The entries of some slices, all in one go: descriptors float32, the others as stored."""
        names = list(DATASETS) * len(slices)
        flat = self._ranges(names, [span for span in slices for _ in DATASETS])
        pieces = [dict(zip(DATASETS, flat[i : i + 4], strict=True)) for i in range(0, len(flat), 4)]
        return [
            {**piece, "descriptor": decoded(piece["descriptor"], self.rotation)} for piece in pieces
        ]

    def _ranges(self, names: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Entries of datasets; no request is made for empty ones."""
        ranges = [
            byte_range(self.layout, name, *span) for name, span in zip(names, spans, strict=True)
        ]
        full = [index for index, (begin, end) in enumerate(ranges) if end > begin]
        with reading(self.place, self.entry.name):
            read = self.place.read_ranges(
                [self.entry.name] * len(full),
                [ranges[index][0] for index in full],
                [ranges[index][1] for index in full],
            )
        data = dict(zip(full, read, strict=True))
        return [
            from_bytes(self.layout, name, data.get(index, b"")) for index, name in enumerate(names)
        ]


class LocalsReader:
    """Reads the locals of single images; keeps the offsets of the files last used."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._files: OrderedDict[tuple[str, str], LocalsFile] = OrderedDict()

    def read(self, row_ids: np.ndarray, globals_read: np.ndarray, most: int) -> list[Locals]:
        """The first `most` locals of each row, with its global descriptor float32 [n, D].

        Raises UserError where a row has no locals on disk.
        """
        locals_of: dict[int, Locals] = {}  # position -> its locals
        for number, positions in self.gallery.locate(row_ids).items():
            store, part = self.gallery.part(number)
            slices: dict[LocalsFile, list[tuple[int, tuple[int, int]]]] = {}
            for position in positions:
                file, span = self._find(store, part, int(row_ids[position]) % ROWS_A_PART, most)
                slices.setdefault(file, []).append((int(position), span))

            for file, wanted in slices.items():
                pieces = file.read([span for _, span in wanted])
                for (position, _), piece in zip(wanted, pieces, strict=True):
                    locals_of[position] = Locals(
                        global_descriptor=globals_read[position],
                        descriptors=piece["descriptor"],
                        xy=piece["xy"],
                        scale=piece["scale"],
                        strength=piece["strength"],
                        scales=store.scales,
                    )

        return [locals_of[position] for position in range(len(row_ids))]

    def _find(
        self, store: Store, part: PartFiles, row: int, most: int
    ) -> tuple[LocalsFile, tuple[int, int]]:
        """The file that holds a row's locals, and where in it."""
        layers = [(store.place, part.locals)] if part.locals else []
        for place, entry in (*layers, *part.layers):
            file = self._file(place, entry)
            span = file.slice(row, most)
            if span is not None:
                return file, span
        record_id = store.read_global(part).record_ids[row]
        raise UserError(
            f"{store.place.url}: {record_id} has no local descriptors; add them with "
            f"'extract --locals-for RUN --out {store.place.url}'"
        )

    def _file(self, place: Place, entry: FileEntry) -> LocalsFile:
        key = (place.url, entry.name)
        if key not in self._files:
            self._files[key] = LocalsFile(place, entry)
            while len(self._files) > OFFSETS_KEPT:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]
