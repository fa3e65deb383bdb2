"""Projections of local descriptors to fewer dimensions.

They are PCA whitenings, or any learned linear map, from a file.

A file is safetensors with `mean` [C] and `projection` [C, L], float32.
`benchmarks/making/make_projection.py` makes one from photographs, and
`benchmarks/making/make_whitening.py` the one of the extractor efficientnet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rrt_core.weight_files import tensors_of
from schemas.errors import UserError

Floats = npt.NDArray[np.float64]


class Kept(NamedTuple):
    """What is kept of the maps of an image's copies, before projection.

    n <= max_locals, in the order of the option `order`.
    """

    pooled: Tensor  # float32 [D], summed over the sizes, not normalised
    cells: Tensor  # float32 [n, C], raw
    xy: npt.NDArray[np.float32]  # [n, 2]
    scale: npt.NDArray[np.uint8]  # [n]
    strength: npt.NDArray[np.float32]  # [n], norms of the cells


class Projection:
    """mean float32 [C] and matrix float32 [C, L], on any device."""

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        self.mean, self.matrix = mean, matrix

    @property
    def dimension(self) -> int:
        """L."""
        return int(self.matrix.shape[1])

    def to(self, device: torch.device) -> Projection:
        """The same on another device."""
        return Projection(self.mean.to(device), self.matrix.to(device))

    def __call__(self, cells: Tensor) -> Tensor:
        """Raw cells [n, C] -> normalised, centred, projected, normalised again [n, L]."""
        return F.normalize((directions(cells) - self.mean) @ self.matrix, dim=1)


def directions(cells: Tensor) -> Tensor:
    """Raw cells [n, C] -> what a projection is made from and applied to, [n, C]."""
    return F.normalize(cells, dim=1)


def read_projection(
    data: bytes, channels: int, where: str, maker: str = "make_projection.py"
) -> Projection:
    """The projection in a file's bytes. Raises UserError for another content, or other channels."""
    fix = f"make one with benchmarks/making/{maker}"
    try:
        tensors, _ = tensors_of(data, where)
        mean, matrix = tensors["mean"], tensors["projection"]
    except (KeyError, UserError) as error:
        raise UserError(f"{where} is no projection ({error}): {fix}.") from error

    if (
        mean.shape != (channels,)
        or matrix.ndim != 2
        or matrix.shape[0] != channels
        or matrix.shape[1] < 1
    ):
        raise UserError(
            f"The projection in {where} is for {matrix.shape[0] if matrix.ndim else 0} channels; "
            f"the feature map has {channels}: {fix} for this model and feature."
        )

    return Projection(mean.float(), matrix.float())


class Whitening:
    """PCA whitening of cells' directions, gathered piece by piece."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._total: Floats = np.zeros(channels)
        self._outer: Floats = np.zeros((channels, channels))

    def add(self, cells: npt.NDArray[np.float32]) -> None:
        """Take in raw cells [n, C]."""
        directions = np.asarray(cells, np.float64)
        directions = directions / np.maximum(
            np.linalg.norm(directions, axis=1, keepdims=True), 1e-12
        )
        self._total += directions.sum(0)
        self._outer += directions.T @ directions
        self.count += len(directions)

    def solve(self, dimensions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """mean [C] and projection [C, dimensions]: principal axes over their standard deviations.

        An axis has no sign of its own: its largest entry is made positive. Raises UserError where
        the cells have fewer dimensions, or are fewer than two a dimension.
        """
        channels = len(self._total)
        if not 1 <= dimensions <= channels:
            raise UserError(
                f"A projection of {channels} channels to {dimensions} dimensions: give at most "
                f"{channels}."
            )

        if self.count < 2 * dimensions:
            raise UserError(
                f"{self.count} cells are too few for {dimensions} dimensions: give more "
                "photographs."
            )

        mean = self._total / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        variances, axes = np.linalg.eigh(covariance)
        strongest = np.argsort(-variances, kind="stable")[:dimensions]
        variances, axes = variances[strongest], axes[:, strongest]

        if variances[-1] <= variances[0] * 1e-10:
            raise UserError(
                f"The cells spread over fewer than {dimensions} dimensions: give more photographs "
                "or fewer dimensions."
            )

        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(dimensions)] < 0, -1.0, 1.0)
        # In C order: safetensors writes an array's memory as it lies.
        return mean.astype(np.float32), np.ascontiguousarray(axes / np.sqrt(variances), np.float32)
