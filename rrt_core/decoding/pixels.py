"""From an opened image file to 8-bit RGB as it is stored, a band of rows at a time.

In bands, so that of a large picture no second copy is made on the way.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from rrt_core.decoding import jpeg, png, tiff
from rrt_core.decoding.error import DecodeError

Pixels = npt.NDArray[np.uint8]
Rows = Callable[[int, int], Pixels]  # the rows from, to: uint8 [to - from, W, 3]

_ORIENTATION_TAG = 0x0112
_SCALED = {"L;2": 85, "L;4": 17}  # PNG's greys of few bits
_BAND = 500_000  # pixels that are converted at once
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def plugin(data: bytes, kind: str) -> PillowImage.Image:
    """The opened file, not loaded, by Pillow's reader of a format: it says itself what is wrong."""
    if kind == "HEIF":
        from pillow_heif import register_heif_opener  # an extra; a large library

        register_heif_opener()
    PillowImage.init()
    file: PillowImage.Image = PillowImage.OPEN[kind][0](io.BytesIO(data), "")
    return file


def is_deep(file: PillowImage.Image) -> bool:
    """Whether the file has 16 bits a sample, of which Pillow would keep 8."""
    return file.mode in ("RGB", "RGBA", "CMYK") and ";16" in _raw_mode(file)


class Loaded(NamedTuple):
    """A loaded picture.

    rows         what gives its rows as they are stored
    own_rows     the share of its rows that are the file's own; below 1 where a JPEG was cut off
    orientation  how it is to be turned, as EXIF numbers it
    """

    rows: Rows
    own_rows: float
    orientation: int


def load(file: PillowImage.Image, data: bytes, kind: str, min_rows: float) -> Loaded:
    """Load an opened file. Raises whatever the file's reader does.

    min_rows  the least share of rows of a JPEG that was cut off; below, DecodeError is raised
    """
    if is_deep(file):
        rows, orientation = _deep_rows(file, data, kind)
        return Loaded(rows, 1.0, orientation)
    raw_mode = _raw_mode(file)
    try:
        file.load()
    except OSError as error:
        if not isinstance(file, JpegImageFile) or "truncated" not in str(error):
            raise
        rows, own_rows = _cut_rows(file, data, min_rows)
        return Loaded(rows, own_rows, _orientation(file))

    clear = png.transparent_colour(data) if kind == "PNG" and file.mode != "P" else ()
    if clear and raw_mode in _SCALED:  # Pillow scales the pixels alone
        file.info["transparency"] = clear[0] * _SCALED[raw_mode]
    rows = partial(_converted, file, clear)
    return Loaded(rows, 1.0, _orientation(file))


def _orientation(file: PillowImage.Image) -> int:
    # After loading: Pillow turns TIFF upright by itself while it loads, and a PNG may carry EXIF
    # behind its pixels.
    try:
        return int(file.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  a broken EXIF block does not make the pixels worse
        return 1


def fill(out: Pixels, rows: Rows) -> None:
    """Write all rows into an array [H, W, 3], which may be a turned view of another."""
    height, width = out.shape[:2]
    step = max(1, _BAND // max(1, width))
    for first in range(0, height, step):
        out[first : first + step] = rows(first, min(first + step, height))


def _converted(file: PillowImage.Image, clear: tuple[int, ...], first: int, last: int) -> Pixels:
    whole = first == 0 and last == file.height
    band = file if whole else file.crop((0, first, file.width, last))
    return _rgb(band, file, clear)


def _rgb(image: PillowImage.Image, file: PillowImage.Image, clear: tuple[int, ...]) -> Pixels:
    # the decoders of PPM and PNG fill mode I with 0..65535
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PPM", "PNG")):
        return _from_grey(np.asarray(image), file, clear)
    if image.mode in ("I", "F", "LAB"):
        raise DecodeError(
            f"the picture has pixels of an unusual kind (mode {image.mode}), of no agreed range: "
            "convert it to 8 bits",
            "unsupported",
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = PillowImage.new("RGBA", layer.size, (255, 255, 255, 255))
        image = PillowImage.alpha_composite(white, layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_grey(values: npt.NDArray[Any], file: PillowImage.Image, clear: tuple[int, ...]) -> Pixels:
    # Pillow's own conversion clips at 255, which turns all but the darkest greys white. 65535 = 257
    # * 255.
    wide = np.clip(values.astype(np.int64), 0, 65535)
    grey = (wide + 128) // 257
    if isinstance(file, TiffImageFile) and tiff.bits_of(file) == 12:
        grey = (wide * 255 + 2047) // 4095
    if isinstance(file, TiffImageFile) and tiff.white_is_zero(file):
        grey = 255 - grey
    if len(clear) == 1:
        grey[wide == clear[0]] = 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _cut_rows(file: JpegImageFile, data: bytes, min_rows: float) -> tuple[Rows, float]:
    def decoded(whole: bytes) -> Pixels:
        again = plugin(whole, "JPEG")
        if file.size != again.size:  # decoded smaller
            again.draft(file.mode, file.size)
        again.load()
        return np.asarray(again if again.mode == "RGB" else again.convert("RGB"))

    pixels, rows = jpeg.whole_rows(data, decoded)
    if rows < min_rows * len(pixels) or rows == 0:
        raise DecodeError(
            f"the file is truncated: {rows} of {len(pixels)} rows are there", "truncated"
        )
    return lambda first, last: pixels[first:last], rows / len(pixels)


# Pillow keeps one byte of each sample; asked for the other byte order, it keeps the other one.


def _raw_mode(file: Any) -> str:
    args = file.tile[0].args if getattr(file, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) else args or "")


def _loaded_as(file: Any, mode: str, raw_mode: str) -> tuple[Pixels, int]:
    """Load the file's samples in another way than it says; also gives its orientation."""
    file._mode = mode
    file.tile = [
        one._replace(args=(raw_mode, *one.args[1:]) if isinstance(one.args, tuple) else raw_mode)
        for one in file.tile
    ]
    file.load()
    samples, orientation = np.array(file), _orientation(file)
    file.close()
    return samples, orientation


def _deep_rows(file: PillowImage.Image, data: bytes, kind: str) -> tuple[Rows, int]:
    raw_mode, mode = _raw_mode(file), file.mode
    if raw_mode == "LA;16B":
        four, orientation = _loaded_as(file, "RGBA", "RGBA")
        return partial(_rows_of_grey_and_alpha, four), orientation

    premultiplied = isinstance(file, TiffImageFile) and tiff.premultiplied(file)
    clear = png.transparent_colour(data) if kind == "PNG" else ()
    again = plugin(data, kind)
    raw_mode = raw_mode.replace("RGBa", "RGBA")
    high, orientation = _loaded_as(file, mode, raw_mode)
    low, _ = _loaded_as(again, mode, raw_mode[:-1] + _OTHER_ORDER[raw_mode[-1]])

    def rows(first: int, last: int) -> Pixels:
        values = _whole(high[first:last], low[first:last])
        if mode == "CMYK":
            inks = PillowImage.fromarray(_to_8_bits(values), "CMYK")
            return np.asarray(inks.convert("RGB"))
        if mode == "RGBA":
            return _over_white(values[..., :3], values[..., 3:], premultiplied)

        colours = _to_8_bits(values)
        if len(clear) == 3:
            colours[(values == clear).all(2)] = 255
        return colours

    return rows, orientation


def _rows_of_grey_and_alpha(four: Pixels, first: int, last: int) -> Pixels:
    """The four bytes of a pixel are two of its grey and two of its alpha."""
    band = four[first:last]
    grey, alpha = (_whole(band[..., [n]], band[..., [n + 1]]) for n in (0, 2))
    return _over_white(grey, alpha)


def _whole(high: Pixels, low: Pixels) -> npt.NDArray[np.int64]:
    return high.astype(np.int64) * 256 + low


def _to_8_bits(values: npt.NDArray[np.int64]) -> Pixels:
    return ((values + 128) // 257).astype(np.uint8)


def _over_white(
    colours: npt.NDArray[np.int64], alpha: npt.NDArray[np.int64], premultiplied: bool = False
) -> Pixels:
    """16-bit samples [H, W, 1 or 3] over white, in 8 bits."""
    shown = colours * 65535 if premultiplied else colours * alpha
    mixed = (shown + 65535 * (65535 - alpha)).clip(0, 65535 * 65535)
    pixels = ((mixed + 65535 * 257 // 2) // (65535 * 257)).astype(np.uint8)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
