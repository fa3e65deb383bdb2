"""Where the cells of a feature map look in the network's input, seen in one forward pass.

A cell's centre depends on how each layer that shrinks the map pads. A ResNet's stride-16 cells look
at pixels 0, 16, 32 ...; ConvNeXt's, which cuts patches, at 8, 24, 40 ...: half a cell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Shrinking:
    """A layer that shrinks the map: its window and stride, and the rows that it pads ahead.

    A padding of None is TensorFlow's SAME.
    """

    window: int
    stride: int
    padding: int | None
    rows_before: int
    rows_after: int

    def ahead(self, side: int) -> int:
        """Rows of padding ahead of an input with this many rows."""
        if self.padding is not None:
            return self.padding
        return max((math.ceil(side / self.stride) - 1) * self.stride + self.window - side, 0) // 2

    def after(self, side: int) -> int:
        """Rows of the output, for an input with this many rows."""
        if self.padding is None:
            return math.ceil(side / self.stride)
        return (side + 2 * self.padding - self.window) // self.stride + 1


@dataclass(frozen=True)
class CellGrid:
    """The cells of one map.

    stride  of the map, input pixels
    layers  those that shrink, in order; () where they are not all convolutions and pools: cells are
            then taken to lie evenly, each in the middle of its own stride x stride pixels
    """

    stride: int
    layers: tuple[Shrinking, ...]

    @property
    def cuts(self) -> bool:
        """Whether rows of the input that fill no whole cell are left out.

        They are where some layer cuts patches, without padding.
        """
        return (not self.layers and self.stride > 1) or any(
            layer.padding == 0 and layer.window <= layer.stride > 1 for layer in self.layers
        )

    def centres(self, side: int, cells: int) -> npt.NDArray[np.float64]:
        """Centres along one side of the input, float64 [cells], in 0..side.

        The first pixel covers 0..1.
        """
        rows, offset, step = side, (0.0 if self.layers else (self.stride - 1) / 2), 1
        for layer in self.layers:
            offset += step * ((layer.window - 1) / 2 - layer.ahead(rows))
            step *= layer.stride
            rows = layer.after(rows)
        centres = np.arange(cells, dtype=np.float64) * (step if self.layers else self.stride) + (
            offset + 0.5
        )
        return np.clip(centres, 0.0, float(side))


def watch(network: nn.Module, run: Callable[[], Any]) -> list[Shrinking]:
    """What shrinks while `run` has the network look at one input; in the order of the calls."""
    seen: list[Shrinking] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        window, stride, dilation = (
            _first(getattr(module, name, 1)) for name in ("kernel_size", "stride", "dilation")
        )
        if (
            isinstance(inputs[0], Tensor)
            and isinstance(output, Tensor)
            and output.shape[-2] < inputs[0].shape[-2]
        ):
            # timm's names for layers that pad like TensorFlow
            same = type(module).__name__.endswith("Same")
            padding = None if same else _first(getattr(module, "padding", 0))
            window = (window - 1) * dilation + 1
            seen.append(Shrinking(window, stride, padding, inputs[0].shape[-2], output.shape[-2]))

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, _WINDOWS)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()

    return seen


def grid_of(seen: list[Shrinking], side: int, cells: int) -> CellGrid:
    """The grid of a map with this many rows of cells, made of an input with `side` rows.

    Of layers side by side (a block's shortcut beside its body, attention's own pooling) the one
    that shrinks least counts, then the one with the largest window.
    """
    layers: list[Shrinking] = []
    rows = side
    while rows > cells:
        here = [
            layer
            for layer in seen
            if layer.rows_before == rows and cells <= layer.rows_after < rows
        ]
        if not here:
            break
        layers.append(max(here, key=lambda layer: (layer.rows_after, layer.window)))
        rows = layers[-1].rows_after
    if rows != cells:
        return CellGrid(max(1, round(side / cells)), ())
    return CellGrid(math.prod(layer.stride for layer in layers), tuple(layers))


def _first(value: Any) -> int:
    # 'same' and 'valid' of torch, which allows 'same' without a stride alone
    if isinstance(value, str):
        return 0
    return int(value[0] if isinstance(value, (tuple, list)) else value)
