"""JPEG files that end too early: how many of their rows are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

END = b"\xff\xd9"
_FILLER = bytes(1 + 97 * number * number % 251 for number in range(4096))  # without marker bytes


def whole_rows(
    data: bytes, decode: Callable[[bytes], npt.NDArray[np.uint8]]
) -> tuple[npt.NDArray[np.uint8], int]:
    """Pixels of a JPEG without its end, and how many rows from the top are the file's own.

    decode  gives uint8 [H, W, ...] of a file that has its end marker

    What lies behind the end decides rows that are not there, and no other: they are found by
    decoding once with nothing, and once with noise behind it.
    """
    pixels, other = decode(data + END), decode(data + _FILLER + END)
    differing = (row for row in range(len(pixels)) if (pixels[row] != other[row]).any())
    return pixels, next(differing, len(pixels))
