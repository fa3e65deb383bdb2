"""Cutting *instances* out of photographs: regions that the renderer shows from many sides.

They are distinct and textured.

An instance stands for a thing that retrieval has to find again (a facade, a poster, a carton). Any
sharp, corner-rich piece of a photograph will do; a flat one (sky, wall) will not, since no two
views of it could be distinguished from views of another flat piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SHAPES = ("rectangle", "ellipse", "polygon")


@dataclass(frozen=True)
class Region:
    """One instance, cut out.

    pixels: uint8 [h, w, 3], RGB.
    mask: uint8 [h, w], 255 where the instance is, 0 outside of its outline.
    box: (x, y, w, h) in the photograph, whole pixels.
    texture: 0 to 1, share of the region that carries corners (see `texture_of`).
    """

    pixels: Pixels
    mask: Pixels
    box: Box
    texture: float


def overlap(a: Box, b: Box) -> float:
    """Area common to two (x, y, w, h) boxes over the area of the smaller one, 0 to 1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


def texture_map(photo: Pixels) -> NDArray[np.float32]:
    """Integral image, float32 [H + 1, W + 1], of a photograph's pixels near a corner.

    photo: uint8 [H, W, 3].

    A pixel counts when it lies within 4 px of a corner: a 5 x 5 window whose root mean square
    gradient is at least 3 grey levels a pixel in *every* direction, so that straight edges and
    gentle shading do not count.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (3, 3), 0)
    corners = cv2.cornerMinEigenVal(grey.astype(np.float32), blockSize=5, ksize=3)
    # OpenCV sums (Sobel / 20)^2 over the window: 4 g^2 for a mean square gradient g^2 in the weaker
    # direction
    strong = (corners > 36.0).astype(np.uint8)
    near = cv2.dilate(strong, np.ones((9, 9), np.uint8))
    return np.asarray(cv2.integral(near), dtype=np.float32)


def texture_of(integral: NDArray[np.float32], box: Box) -> float:
    """Share (0 to 1) of the box (x, y, w, h) that lies near a corner.

    `integral` is that of `texture_map`.
    """
    x, y, w, h = box
    total = integral[y + h, x + w] - integral[y, x + w] - integral[y + h, x] + integral[y, x]
    return float(total) / (w * h)


def outline(shape: str, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Mask, uint8 [height, width] of 0 and 255, of a `shape` of SHAPES.

    It nearly fills the rectangle.
    """
    mask = np.zeros((height, width), np.uint8)
    if shape == "rectangle":
        mask[:] = 255
    elif shape == "ellipse":
        centre = ((width - 1) / 2, (height - 1) / 2)
        cv2.ellipse(mask, (centre, (width - 1.0, height - 1.0), 0.0), 255, -1)
    elif shape == "polygon":
        # corners on a superellipse, jittered inwards: a convex-looking cut-out of five to nine
        # sides
        count = int(rng.integers(5, 10))
        angle = 2 * np.pi * (np.arange(count) + rng.uniform(0, 0.6, count)) / count
        radius = rng.uniform(0.88, 1.0, count) / np.maximum(
            np.abs(np.cos(angle)), np.abs(np.sin(angle))
        )
        half = np.array([(width - 1) / 2, (height - 1) / 2])
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] * half + half
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    else:
        raise ValueError(f"shape is one of {SHAPES}, not {shape!r}")

    return mask


def cut_region(
    photo: Pixels, box: Box, rng: np.random.Generator, shape: str | None = None
) -> Region:
    """The region under `box` (x, y, w, h, inside the photograph), outlined by `shape`.

    None is any of SHAPES.

    Raises ValueError for a box that does not lie inside.
    """
    x, y, w, h = box
    if not (
        x >= 0
        and y >= 0
        and w > 0
        and h > 0
        and x + w <= photo.shape[1]
        and y + h <= photo.shape[0]
    ):
        raise ValueError(
            f"box {box} does not lie inside a photograph of {photo.shape[1]} x {photo.shape[0]}"
        )
    mask = outline(shape or str(rng.choice(SHAPES)), h, w, rng)
    texture = texture_of(texture_map(photo[y : y + h, x : x + w]), (0, 0, w, h))
    return Region(photo[y : y + h, x : x + w].copy(), mask, box, texture)


def cut_instances(
    photo: Pixels,
    count: int,
    rng: np.random.Generator,
    *,
    side: tuple[float, float] = (0.22, 0.45),
    min_side: int = 96,
    max_overlap: float = 0.05,
    min_texture: float = 0.35,
    avoid: Sequence[Box] = (),
    tries: int = 400,
) -> list[Region]:
    """Distinct, textured, barely overlapping regions of one photograph.

    Args:
        photo: uint8 [H, W, 3], RGB.
        count: most regions wanted; fewer come back where the photograph has no more.
        side: range of a region's sides as shares of the photograph's longest side.
        min_side: least side, px.
        max_overlap: most that two regions, or one and a box of `avoid`, may share, over the
            smaller's area.
        min_texture: least share of the region near a corner; flat regions are refused.
        avoid: boxes (x, y, w, h) to keep away from.
        tries: boxes drawn; the best textured are taken first.

    Raises:
        ValueError: the photograph is something else than uint8 [H, W, 3].
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"a photograph is uint8 [H, W, 3], not {photo.dtype} {list(photo.shape)}")
    height, width = photo.shape[:2]
    least = min_side
    most = max(least, round(side[1] * max(height, width)))
    low = min(most, max(least, round(side[0] * max(height, width))))
    if min(height, width) < least:
        return []
    integral = texture_map(photo)
    w = np.minimum(rng.integers(low, most + 1, tries), width)
    h = np.minimum(
        np.clip(np.round(w * rng.uniform(0.7, 1.4, tries)).astype(np.int64), least, most), height
    )
    x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    texture = (
        integral[y + h, x + w] - integral[y, x + w] - integral[y + h, x] + integral[y, x]
    ) / (w * h)

    # a little chance keeps one busy corner of the picture from giving all regions of one size
    order = np.argsort(-texture * rng.uniform(0.7, 1.0, tries), kind="stable")
    boxes = np.stack([x, y, w, h], 1)[order[texture[order] >= min_texture]].tolist()
    kept: list[Box] = []

    for left, top, across, down in boxes:
        if len(kept) == count:
            break
        box = (left, top, across, down)
        if all(overlap(box, other) <= max_overlap for other in (*avoid, *kept)):
            kept.append(box)

    return [cut_region(photo, box, rng) for box in kept]
