"""What `import`'s workers read, a format a class: one image after the other, none of them kept."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.image_list import ImageReference
from schemas.importers import ImportedLocals, Unusable, delg, unit_global
from schemas.importers.ames import AmesFile
from schemas.importers.arrays import FlatLocals, Matrix, open_matrix

BLOCK_BYTES = 64_000_000  # of a matrix that is read at once


@dataclass(frozen=True)
class ImportedImage:
    """One image's descriptors as a store has them; `bytes` of the files that hold them alone, else
    0.
    """

    global_descriptor: np.ndarray
    locals: ImportedLocals | None
    bytes: int = 0


Taken = Callable[[], ImportedImage]  # raises Unusable


class Reader(ABC):
    """An opened input."""

    @abstractmethod
    def images(
        self, start: int, references: Sequence[ImageReference], stems: Sequence[bytes | None]
    ) -> Iterator[Taken]:
        """For each image from the plan's row `start` on, in order, what gives its descriptors;
        called at once.
        """


def open_reader(options: dict[str, Any]) -> Reader:
    """The reader of a job's settings.

    Raises UserError where the input has gone or changed its shape.
    """
    if options["format"] == "delg":
        return DelgReader(options)
    return MatrixReader(options)


class DelgReader(Reader):
    """Pairs of `.delg_global` and `.delg_local`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.place = options, open_place(options["input"])
        self.scales = tuple(options["scales"])
        self.crops = options["take"] == "queries" and options["queries_cropped"]

    def images(
        self, start: int, references: Sequence[ImageReference], stems: Sequence[bytes | None]
    ) -> Iterator[Taken]:
        """As Reader.images."""
        for reference, stem in zip(references, stems, strict=True):
            yield partial(self._image, reference, None if stem is None else os.fsdecode(stem))

    def _image(self, reference: ImageReference, stem: str | None) -> ImportedImage:
        if stem is None:
            raise Unusable(f"no {delg.GLOBAL_SUFFIX} of this name is there", "missing")
        data = self._read(stem, delg.GLOBAL_SUFFIX)
        try:
            described = unit_global(delg.parse_global(data), self.options["global_dim"])
        except Unusable as error:
            raise Unusable(f"{delg.GLOBAL_SUFFIX}: {error.reason}", error.error_class) from None
        if not self.options["local_dim"]:
            return ImportedImage(described, None, len(data))
        local = self._read(stem, delg.LOCAL_SUFFIX)
        try:
            found = delg.locals_of(
                delg.parse_local(local),
                dimension=self.options["local_dim"],
                most=self.options["max_locals"],
                scales=self.scales,
                scale_field=self.options["scale_field"],
            )
        except Unusable as error:
            raise Unusable(f"{delg.LOCAL_SUFFIX}: {error.reason}", error.error_class) from None
        if (
            self.crops and reference.box
        ):  # DELG crops at whole pixels and counts from the crop's corner
            corner = np.array([round(reference.box[0]), round(reference.box[1])], np.float32)
            found = ImportedLocals(
                found.descriptors, found.xy + corner, found.scale, found.strength
            )
        return ImportedImage(described, found, len(data) + len(local))

    def _read(self, stem: str, suffix: str) -> bytes:
        name = stem + suffix
        try:
            size = self.place.size(name)
            if size is None:
                raise Unusable(f"its {suffix} is missing", "missing")
            if size > delg.MOST_BYTES:
                raise Unusable(
                    f"its {suffix} has {size:,} bytes; at most {delg.MOST_BYTES:,} are read",
                    "too_large",
                )
            return self.place.read(name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unusable(f"its {suffix} cannot be read: {reason}", "unreadable") from None


class MatrixReader(Reader):
    """A matrix of globals, with locals of AMES's file or of flat arrays where they are given; row k
    is image k.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.scales = options, tuple(options["scales"])
        self.matrix = matrix_of(options, options["rows"])
        self.ames = AmesFile(options["input"]) if options["format"] == "ames" else None
        self.flat = FlatLocals(options["local_arrays"]) if options["local_arrays"] else None
        if (self.matrix.rows, self.matrix.dimension) != (options["rows"], options["global_dim"]):
            raise UserError(
                f"{self.matrix.path} has changed since the import was begun; give --overwrite"
            )

    def images(
        self, start: int, references: Sequence[ImageReference], stems: Sequence[bytes | None]
    ) -> Iterator[Taken]:
        """As Reader.images; a block of rows is in memory."""
        a_row = 8 * self.matrix.dimension + (self.ames.row_bytes() if self.ames else 0)
        step = max(1, BLOCK_BYTES // a_row)
        for first in range(start, start + len(references), step):
            last = min(first + step, start + len(references))
            globals_ = self.matrix.read(first, last)
            block = self.ames.read(first, last) if self.ames else None
            for place, described in enumerate(globals_):
                yield partial(
                    self._image, first + place, described, None if block is None else block[place]
                )

    def _image(self, row: int, described: np.ndarray, local: np.ndarray | None) -> ImportedImage:
        vector = unit_global(described, self.options["global_dim"])
        found = None
        most = self.options["max_locals"]
        if local is not None and self.ames is not None:
            found = self.ames.locals_of(local, most, self.scales)
        elif self.flat is not None:
            found = self.flat.locals_of(row, most, len(self.scales))
        return ImportedImage(vector, found)


def matrix_of(options: dict[str, Any], expected: int) -> Matrix:
    """The matrix of globals that options name.

    Raises UserError (schemas.importers.arrays.open_matrix).
    """
    path, kind = options["input"], options["format"]
    if kind == "ames":
        path = options["globals"]
        kind = "npy" if path.endswith(".npy") else "h5"
    return open_matrix(path, kind, options["variable"], options["layout"], expected)
