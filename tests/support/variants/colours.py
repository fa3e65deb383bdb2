"""An extractor: a histogram of colours, and the gradients in the cells of a grid.

No network and no weights, so that a reader sees the contract and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rrt_core.extractors import Description, Extractor, Failure
from rrt_core.images import Image
from rrt_core.options import check_whole

BINS = 4  # of each colour channel
DIRECTIONS = 8  # of gradients


class Colours(Extractor):
    """Global: square roots of a histogram of colours, 64-D. Local: for each cell of a grid the
    gradients' strength by channel and direction, 24-D.
    """

    def __init__(self, cells: int = 4) -> None:
        """cells: of the grid, a side; a cell without any gradient gives no local descriptor."""
        # The command line gives what was typed: 2.5 or "many" must end in a sentence.
        check_whole("The extractor's option cells", cells, 1)
        self.name, self.revision = "colours", 1
        self.global_dim, self.local_dim, self.scales = BINS**3, 3 * DIRECTIONS, (1.0,)
        self.weights_sha256 = ""
        self.config: dict[str, Any] = {"cells": cells}
        self.cells = cells

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """As the contract says. A picture with fewer pixels a side than cells is a Failure."""
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Description | Failure:
        height, width = image.pixels.shape[:2]
        if min(height, width) < self.cells:
            return Failure(
                f"{width} x {height} pixels are too few for {self.cells} x {self.cells} cells.",
                "too_small",
            )

        sums = self._gradients(image.pixels)
        strength = np.linalg.norm(sums, axis=1).astype(np.float32)
        # The strongest first; cells of equal strength keep their order, so that bytes do too.
        order = np.argsort(-strength, kind="stable")[: np.count_nonzero(strength)]
        return Description(
            colour_histogram(image.pixels),
            (sums[order] / np.linalg.norm(sums[order], axis=1, keepdims=True)).astype(np.float32),
            self._centres(image)[order],
            np.zeros(len(order), np.uint8),
            strength[order],
        )

    def _gradients(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Strength of the gradients by cell, channel and direction: float64 [cells², 24]."""
        height, width = pixels.shape[:2]
        # A picture of one row or column has no gradient across it.
        down, right = (
            np.gradient(pixels.astype(np.float64), axis=axis)
            if pixels.shape[axis] > 1
            else np.zeros(pixels.shape)
            for axis in (0, 1)
        )
        turn = np.arctan2(down, right) / (2 * np.pi) + 0.5
        direction = (turn * DIRECTIONS).astype(int) % DIRECTIONS

        rows, columns = (np.arange(side) * self.cells // side for side in (height, width))
        cell = rows[:, None, None] * self.cells + columns[None, :, None]
        place = (cell * 3 + np.arange(3)) * DIRECTIONS + direction
        sums = np.bincount(
            place.ravel(), np.hypot(down, right).ravel(), self.cells**2 * 3 * DIRECTIONS
        )
        return np.asarray(sums, np.float64).reshape(self.cells**2, 3 * DIRECTIONS)

    def _centres(self, image: Image) -> npt.NDArray[np.float32]:
        """x, y of the cells' middles in pixels of the upright original: float32 [cells², 2]."""
        middles = (np.arange(self.cells) + 0.5) / self.cells
        x = np.minimum(image.origin[0] + middles * image.span[0], image.width)
        y = np.minimum(image.origin[1] + middles * image.span[1], image.height)
        return np.stack([np.tile(x, self.cells), np.repeat(y, self.cells)], 1).astype(np.float32)


def colour_histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Square roots of the shares of colours, float32 [64], L2 = 1. pixels: uint8 [H, W, 3], RGB."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64) * BINS // 256, -1, 0)
    counts = np.bincount(((red * BINS + green) * BINS + blue).ravel(), minlength=BINS**3)
    return np.sqrt(counts / counts.sum()).astype(np.float32)
