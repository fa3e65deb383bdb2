"""Copies of an image at the sizes that an extractor looks at, and their places in the original.

Sizes and places count in pixels of the original, whatever the reduction at which a JPEG was
decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rrt_core.extractors import Extractor
from rrt_core.extractors.options import check_copies, later_config
from rrt_core.extractors.spread import check_order
from rrt_core.images import Image


class CopiesExtractor(Extractor):
    """An extractor of copies at several sizes, as `EfficientNet` describes the options.

    Sides of copies are multiples of `multiple`.
    """

    multiple = 1

    def _take_copies(
        self, sizes: Sequence[int] | int, max_locals: int, enlarge: float, min_size: int, order: str
    ) -> None:
        """Check and keep the options; a size by itself is a list of one. Raises UserError."""
        listed: Any = (sizes,) if type(sizes) is int else sizes
        check_copies(listed, max_locals, enlarge, min_size)
        check_order(order)
        self._order = order
        self._sizes, self._max_locals = tuple(listed), max_locals
        self._enlarge, self._min_size = float(enlarge), min_size
        self.scales = tuple(size / listed[0] for size in listed)
        self.largest_side = listed[0]
        self.config: dict[str, Any] = {
            "sizes": list(listed),
            "max_locals": max_locals,
            "enlarge": self._enlarge,
            "min_size": min_size,
            **later_config(order=order),
        }

    def _copies(self, image: Image) -> list[npt.NDArray[np.uint8]]:
        """The image at every size, largest first."""
        first = largest_copy(image, self._sizes[0], self._enlarge, self._min_size)
        return [copy_of(image, first * scale, self.multiple) for scale in self.scales]


def largest_copy(image: Image, size: int, enlarge: float, min_size: int) -> float:
    """The longest side of the image's largest copy, pixels, not rounded.

    size      longest side of the largest copy of a whole picture, pixels; a crop has its part of it
    enlarge   the image is enlarged at most this many times; 1 = never
    min_size  a crop's largest copy has at least this longest side (within `enlarge`), but not more
              than `size`
    """
    longest = max(image.crop_size)
    return min(max(size * image.resize_factor, min(min_size, size)), enlarge * longest)


def copy_of(image: Image, side: float, multiple: int = 1) -> npt.NDArray[np.uint8]:
    """A copy uint8 [h, w, 3] whose crop (`Image.crop_size`) has the longest side `side`.

    Sides are rounded to multiples of `multiple`, at least one. Shrunk by averaging areas (no
    aliasing).
    """
    factor = side / max(image.crop_size)
    width, height = (max(1, round(old * factor / multiple)) * multiple for old in image.crop_size)
    if (height, width) == image.pixels.shape[:2]:
        return image.pixels
    method = cv2.INTER_AREA if factor * image.reduction < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image.pixels, (width, height), interpolation=method), np.uint8)


def places(
    image: Image, shape: tuple[int, ...], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Places in a copy of `shape` (height, width, ...) as places in the upright original.

    The first pixel covers 0..1.
    """
    in_original = (
        image.origin[axis] + value * (image.span[axis] / shape[1 - axis])
        for axis, value in enumerate((x, y))
    )
    if image.reduction == 1:
        across, down = in_original
        return across, down
    across, down = (
        np.clip(value, 0, side)
        for value, side in zip(in_original, (image.width, image.height), strict=True)
    )
    return across, down


def cell_places(
    image: Image, shape: tuple[int, ...], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """As `places`, of the cells of a grid with columns at `x` and rows at `y`.

    Returns x, y of each cell, float32 [cells, 2].
    """
    across, down = places(image, shape, x, y)
    return np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2).astype(np.float32)
