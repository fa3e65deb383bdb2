"""Bytes of an image file -> upright RGB pixels, or one clear reason why not.

Everything that a crawl of the web holds is met here, once: rotated photographs, CMYK scans,
palettes, 16-bit greys, transparency, animations, truncated downloads and images made to exhaust
memory.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from schemas.image_list import Box

# Raster formats only: Pillow would hand EPS to an external interpreter, and guesses wildly at
# formats without a signature.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_ORIENTATION_TAG = 0x0112
_TO_UPRIGHT = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}
_SWAPPING = (5, 6, 7, 8)  # orientations whose upright width is the stored height
_LEFT_WAS_LAST = (2, 3, 6, 7)  # whose left column is the last column or row as stored
_TOP_WAS_LAST = (3, 4, 7, 8)

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


class DecodeError(Exception):
    """Why an image cannot be described.

    reason       one sentence for a person
    error_class  one word to count by: empty, unreadable, truncated, unsupported, too_large,
                 too_small, bad_box
    """

    def __init__(self, reason: str, error_class: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error_class = error_class

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Exceptions of two arguments do not pickle by themselves.
        return DecodeError, (self.reason, self.error_class)


def decode(
    data: bytes,
    record_id: str,
    box: Box | None = None,
    *,
    max_pixels: int = 100_000_000,
    min_side: int = 10,
    largest_side: int | None = None,
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
            upright, (width, height), reduction, origin = _upright_rgb(
                data, max_pixels, largest_side if box is None else None
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
        upright = upright.crop((left, top, right, bottom))
        origin = (left, top)
    return Image(
        record_id=record_id,
        pixels=np.array(upright, dtype=np.uint8),
        width=width,
        height=height,
        origin=(float(origin[0]), float(origin[1])),
        resize_factor=max(right - left, bottom - top) / max(width, height),
        reduction=reduction,
    )


def _upright_rgb(
    data: bytes, max_pixels: int, largest_side: int | None
) -> tuple[PillowImage.Image, tuple[int, int], int, tuple[int, int]]:
    """The upright picture, the original's (width, height), the reduction, the origin.

    Width and height are of the upright original, the origin is the pixels'.
    """
    with PillowImage.open(io.BytesIO(data), formats=_FORMATS) as file:
        width, height = file.size
        if width * height > max_pixels:
            raise DecodeError(
                f"the picture has {width} x {height} pixels, more than the {max_pixels:,} of "
                "max_pixels",
                "too_large",
            )
        reduction = 1 if largest_side is None else _reduced(file, largest_side)
        file.load()
        # After loading: Pillow turns TIFF upright by itself while it loads, and a PNG may carry
        # EXIF behind its pixels.
        orientation = _orientation(file)
        image = _rgb(file)

    turn = _TO_UPRIGHT.get(orientation)
    if turn is not None:
        image = image.transpose(turn)
    if reduction == 1:
        return image, image.size, 1, (0, 0)
    if orientation in _SWAPPING:
        width, height = height, width

    # Columns and rows partly beyond the border are the stored picture's last; turned, they may come
    # first.
    beyond = (width - image.width * reduction, height - image.height * reduction)
    left = beyond[0] if orientation in _LEFT_WAS_LAST else 0
    top = beyond[1] if orientation in _TOP_WAS_LAST else 0
    return image, (width, height), reduction, (left, top)


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


def _orientation(image: PillowImage.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  a broken EXIF block does not make the pixels worse
        return 1


def _rgb(image: PillowImage.Image) -> PillowImage.Image:
    # the decoders of PPM and PNG fill mode I with 0..65535
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return _from_16_bits(np.asarray(image))
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"the picture has 32-bit pixels (mode {image.mode}), of no agreed range: convert it to "
            "8 bits",
            "unsupported",
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = PillowImage.new("RGBA", layer.size, (255, 255, 255, 255))
        return PillowImage.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(values: npt.NDArray[np.generic]) -> PillowImage.Image:
    # Pillow's own conversion clips at 255, which turns all but the darkest greys white. 65535 = 257
    # * 255.
    grey = (np.clip(values.astype(np.int64), 0, 65535) + 128) // 257
    return PillowImage.fromarray(grey.astype(np.uint8)).convert("RGB")


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


def _refusal(error: Exception) -> DecodeError:
    if isinstance(error, PillowImage.DecompressionBombError):
        return DecodeError(
            "the picture has more pixels than Pillow allows "
            f"({2 * (PillowImage.MAX_IMAGE_PIXELS or 0):,})",
            "too_large",
        )
    if isinstance(error, UnidentifiedImageError):
        return DecodeError(
            f"the bytes are no image of a known format ({', '.join(_FORMATS)})", "unreadable"
        )
    if isinstance(error, MemoryError):
        return DecodeError("there is not enough memory to decode the picture", "too_large")
    message = str(error).split("\n")[0][:200]
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return DecodeError(f"the file is truncated: {message or 'it ends too early'}", "truncated")
    return DecodeError(
        f"the picture cannot be decoded: {type(error).__name__}: {message}", "unreadable"
    )
