"""Bytes of an image file -> upright RGB pixels, or one clear reason why not.

Everything that a crawl of the web holds is met here, once: rotated photographs, CMYK scans,
palettes, 16-bit greys, transparency, animations, truncated downloads and images made to exhaust
memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from rrt_core.decoding import pixels as stored
from rrt_core.decoding import png, tiff
from rrt_core.decoding.error import DecodeError
from rrt_core.image_formats import format_of, known_formats
from schemas.image_list import Box

__all__ = ["DecodeError", "Image", "decode"]

_SWAPPING = (5, 6, 7, 8)  # orientations whose upright width is the stored height
_LEFT_WAS_LAST = (2, 3, 6, 7)  # whose left column is the last column or row as stored
_TOP_WAS_LAST = (3, 4, 7, 8)

# Bytes that decoding takes for each pixel at its peak, measured: the library's own, Pillow's four,
# our three.
_BYTES_A_PIXEL = {
    "JPEG": 7.5,
    "PNG": 8.0,
    "GIF": 8.0,
    "BMP": 7.5,
    "DIB": 7.5,
    "PPM": 7.5,
    "TIFF": 8.0,
    "WEBP": 16.5,
    "JPEG2000": 20.0,
    "AVIF": 12.0,
    "HEIF": 12.0,
}
_BYTES_OF_PROGRESSIVE = 10.5
_BYTES_OF_DEEP = 13.5  # of 16-bit colours, decoded byte by byte
MOST_BYTES_A_PIXEL = 9  # of those of `max_pixels`: larger pictures of costly formats are refused
_ALWAYS = 50_000_000  # bytes that a picture may take however small `max_pixels` is

Pixels = stored.Pixels
_REDUCTIONS = (8, 4, 2)  # what libjpeg decodes at by leaving out work


@dataclass(frozen=True)
class Image:
    """One decoded image, or the part of it within a box.

    pixels         uint8 [H, W, 3], RGB, upright, contiguous; cropped to the box where one is given
    width, height  of the upright original, pixels
    origin         x, y of the pixels' top-left corner in the upright original; that of the box
                   where one is given, else (0, 0), or down to -7 where a reduced picture was
                   turned: see `span`
    resize_factor  max(crop side) / max(original side), in (0, 1]; 1.0 without a box. Extractors
                   multiply their sizes by it, so that a crop is seen at the size it would have in
                   the whole picture (DELG, extract_features).
    own_rows       the share of its rows that the file holds; below 1 where a JPEG was cut off and
                   `min_rows` let it pass, and grey is below
    reduction      1, or 2, 4, 8: so many times smaller than the original the pixels are, a side; 1
                   with a box
    """

    record_id: str
    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    origin: tuple[float, float] = (0.0, 0.0)
    resize_factor: float = 1.0
    reduction: int = 1
    own_rows: float = 1.0

    @property
    def crop_size(self) -> tuple[int, int]:
        """Width and height of the crop in pixels of the original.

        Without a box they are those of the whole picture.
        """
        if self.reduction > 1:
            return self.width, self.height
        height, width = self.pixels.shape[:2]
        return width, height

    @property
    def span(self) -> tuple[int, int]:
        """What the pixels cover, width and height in pixels of the original.

        `crop_size`; of a reduced picture up to 7 more, since a pixel that is partly beyond the
        border is kept. What lies at x of W columns of the pixels, or of a copy of them, lies at
        origin + x * span / W of the original.
        """
        height, width = self.pixels.shape[:2]
        return width * self.reduction, height * self.reduction


def decode(
    data: bytes,
    record_id: str,
    box: Box | None = None,
    *,
    max_pixels: int = 100_000_000,
    min_side: int = 10,
    largest_side: int | None = None,
    min_rows: float = 1.0,
    reserve: Callable[[int], None] | None = None,
) -> Image:
    """Decode an image file held in memory to upright RGB.

    box         x, y, w, h in pixels of the upright original; its corners are rounded as DELG does,
                `int(round(...))`, and clipped to the picture
    max_pixels  larger images are refused by their header, before a pixel is decoded. Pillow's own
                hard limit, 2 x PIL.Image.MAX_IMAGE_PIXELS (179 million), holds as well.
    min_side    pictures, or crops, with a shorter side are refused (DELG: 10)
    largest_side  the longest side that the caller will look at (`Extractor.largest_side`). A JPEG
                without a box is then decoded at a half, a quarter or an eighth, as far as its
                longest side stays at least twice this: several times faster, and not the same
                pixels as full decoding and shrinking gives. All limits count in original pixels.
                None: every pixel.
    min_rows    the least share of its rows that a JPEG which was cut off must have, above 0; grey
                is below them. At 1 a JPEG that lacks nothing but its end marker is taken.
    reserve     called once, when the header is read and before a pixel is, with the bytes that
                decoding takes at most, the pixels included; it may wait

    EXIF orientation is applied; transparency is laid over white; of an animation the first frame is
    taken; 16-bit greys are scaled to 8 bits; CMYK is converted plainly, without colour profiles.
    Raises DecodeError, and nothing else, for whatever the bytes hold; never a warning.
    """
    if len(data) == 0:
        raise DecodeError("the file is empty (0 bytes)", "empty")
    with warnings.catch_warnings():
        # Corrupt EXIF, odd TIFF tags, the first bomb threshold: what matters of it is raised below.
        warnings.simplefilter("ignore")
        try:
            upright, (width, height), reduction, origin, own_rows = _upright_rgb(
                data, max_pixels, largest_side if box is None else None, min_rows, reserve
            )
        except DecodeError:
            raise
        except Exception as error:  # noqa: BLE001  hostile bytes make decoders raise anything
            raise _refusal(error) from None

    left, top, right, bottom = (
        (0, 0, width, height) if box is None else _corners(box, width, height)
    )
    shorter = min(right - left, bottom - top)
    if shorter < min_side:
        what = "the picture" if box is None else "the box"
        raise DecodeError(
            f"{what} is {right - left} x {bottom - top} pixels; at least {min_side} a side are "
            "needed",
            "too_small",
        )

    if box is not None:
        upright = np.ascontiguousarray(upright[top:bottom, left:right])
        origin = (left, top)
    return Image(
        record_id=record_id,
        pixels=upright,
        width=width,
        height=height,
        origin=(float(origin[0]), float(origin[1])),
        resize_factor=max(right - left, bottom - top) / max(width, height),
        reduction=reduction,
        own_rows=own_rows,
    )


def _upright_rgb(
    data: bytes,
    max_pixels: int,
    largest_side: int | None,
    min_rows: float,
    reserve: Callable[[int], None] | None,
) -> tuple[Pixels, tuple[int, int], int, tuple[int, int], float]:
    """The upright picture, the original's (width, height), the reduction, the origin, own_rows.

    Width and height are of the upright original, the origin is the pixels'.
    """
    file, data, kind = _opened(data, max_pixels)
    width, height = file.size
    reduction = 1 if largest_side is None else _reduced(file, largest_side)
    _check_memory(file, kind, len(data), max_pixels, reserve)
    rows, own_rows, orientation = stored.load(file, data, kind, min_rows)
    columns, lines = file.size
    if orientation in _SWAPPING:
        width, height = height, width
        columns, lines = lines, columns
    pixels = np.empty((lines, columns, 3), np.uint8)
    stored.fill(_as_stored(pixels, orientation), rows)
    if reduction == 1:
        return pixels, (columns, lines), 1, (0, 0), own_rows

    # Columns and rows partly beyond the border are the stored picture's last; turned, they may come
    # first.
    beyond = (width - columns * reduction, height - lines * reduction)
    left = beyond[0] if orientation in _LEFT_WAS_LAST else 0
    top = beyond[1] if orientation in _TOP_WAS_LAST else 0
    return pixels, (width, height), reduction, (left, top), own_rows


def _as_stored(upright: Pixels, orientation: int) -> Pixels:
    """A view of the upright picture in which rows and columns lie as in the file."""
    if orientation in _LEFT_WAS_LAST:
        upright = upright[:, ::-1]
    if orientation in _TOP_WAS_LAST:
        upright = upright[::-1]
    return upright.transpose(1, 0, 2) if orientation in _SWAPPING else upright


def _opened(data: bytes, max_pixels: int) -> tuple[PillowImage.Image, bytes, str]:
    """The file, its header read and judged; the bytes that it is read from; its format."""
    form = format_of(data)
    if form is None:
        known = ", ".join(known_formats())
        raise DecodeError(f"the bytes are no image of a known format ({known})", "unreadable")
    if not form.decodes:
        raise DecodeError(f"{form.name} does not decode here: {form.help}", "unsupported")
    if form.name == "PNG":
        data = png.without_needless_chunks(data)

    try:
        file = stored.plugin(data, form.name)
    except SyntaxError as error:  # as Pillow calls what is wrong in a file
        raise _not_opened(form.name, str(error)) from None

    width, height = file.size
    if width * height > max_pixels:
        raise DecodeError(
            f"the picture has {width} x {height} pixels, more than the {max_pixels:,} of "
            "max_pixels",
            "too_large",
        )
    if width * height > 2 * (PillowImage.MAX_IMAGE_PIXELS or math.inf):
        raise PillowImage.DecompressionBombError
    if isinstance(file, TiffImageFile):
        tiff.check(file, data, max_pixels)
    return file, data, form.name


def _check_memory(
    file: PillowImage.Image,
    kind: str,
    size: int,
    max_pixels: int,
    reserve: Callable[[int], None] | None,
) -> None:
    """Raise DecodeError where file and decoding take more than MOST_BYTES_A_PIXEL of max_pixels."""
    width, height = file.size
    per_pixel = _BYTES_OF_DEEP if stored.is_deep(file) else _BYTES_A_PIXEL[kind]
    if file.info.get("progressive"):
        per_pixel = _BYTES_OF_PROGRESSIVE
    needed = math.ceil(width * height * per_pixel)
    if needed + size > max(MOST_BYTES_A_PIXEL * max_pixels, _ALWAYS):
        raise DecodeError(
            f"the picture has {width} x {height} pixels; decoding that {kind} takes "
            f"{(needed + size) / 1e9:.1f} GB, more than {MOST_BYTES_A_PIXEL} bytes for each of the "
            f"{max_pixels:,} pixels of max_pixels",
            "too_large",
        )
    if reserve is not None:
        reserve(needed)


def _reduced(file: PillowImage.Image, largest_side: int) -> int:
    """Have a JPEG decoded smaller where that is enough; by how much."""
    if not isinstance(file, JpegImageFile):
        return 1
    width, height = file.size
    for reduction in _REDUCTIONS:
        if (
            -(-max(width, height) // reduction) >= 2 * largest_side
            and min(width, height) >= reduction
        ):
            drafted = file.draft(file.mode, (width // reduction, height // reduction))
            # The box is the original's size divided by the reduction that Pillow chose.
            return 1 if drafted is None else round(max(width, height) / max(drafted[1][2:]))
    return 1


def _corners(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    x, y, w, h = box
    if not all(math.isfinite(value) for value in (x, y, w, h)):
        raise DecodeError(f"the box {x:g},{y:g},{w:g},{h:g} (x, y, w, h) is not finite", "bad_box")
    left, right = (min(max(round(value), 0), width) for value in (x, x + w))
    top, bottom = (min(max(round(value), 0), height) for value in (y, y + h))
    if right <= left or bottom <= top:
        raise DecodeError(
            f"the box {x:g},{y:g},{w:g},{h:g} (x, y, w, h) holds no pixel of the picture, {width} "
            f"x {height}",
            "bad_box",
        )
    return left, top, right, bottom


def _not_opened(kind: str, why: str) -> DecodeError:
    if kind == "TIFF" and why in ("unknown pixel mode", "unknown data organization"):
        return DecodeError(
            "the TIFF cannot be decoded here: its samples are of an unusual number or kind; "
            "convert it",
            "unsupported",
        )
    return DecodeError(f"the {kind} is damaged: {why[:200] or 'its header is wrong'}", "unreadable")


def _refusal(error: Exception) -> DecodeError:
    if isinstance(error, PillowImage.DecompressionBombError):
        return DecodeError(
            "the picture has more pixels than Pillow allows "
            f"({2 * (PillowImage.MAX_IMAGE_PIXELS or 0):,})",
            "too_large",
        )
    if isinstance(error, MemoryError):
        return DecodeError("there is not enough memory to decode the picture", "too_large")
    message = str(error).split("\n")[0][:200]
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return DecodeError(f"the file is truncated: {message or 'it ends too early'}", "truncated")
    return DecodeError(
        f"the picture cannot be decoded: {type(error).__name__}: {message}", "unreadable"
    )
