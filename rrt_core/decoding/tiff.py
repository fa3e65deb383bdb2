"""TIFF files before they are decoded: what they declare, and what Pillow and libtiff pass over.

libtiff leaves the memory of rows that a damaged strip lacks as it was; Pillow reads some layouts as
if they were others. Both are refused here, by name.
"""

from __future__ import annotations

from typing import Any

from PIL.TiffImagePlugin import TiffImageFile

from rrt_core.decoding import ccitt
from rrt_core.decoding.error import DecodeError

_COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS = 259, 262, 266, 273
_ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _T4_OPTIONS = 278, 279, 284, 292
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _EXTRA, _SAMPLE_FORMAT = 256, 257, 258, 277, 338, 339

_RAW, _JPEG = 1, 7
_WHITE_IS_ZERO, _RGB, _YCBCR = 0, 2, 6
_MOST_FAX_BYTES = 8_000_000  # followed code by code
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_KINDS = {2: "signed whole numbers", 3: "floating-point numbers"}


class _Tags:
    """The tags that say how pixels are stored, of the types they should have."""

    def __init__(self, file: TiffImageFile) -> None:
        self._tags: Any = file.tag_v2

    def number(self, tag: int, default: int) -> int:
        values = self.numbers(tag)
        return values[0] if values else default

    def numbers(self, tag: int) -> tuple[int, ...]:
        value = self._tags.get(tag, ())
        values = value if isinstance(value, tuple) else (value,)
        return tuple(one for one in values if isinstance(one, int))


def check(file: TiffImageFile, data: bytes, max_pixels: int) -> None:
    """Raise DecodeError where pixels would come out wrong, or memory would be taken without need.

    file        opened, not loaded
    max_pixels  of a tile, as of the picture
    """
    tags = _Tags(file)
    bits, compression = tags.number(_BITS, 1), tags.number(_COMPRESSION, _RAW)
    planar = tags.number(_PLANAR, 1) == 2 and tags.number(_SAMPLES, 1) > 1

    kind = next((_KINDS[one] for one in tags.numbers(_SAMPLE_FORMAT) if one in _KINDS), "")
    if kind or bits > 16:
        what = kind or "whole numbers"
        raise _unsupported(f"its samples are {what} of {bits} bits, of no agreed range")
    if planar and (bits != 8 or tags.number(_PHOTOMETRIC, 0) != _RGB):
        raise _unsupported(f"its samples, of {bits} bits, lie in separate planes")
    if tags.number(_PHOTOMETRIC, 0) == _YCBCR and compression == _RAW:
        raise _unsupported("its pixels are YCbCr without compression")

    width, height = tags.number(_WIDTH, 0), tags.number(_HEIGHT, 0)
    tile = tags.number(_TILE_WIDTH, 0), tags.number(_TILE_HEIGHT, 0)
    offsets, sizes = tags.numbers(_STRIP_OFFSETS), tags.numbers(_STRIP_BYTES)
    if not offsets:
        offsets, sizes = tags.numbers(_TILE_OFFSETS), tags.numbers(_TILE_BYTES)
        if min(tile) < 1 or not offsets:
            raise _damaged("it does not say where its pixels are")
        if tile[0] * tile[1] > max_pixels:
            raise DecodeError(
                f"a tile of the TIFF has {tile[0]} x {tile[1]} pixels, more than the "
                f"{max_pixels:,} of max_pixels",
                "too_large",
            )
        pieces = -(-width // tile[0]) * -(-height // tile[1])
    else:
        tile = width, min(max(1, tags.number(_ROWS_PER_STRIP, height)), height)
        pieces = -(-height // tile[1])

    pieces *= tags.number(_SAMPLES, 1) if planar else 1
    held = len(offsets) if compression == _RAW else min(len(offsets), len(sizes))
    if held < pieces:
        raise _damaged(f"it has {held} of the {pieces} pieces of its pixels")
    if compression in (ccitt.RLE, ccitt.GROUP_3, ccitt.GROUP_4):
        _check_fax(tags, data, tile, height, list(zip(offsets, sizes, strict=False))[:pieces])
    if compression == _JPEG:
        _check_jpegs(data, list(zip(offsets, sizes, strict=False))[:pieces])


def white_is_zero(file: TiffImageFile) -> bool:
    """Whether the smallest sample is white."""
    return _Tags(file).number(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO


def bits_of(file: TiffImageFile) -> int:
    """Bits of a sample."""
    return _Tags(file).number(_BITS, 1)


def premultiplied(file: TiffImageFile) -> bool:
    """Whether the colours are multiplied by their alpha already."""
    return _Tags(file).number(_EXTRA, 0) == 1


def _check_fax(
    tags: _Tags, data: bytes, tile: tuple[int, int], height: int, pieces: list[tuple[int, int]]
) -> None:
    options = tags.number(_T4_OPTIONS, 0)
    if sum(size for _, size in pieces) > _MOST_FAX_BYTES:
        raise DecodeError(
            f"the TIFF has more than {_MOST_FAX_BYTES:,} bytes of fax codes", "too_large"
        )

    reverse = tags.number(_FILL_ORDER, 1) == 2
    compression, striped = tags.number(_COMPRESSION, 0), bool(tags.numbers(_STRIP_OFFSETS))
    for number, (offset, size) in enumerate(pieces):
        strip = data[offset : offset + size]
        rows = min(tile[1], height - number * tile[1]) if striped else tile[1]
        good = ccitt.whole_rows(
            strip.translate(_REVERSED) if reverse else strip,
            tile[0],
            rows,
            compression,
            bool(options & 1),
        )
        if good < rows:
            row = number * tile[1] + good if striped else good
            raise _damaged(f"its fax codes break off at row {row + 1} of {height}")


def _check_jpegs(data: bytes, pieces: list[tuple[int, int]]) -> None:
    for offset, size in pieces:
        if b"\xff\xd9" not in data[max(offset, offset + size - 64) : offset + size]:
            raise DecodeError(
                "the file is truncated: a JPEG within the TIFF has no end", "truncated"
            )


def _unsupported(why: str) -> DecodeError:
    return DecodeError(f"the TIFF cannot be decoded here: {why}; convert it", "unsupported")


def _damaged(why: str) -> DecodeError:
    return DecodeError(f"the TIFF is damaged: {why}", "unreadable")
