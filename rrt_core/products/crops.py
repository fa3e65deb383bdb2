"""Square crops of photographs of products, plain for testing and augmented for training.

Testing: the picture resized to `resize` x `resize`, its middle `crop` x `crop` cut out
(RRT_SOP/utils/data: 256 and 224). Training: a random part of it, resized to `crop` x `crop` (as
torchvision's RandomResizedCrop), the rest by choice. Mirroring, which the paper does, is off by
default: it makes print unreadable, and print distinguishes cartons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from rrt_core.images import DecodeError, decode
from schemas.errors import UserError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CropOptions:
    """How crops are made.

    resize, crop: pixels, see the module.
    area: least and most share of the picture in an augmented crop (the paper: 0.08 to 1).
    aspect: most width to height, or height to width.
    degrees: most turned to either side.
    jitter: most change of brightness, contrast and saturation, as a share.
    flip: mirror half of the crops.
    """

    resize: int = 256
    crop: int = 224
    area: tuple[float, float] = (0.25, 1.0)
    aspect: float = 4 / 3
    degrees: float = 0.0
    jitter: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if not 32 <= self.crop <= self.resize <= 4096:
            raise UserError(
                f"Crops: crop {self.crop} and resize {self.resize} must hold 32 <= crop <= resize "
                "<= 4096 pixels."
            )
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise UserError(f"Crops: area {self.area} must be two shares, 0 < least <= most <= 1.")
        if not 1 <= self.aspect <= 4 or not 0 <= self.degrees <= 180 or not 0 <= self.jitter < 1:
            raise UserError(
                "Crops: aspect must be from 1 to 4, degrees from 0 to 180, jitter from 0 to below "
                "1."
            )


def plain_crop(pixels: Pixels, options: CropOptions) -> Pixels:
    """uint8 [H, W, 3] -> uint8 [crop, crop, 3]."""
    margin = (options.resize - options.crop) // 2
    resized = cv2.resize(
        pixels, (options.resize, options.resize), interpolation=_method(pixels, options.resize)
    )
    return np.ascontiguousarray(
        resized[margin : margin + options.crop, margin : margin + options.crop]
    )


def augmented_crop(pixels: Pixels, options: CropOptions, rng: np.random.Generator) -> Pixels:
    """uint8 [H, W, 3] -> uint8 [crop, crop, 3]; the same bytes for the same generator state."""
    height, width = pixels.shape[:2]
    area = rng.uniform(*options.area) * height * width
    aspect = math.exp(rng.uniform(-1, 1) * math.log(options.aspect))
    w, h = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    turn = math.radians(rng.uniform(-options.degrees, options.degrees))
    flip = -1.0 if options.flip and rng.random() < 0.5 else 1.0

    # warpAffine does not average: what is shrunk more than twice is shrunk by areas before.
    shrink = max(1.0, min(w, h) / (1.5 * options.crop))
    if shrink > 1:
        size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    fx, fy = pixels.shape[1] / width, pixels.shape[0] / height

    # From a place in the crop to the place in the picture: about the middle, turned, stretched,
    # moved.
    half = options.crop / 2
    cos, sin = math.cos(turn), math.sin(turn)
    to = np.array(
        [
            [fx * w / options.crop * cos * flip, -fx * w / options.crop * sin, 0],
            [fy * h / options.crop * sin * flip, fy * h / options.crop * cos, 0],
        ]
    )
    to[:, 2] = np.array([fx * (left + w / 2), fy * (top + h / 2)]) - to[:, :2] @ [half, half]
    to[:, 2] += to[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV counts from the middle of a pixel
    crop = cv2.warpAffine(
        pixels,
        to,
        (options.crop, options.crop),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )

    return _jittered(np.asarray(crop, np.uint8), options.jitter, rng)


def _jittered(crop: Pixels, most: float, rng: np.random.Generator) -> Pixels:
    brightness, contrast, saturation = 1 + most * rng.uniform(-1, 1, 3)
    if most == 0:
        return crop
    x = crop.astype(np.float32) * np.float32(brightness)
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * np.float32(saturation)
    mean = grey.mean()
    return np.clip(mean + (x - mean) * np.float32(contrast) + 0.5, 0, 255).astype(np.uint8)


def _method(pixels: Pixels, side: int) -> int:
    return cv2.INTER_AREA if min(pixels.shape[:2]) > side else cv2.INTER_LINEAR


class CropReader:
    """Crops of image files.

    Copy 0 is the plain crop, copy c > 0 an augmented one: a function of (seed, row, c).
    """

    def __init__(
        self, files: Sequence[Path], options: CropOptions, seed: int = 0, threads: int = 1
    ) -> None:
        self.files, self.options, self.seed = list(files), options, seed
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64]) -> Pixels:
        """uint8 [B, 3, crop, crop], RGB. Raises UserError for a file that cannot be decoded."""
        wanted: dict[int, list[int]] = {}  # a picture is decoded once for all its copies
        for row, copy in zip(rows.tolist(), copies.tolist(), strict=True):
            wanted.setdefault(row, []).append(copy)
        each = (
            self._pool.map(self._crops, wanted.items())
            if self._pool
            else map(self._crops, wanted.items())
        )
        crops_of = {row: iter(crops) for row, crops in zip(wanted, each, strict=True)}
        return np.stack([next(crops_of[row]) for row in rows.tolist()]).transpose(0, 3, 1, 2)

    def _crops(self, which: tuple[int, list[int]]) -> list[Pixels]:
        row, copies = which
        path = self.files[row]
        try:
            pixels = decode(path.read_bytes(), path.name).pixels
        except OSError as error:
            raise UserError(f"The image {path} cannot be read ({error.strerror}).") from error
        except DecodeError as error:
            raise UserError(
                f"The image {path} cannot be used: {error.reason}; take it out of the labels."
            ) from error
        return [
            augmented_crop(pixels, self.options, np.random.default_rng([self.seed, row, copy]))
            if copy
            else plain_crop(pixels, self.options)
            for copy in copies
        ]
