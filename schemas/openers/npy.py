"""Opening .npy files of any bytes: by memory map, and only where the header fits the file."""

from __future__ import annotations

import math
import os

import numpy as np

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
KINDS = "biuf"


def open_npy(path: str) -> np.ndarray:
    """The array of a file of numbers, mapped for reading; nothing of its size is allocated.

    Raises OSError, and ValueError for what is no such file: objects, which run code when they are
    read, structures, a header that claims more or fewer bytes than follow it.
    """
    with open(path, "rb") as file:
        shape, columns, kind = read_header(file, os.fstat(file.fileno()).st_size)
        start = file.tell()

    order = "F" if columns else "C"
    if not math.prod(shape):
        return np.zeros(shape, kind, order)  # type: ignore[call-overload]

    return np.memmap(path, kind, "r", start, shape, order)  # type: ignore[call-overload]


def read_header(file: object, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype of an opened file or member of `size` bytes.

    The file stands behind its header then. Raises ValueError as above.
    """
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    if version not in _HEADERS:
        raise ValueError(
            f"version {version[0]}.{version[1]} of .npy is that of structures, not of a matrix of "
            "numbers"
        )

    shape, columns, kind = _HEADERS[version](file)  # type: ignore[arg-type]
    if kind.kind not in KINDS:
        raise ValueError(f"it holds {kind}; it must be a matrix of numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"its header claims the shape {list(shape)}")

    held = size - file.tell()  # type: ignore[attr-defined]
    if math.prod(shape) * kind.itemsize != held:
        raise ValueError(f"its header claims {kind} {list(shape)}, but its data are {held:,} bytes")

    return shape, columns, kind
