"""Plain arrays that grow piece by piece on disk: what NumPy, faiss and any other language read
without this software.

    globals.npy      float32 [n, D], L2 = 1
    record_ids.txt   a record id a line (schemas.image_list), in the same order
    locals/          descriptor.npy [m, W], xy.npy float32 [m, 2] (x, y), scale.npy uint8 [m],
                     strength.npy float32 [m], offset.npy int64 [n + 1]: image i has the entries
                     offset[i] .. offset[i + 1], the strongest first

Written under temporary names and renamed when whole; memory holds the piece that is added, never an
array.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

TEMPORARY = ".tmp"


class GrowingArray:
    """A .npy file of known shape that is filled from its first row on."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.path, self.shape, self.filled = path, shape, 0
        kind = np.dtype(dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(f"{path}{TEMPORARY}", "wb")  # noqa: SIM115  closed by `finish`
        self.dtype = kind.newbyteorder("<") if kind.itemsize > 1 else kind
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, rows: np.ndarray) -> None:
        """Append rows [k, ...] in any dtype. Raises ValueError where they do not fit."""
        if rows.shape[1:] != self.shape[1:] or self.filled + len(rows) > self.shape[0]:
            raise ValueError(
                f"{self.path}: {list(rows.shape)} does not fit into {list(self.shape)} at "
                f"{self.filled}"
            )
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.filled += len(rows)

    def finish(self) -> None:
        """Make the file durable under its name. Raises ValueError where rows are missing."""
        if self.filled != self.shape[0]:
            raise ValueError(f"{self.path}: {self.filled} of {self.shape[0]} rows were written")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(f"{self.path}{TEMPORARY}", self.path)
