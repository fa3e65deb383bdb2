"""A small honest extractor for tests of the pipeline: colour means of a grid, no network, starts at
once.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rrt_core.extractors import Description, Extractor, Failure
from rrt_core.images import Image

GRID = 4


class TinyExtractor(Extractor):
    """Global: colour means and deviations of a 4 x 4 grid (96-D). Local: a cell's 8 x 8 x 3
    picture, to 128-D.
    """

    def __init__(self, max_locals: int = 16, seconds: float = 0.0) -> None:
        self.name, self.revision = "tiny", 1
        self.global_dim, self.local_dim, self.scales = 96, 128, (1.0,)
        self.weights_sha256 = ""
        self.config: dict[str, Any] = {"max_locals": max_locals}
        self.max_locals, self.seconds = max_locals, seconds
        seed = int.from_bytes(hashlib.sha256(b"tiny").digest()[:4], "big")
        self.projection = np.random.default_rng(seed).standard_normal((192, 128)).astype(np.float32)

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """As the contract says; `seconds` an image make it slow enough to be interrupted.

        An image whose record id holds what RRT_TEST_CRASH_ON says kills the process.
        """
        crash = os.environ.get("RRT_TEST_CRASH_ON")
        if crash and any(crash in image.record_id for image in images):
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(self.seconds * len(images))
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Description:
        height, width = image.pixels.shape[:2]
        ys, xs = (
            np.linspace(0, height, GRID + 1).astype(int),
            np.linspace(0, width, GRID + 1).astype(int),
        )
        means, cells, centres = [], [], []
        for top, bottom in pairwise(ys):
            for left, right in pairwise(xs):
                cell = image.pixels[top:bottom, left:right].astype(np.float32)
                means.append(np.concatenate([cell.mean((0, 1)) - 128, cell.std((0, 1))]))
                rows = np.linspace(0, cell.shape[0] - 1, 8).astype(int)
                columns = np.linspace(0, cell.shape[1] - 1, 8).astype(int)
                cells.append(cell[rows][:, columns].reshape(-1))
                centres.append(
                    (image.origin[0] + (left + right) / 2, image.origin[1] + (top + bottom) / 2)
                )
        described = np.concatenate(means)
        flat = np.stack(cells)
        flat = flat - flat.mean(1, keepdims=True)
        strength = np.linalg.norm(flat, axis=1)
        order = np.argsort(-strength, kind="stable")[: self.max_locals]
        locals_ = flat @ self.projection + 1e-3
        locals_ /= np.linalg.norm(locals_, axis=1, keepdims=True)
        return Description(
            (described / np.linalg.norm(described)).astype(np.float32),
            locals_[order].astype(np.float32),
            np.array(centres, np.float32)[order],
            np.zeros(len(order), np.uint8),
            strength[order].astype(np.float32),
        )


class ExactExtractor(Extractor):
    """In whole numbers up to the last division: the same bits on all processors.

    tests/old_outputs names it by this module and class, and holds its rows: neither its name nor
    its answers ever change.

    Global: sums of the colours of a 4 x 4 grid, 48-D. Local: a cell's 4 x 4 x 3 picture, projected
    to 16-D by signs.
    """

    def __init__(self, max_locals: int = 8) -> None:
        self.name, self.revision = "exact", 1
        self.global_dim, self.local_dim, self.scales = 48, 16, (1.0,)
        self.weights_sha256 = ""
        self.config: dict[str, Any] = {"max_locals": max_locals}
        self.max_locals = max_locals
        chance = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(3))
        bits = np.unpackbits(np.frombuffer(chance, np.uint8)).reshape(48, 16)
        self.projection = 2 * bits.astype(np.int64) - 1

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """As the contract says."""
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Description:
        pixels = image.pixels.astype(np.int64)
        height, width = pixels.shape[:2]
        sums, cells, centres = [], [], []

        for top, bottom in pairwise(height * step // GRID for step in range(GRID + 1)):
            for left, right in pairwise(width * step // GRID for step in range(GRID + 1)):
                cell = pixels[top:bottom, left:right]
                sums.append((cell - 128).sum((0, 1)))
                rows = [(bottom - top) * step // 4 for step in range(4)]
                columns = [(right - left) * step // 4 for step in range(4)]
                cells.append(cell[rows][:, columns].reshape(-1))
                middle = ((left + right) / 2, (top + bottom) / 2)
                centres.append((image.origin[0] + middle[0], image.origin[1] + middle[1]))

        flat = np.stack(cells)
        flat = len(flat[0]) * flat - flat.sum(1, keepdims=True)
        strength = (flat**2).sum(1)
        order = np.argsort(-strength, kind="stable")[: self.max_locals]
        return Description(
            _unit(np.concatenate(sums)[None])[0],
            _unit((flat @ self.projection)[order]),
            np.array(centres, np.float32)[order],
            np.zeros(len(order), np.uint8),
            np.sqrt(strength[order]).astype(np.float32),
        )


def _unit(values: np.ndarray) -> np.ndarray:
    """Whole numbers int64 [n, D], none of all zeros, as float32 with L2 = 1."""
    lengths = np.sqrt((values**2).sum(1, keepdims=True))  # exact: sums below 2**53
    return (values / lengths).astype(np.float32)
