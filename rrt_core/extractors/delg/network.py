"""The network of DELG (Cao, Araujo, Sim, ECCV 2020) in torch.

It has a ResNet v1, attention, an autoencoder, GeM and whitening.

Two layouts of the ResNet are in use, and weights of one are of no use in the other:

keras  tensorflow/models,
       research/delf/delf/python/training/model/{resnet50,delf_model,delg_model}.py: TensorFlow's
       SAME padding (one more row and column at the far end where the sum is odd), max-pool without
       padding, a stage's stride in the first 1x1 convolution of its first unit, batch normalisation
       with epsilon 1e-3
slim   tf_slim/nets/resnet_v1.py, which DELF's first code (delf_v1.py) trains: 3 pixels about the
       first convolution, max-pool with SAME padding, a stage's stride in the 3x3 convolution of its
       *last* unit, epsilon 1e-5

Batch normalisations are folded into their convolutions when weights are loaded (in float64).
Inference only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from rrt_core.weight_files import misfit, shapes_of, sorted_header, tensors_of
from schemas.errors import UserError

KERAS, SLIM = "keras", "slim"
EXPANDED, BLOCK3 = "expanded", "block3"
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # units in the four stages, by depth
EPSILON = {KERAS: 1e-3, SLIM: 1e-5}
FORMAT = "rrt-delg/1"
GEM_POWER, GEM_FLOOR = 3.0, 1e-6


@dataclass(frozen=True)
class Architecture:
    """What of a DELG network its tensors do not show; the sizes are of the published ones.

    units            residual units in each of the four stages
    layout           keras | slim, see the module
    block3_strides   local map at every second place of the third stage (stride 32), or at all (16);
                     slim: always
    attention_input  what attention looks at: `expanded`, the autoencoder's reconstruction (the
                     Keras code), or `block3`, the third stage itself
    width            channels of the first convolution; the stages have 4, 8, 16 and 32 times as
                     many
    """

    units: tuple[int, int, int, int] = UNITS[50]
    layout: str = KERAS
    block3_strides: bool = True
    attention_input: str = EXPANDED
    width: int = 64
    attention_dim: int = 512
    local_dim: int = 128
    global_dim: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        sizes = (*self.units, self.width, self.attention_dim, self.local_dim, self.global_dim)
        if len(self.units) != 4 or any(
            isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes
        ):
            raise UserError(
                "DELG: units and channels must be whole numbers from 1, and units four of them: "
                f"{self}."
            )
        if self.layout not in EPSILON or self.attention_input not in (EXPANDED, BLOCK3):
            raise UserError(
                f"DELG: layout is {KERAS} or {SLIM}, attention_input {EXPANDED} or {BLOCK3}: "
                f"{self}."
            )
        if self.layout == SLIM and not self.block3_strides:
            raise UserError("DELG: a network of layout slim always has block3_strides.")

    @property
    def local_stride(self) -> int:
        """Pixels between neighbours of the local map."""
        return 32 if self.block3_strides else 16

    @property
    def depth(self) -> int:
        """Layers as ResNets are named: 50, 101."""
        return 3 * sum(self.units) + 2


class NormalisedConvolution(nn.Module):
    """A convolution [B, C, H, W] with TensorFlow's padding and fixed batch normalisation."""

    def __init__(
        self, inputs: int, outputs: int, side: int, stride: int, epsilon: float, layout: str
    ) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(outputs, inputs, side, side))
        self.bias = nn.Buffer(torch.zeros(outputs))
        self.gamma, self.beta = nn.Buffer(torch.ones(outputs)), nn.Buffer(torch.zeros(outputs))
        self.mean, self.variance = nn.Buffer(torch.zeros(outputs)), nn.Buffer(torch.ones(outputs))
        self._side, self._stride, self._epsilon, self._layout = side, stride, epsilon, layout

    def fold(self) -> None:
        """Put the normalisation into weight and bias."""
        factor = self.gamma.double() / torch.sqrt(self.variance.double() + self._epsilon)
        self.weight = nn.Buffer((self.weight.double() * factor[:, None, None, None]).float())
        self.bias = nn.Buffer(
            ((self.bias.double() - self.mean.double()) * factor + self.beta.double()).float()
        )
        del self.gamma, self.beta, self.mean, self.variance

    def forward(self, x: Tensor) -> Tensor:
        if self._side == 1:
            return F.conv2d(x, self.weight, self.bias, self._stride)
        if self._layout == SLIM or self._stride == 1:  # conv2d_same pads alike before and behind
            return F.conv2d(x, self.weight, self.bias, self._stride, self._side // 2)
        return F.conv2d(pad_same(x, self._side, self._stride), self.weight, self.bias, self._stride)


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3, 1x1 and the shortcut.

    The shortcut has a convolution where the number of channels changes.
    """

    def __init__(self, inputs: int, width: int, stride: int, layout: str) -> None:
        super().__init__()
        epsilon = EPSILON[layout]
        first, middle = (stride, 1) if layout == KERAS else (1, stride)
        self.conv1 = NormalisedConvolution(inputs, width, 1, first, epsilon, layout)
        self.conv2 = NormalisedConvolution(width, width, 3, middle, epsilon, layout)
        self.conv3 = NormalisedConvolution(width, 4 * width, 1, 1, epsilon, layout)
        self.shortcut = (
            NormalisedConvolution(inputs, 4 * width, 1, stride, epsilon, layout)
            if inputs != 4 * width
            else None
        )
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x).relu_()).relu_())
        if self.shortcut is not None:
            y += self.shortcut(x)
        else:
            y += x[:, :, :: self._stride, :: self._stride] if self._stride > 1 else x
        return y.relu_()


class DelgNetwork(nn.Module):
    """All zeros until `load_network` fills it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        epsilon = EPSILON[a.layout]
        self.stem = NormalisedConvolution(3, a.width, 7, 2, epsilon, a.layout)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            _stage(a, number) for number in range(4)
        )
        block3 = 16 * a.width
        self.reduce = nn.Conv2d(block3, a.local_dim, 1)
        if a.attention_input == EXPANDED:
            self.expand = nn.Conv2d(a.local_dim, block3, 1)
        self.attention = NormalisedConvolution(block3, a.attention_dim, 1, 1, epsilon, a.layout)
        self.score = nn.Conv2d(a.attention_dim, 1, 1)
        self.embedding = nn.Linear(32 * a.width, a.global_dim)
        self.requires_grad_(False)

    def trunk(self, x: Tensor) -> Tensor | None:
        """Pixels float32 [B, 3, H, W] -> the third stage [B, 16 width, h, w], rectified.

        Pixels are RGB, (value - 128) / 128.

        None where the image is so small that the max-pool without padding leaves nothing (layout
        keras).
        """
        x = self.stem(x).relu_()
        if self.architecture.layout == SLIM:
            x = pad_same(x, 3, 2, float("-inf"))
        if min(x.shape[2:]) < 3:
            return None
        x = F.max_pool2d(x, 3, 2)
        x = self.stage3(self.stage2(self.stage1(x)))
        if self.architecture.layout == KERAS and self.architecture.block3_strides:
            x = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
        return x

    def local_maps(self, block3: Tensor) -> tuple[Tensor, Tensor]:
        """The third stage -> attention and raw descriptors.

        Attention is float32 [B, h, w], > 0; descriptors are [B, local_dim, h, w].
        """
        reduced = self.reduce(block3)
        seen = (
            self.expand(reduced).relu_()
            if self.architecture.attention_input == EXPANDED
            else block3
        )
        scores = self.score(self.attention(seen).relu_())
        # beyond a threshold of 20 torch returns its input, which differs from log(1 + e^x) by less
        # than float32 shows
        return F.softplus(scores[:, 0]), reduced

    def global_descriptors(self, block3: Tensor) -> Tensor:
        """The third stage -> global descriptors float32 [B, global_dim], not normalised.

        They go through the fourth stage, GeM (p = 3) and whitening.
        """
        x = self.stage4(block3)
        pooled = x.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean((2, 3)).pow(1.0 / GEM_POWER)
        return self.embedding(pooled)


def pad_same(x: Tensor, side: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding of [B, C, H, W]: outputs = ceil(n / stride), an odd rest behind."""
    around: list[int] = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + side - n, 0)
        around += [total // 2, total - total // 2]
    return F.pad(x, around, value=value)


def _stage(a: Architecture, number: int) -> nn.Sequential:
    """Stage `number` (0..3)."""
    width = a.width * 2**number
    inputs = a.width if number == 0 else 2 * width
    units = nn.Sequential()
    for stride in _strides(a, number):
        units.append(Unit(inputs, width, stride, a.layout))
        inputs = 4 * width
    return units


def _strides(a: Architecture, number: int) -> list[int]:
    """Stride of each unit of stage `number` (0..3)."""
    strides = [1] * a.units[number]
    if a.layout == SLIM:
        strides[-1] = 2 if number < 3 else 1
    elif number in (1, 2) or (number == 3 and not a.block3_strides):
        strides[0] = 2
    return strides


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a weights file of this architecture holds."""
    with torch.device("meta"):
        return shapes_of(DelgNetwork(architecture).state_dict())


def weights_file(
    tensors: Mapping[str, npt.NDArray[np.float32]],
    architecture: Architecture,
    threshold: float,
    source: str,
) -> bytes:
    """A weights file; its bytes depend on the arguments alone.

    threshold  attention from which on a local descriptor counts
    source     what the weights were made from, for people
    """
    config = {
        **dataclasses.asdict(architecture),
        "depth": architecture.depth,
        "threshold": threshold,
        "source": source,
    }
    metadata = {"format": FORMAT, "config": json.dumps(config, sort_keys=True)}
    state = {
        name: torch.from_numpy(np.ascontiguousarray(tensors[name])) for name in sorted(tensors)
    }
    return sorted_header(save_safetensors(state, metadata))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready to run, on the CPU, and what its file adds."""

    network: DelgNetwork
    threshold: float
    source: str


def load_network(data: bytes, where: str) -> LoadedNetwork:
    """Read a weights file of `convert-delg`.

    Raises UserError: another format, another configuration, tensors missing, too many, of another
        shape or not finite.
    """
    fix = "make it with convert-delg."
    state, metadata = tensors_of(data, where)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{where} holds no DELG weights (its format is {metadata.get('format')!r}): {fix}"
        )

    try:
        config = json.loads(metadata["config"])
        threshold, source, depth = (
            float(config.pop("threshold")),
            str(config.pop("source")),
            config.pop("depth"),
        )
        if not math.isfinite(threshold) or sum(config["units"]) > len(state):
            raise ValueError("its threshold, or the number of its units")
        architecture = Architecture(**config)
        wanted = tensor_shapes(architecture)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"The configuration in {where} cannot be read ({error}): {fix}") from error

    if depth != architecture.depth:
        raise UserError(
            f"{where} gives its depth as {depth}, but its units make {architecture.depth}: {fix}"
        )

    if reason := misfit(shapes_of(state), wanted):
        raise UserError(f"{where} is no DELG network of depth {architecture.depth}: {reason}.")
    network = DelgNetwork(architecture)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    for module in network.modules():
        if isinstance(module, NormalisedConvolution):
            module.fold()
    network.to(memory_format=torch.channels_last)

    return LoadedNetwork(network.eval(), threshold, source)
