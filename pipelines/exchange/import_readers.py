"""What `import`'s workers read, a format a class: one image after the other, none of them kept.

The `images` of a reader give for each image from the plan's row `start` on, in order, what gives
its descriptors: called at once, it raises Unusable where they cannot be taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    """One image's descriptors as a store has them."""

    global_descriptor: np.ndarray
    locals: ImportedLocals | None
    bytes: int = 0  # of the files that hold them alone


Taken = Callable[[], ImportedImage]


class DelgReader:
    """Pairs of `.delg_global` and `.delg_local`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.place = options, open_place(options["input"])
        self.scales = tuple(options["scales"])
        self.crops = options["take"] == "queries" and options["queries_cropped"]

    def images(
        self, start: int, references: Sequence[ImageReference], stems: Sequence[bytes | None]
    ) -> Iterator[Taken]:
        """Each from its own files, by their stems."""
        for reference, stem in zip(references, stems, strict=True):
            yield partial(self._image, reference, None if stem is None else os.fsdecode(stem))

    def _image(self, reference: ImageReference, stem: str | None) -> ImportedImage:
        if stem is None:
            raise Unusable(f"no {delg.GLOBAL_SUFFIX} of this name is there", "missing")

        data = self._read(stem, delg.GLOBAL_SUFFIX)
        with _in_file(delg.GLOBAL_SUFFIX):
            described = unit_global(delg.parse_global(data), self.options["global_dim"])
        if not self.options["local_dim"]:
            return ImportedImage(described, None, len(data))

        local = self._read(stem, delg.LOCAL_SUFFIX)
        with _in_file(delg.LOCAL_SUFFIX):
            taken = delg.locals_of(
                delg.parse_local(local),
                dimension=self.options["local_dim"],
                most=self.options["max_locals"],
                scales=self.scales,
                scale_field=self.options["scale_field"],
            )
        if self.crops and reference.box:
            # DELG crops at whole pixels and counts from the crop's corner
            corner = np.array([round(reference.box[0]), round(reference.box[1])], np.float32)
            taken = replace(taken, xy=taken.xy + corner)
        return ImportedImage(described, taken, len(data) + len(local))

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


@contextlib.contextmanager
def _in_file(suffix: str) -> Iterator[None]:
    try:
        yield
    except Unusable as error:
        raise Unusable(f"{suffix}: {error.reason}", error.error_class) from None


class MatrixReader:
    """A matrix of globals, with AMES's locals or those of flat arrays; row k is image k."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.scales = options, tuple(options["scales"])
        self.matrix = matrix_of(options, options["rows"])
        self.ames = AmesFile(options["input"]) if options["format"] == "ames" else None
        in_order, folder = options.get("local_order") == "given", options["local_arrays"]
        self.flat = FlatLocals(folder, in_order=in_order) if folder else None
        if (self.matrix.rows, self.matrix.dimension) != (options["rows"], options["global_dim"]):
            raise UserError(
                f"{self.matrix.path} has changed since the import was begun; give --overwrite"
            )

    def images(
        self, start: int, references: Sequence[ImageReference], stems: Sequence[bytes | None]
    ) -> Iterator[Taken]:
        """Each from its row; a block of rows is in memory."""
        a_row = 8 * self.matrix.dimension + (self.ames.row_bytes() if self.ames else 0)
        step = max(1, BLOCK_BYTES // a_row)
        for first in range(start, start + len(references), step):
            last = min(first + step, start + len(references))
            globals_ = self.matrix.read(first, last)
            block = self.ames.read(first, last) if self.ames else None
            for place, described in enumerate(globals_):
                local = None if block is None else block[place]
                yield partial(self._image, first + place, described, local)

    def _image(self, row: int, described: np.ndarray, local: np.ndarray | None) -> ImportedImage:
        vector = unit_global(described, self.options["global_dim"])
        most = self.options["max_locals"]
        if local is not None and self.ames is not None:
            return ImportedImage(vector, self.ames.locals_of(local, most, self.scales))
        if self.flat is not None:
            return ImportedImage(vector, self.flat.locals_of(row, most, len(self.scales)))
        return ImportedImage(vector, None)


Reader = DelgReader | MatrixReader


def open_reader(options: dict[str, Any]) -> Reader:
    """The reader of a job's settings.

    Raises UserError where the input has gone or changed its shape.
    """
    return DelgReader(options) if options["format"] == "delg" else MatrixReader(options)


def matrix_of(options: dict[str, Any], expected: int) -> Matrix:
    """The matrix of globals that options name.

    Raises UserError (schemas.importers.arrays.open_matrix).
    """
    path, kind = options["input"], options["format"]
    if kind == "ames":
        path = options["globals"]
        kind = "npy" if path.endswith(".npy") else "h5"
    return open_matrix(path, kind, options["variable"], options["layout"], expected)
