"""A network of the package timm (R. Wightman, pytorch-image-models).

Images go in, pooled features and a map of cells come out.

timm's own `forward_intermediates` gives both in one pass. What differs from model to model
(strides, channels, class tokens, whether any size of input is taken) is seen in one pass over a
black picture, not presumed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import sys
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.extractors.timm.cell_grid import CellGrid, grid_of, watch
from rrt_core.options import check_choice
from rrt_core.weight_files import misfit, read_tensors, shapes_of
from schemas.errors import UserError

RANDOM = "random"
POOLINGS = ("gem", "cls", "model")
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6
_UNIT = 32  # sides of the first picture are multiples of this and of the patch
_FIRST_SIDE = 224


class Seen(NamedTuple):
    """What a pass gives: pooled float32 [N, D], cells float32 [N, C, rows, columns].

    Pooled features have L2 norm 1, cells are raw.
    """

    pooled: Tensor
    cells: Tensor


class TimmNetwork:
    """A model ready to look at pictures.

    global_dim, channels  D and C of what it gives
    feature    index of the map that the cells come from, among `maps`
    maps       channels and stride of every map that the model offers
    multiple   sides of a picture must be multiples of this
    grid       where the cells look
    pooling    gem (generalised mean, p = 3, of the last map or of the patch tokens), cls (class
               token), or model (what the model itself does ahead of its classifier)
    mean, deviation  of the model's data configuration, for pixels in 0..1
    weights_sha256   of its parameters and buffers by name

    Raises UserError: see create_network; and for a model that takes one size of picture only or has
    no maps, a feature that it does not have, a pooling that it cannot do.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | None,
        pretrained: bool,
        pooling: str | None,
        feature: int | None,
        device: torch.device,
    ) -> None:
        network = create_network(model, weights, pretrained)
        self._network, self._device = network.eval().requires_grad_(False), device
        self._plain = False
        self.weights_sha256 = _sha256_of(network)
        given = importlib.import_module("timm.data").resolve_data_config({}, model=network)
        self.mean = tuple(float(value) for value in given["mean"])
        self.deviation = tuple(float(value) for value in given["std"])
        self._look_once(model, feature)
        self.pooling = self._checked_pooling(model, pooling)
        network.to(device)
        self._mean, self._deviation = (
            torch.tensor(values, device=device)[None, :, None, None] * 255.0
            for values in (self.mean, self.deviation)
        )
        with torch.inference_mode():
            self.global_dim = int(
                self(torch.zeros((1, *self._first), dtype=torch.uint8)).pooled.shape[1]
            )

    def __call__(self, pixels: Tensor) -> Seen:
        """uint8 [N, h, w, 3], RGB -> what is seen, on the network's device.

        Sides are multiples of `multiple`.
        """
        x = pixels.to(self._device).permute(0, 3, 1, 2).to(torch.float32)
        last, maps = self._forward((x - self._mean) / self._deviation, [self.feature])
        return Seen(F.normalize(self._pooled(last), dim=1), maps[0].float())

    def _forward(self, x: Tensor, indices: list[int] | None) -> tuple[Tensor, list[Tensor]]:
        # The last norm of a vision transformer goes over the tokens of whatever block is chosen.
        options: dict[str, Any] = {"norm": True} if self._plain else {}
        last, maps = self._network.forward_intermediates(
            x, indices=indices, output_fmt="NCHW", **options
        )
        return last, maps

    def _pooled(self, last: Tensor) -> Tensor:
        if self.pooling == "model":
            return self._network.forward_head(last, pre_logits=True)
        if self.pooling == "cls":
            return last[:, 0]
        if self._tokens:
            spread = last[:, self._prefix :]
        else:
            spread = last.flatten(1, 2) if self._channels_last else last.flatten(2).transpose(1, 2)
        return spread.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(1).pow(1.0 / _GEM_POWER)

    def _look_once(self, model: str, feature: int | None) -> None:
        """Learn shapes and strides from a black picture that is not square."""
        patch = getattr(getattr(self._network, "patch_embed", None), "patch_size", 1)
        unit = math.lcm(int(patch[0] if isinstance(patch, (tuple, list)) else patch), _UNIT)
        height = unit * math.ceil(_FIRST_SIDE / unit)
        self._first = (height, height + unit, 3)
        outputs: list[Any] = []
        if not hasattr(self._network, "forward_intermediates"):
            raise UserError(f"timm's model {model!r} does not show its inner maps: choose another.")

        try:
            with torch.inference_mode():
                seen = watch(
                    self._network,
                    lambda: outputs.extend(
                        self._forward(torch.zeros(1, 3, *self._first[:2]), None)
                    ),
                )
        except Exception as error:
            raise UserError(
                f"timm's model {model!r} does not take pictures of any size ({first_line(error)}): "
                "choose another."
            ) from error

        last, maps = outputs
        if (
            not isinstance(last, Tensor)
            or last.dim() not in (3, 4)
            or any(one.dim() != 4 for one in maps)
        ):
            raise UserError(
                f"timm's model {model!r} gives neither a map nor tokens: choose another."
            )

        grids = [grid_of(seen, height, one.shape[2]) for one in maps]
        strides = [grid.stride for grid in grids]
        self.maps = [(int(one.shape[1]), stride) for one, stride in zip(maps, strides, strict=True)]
        self.feature = self._checked_feature(model, feature)
        self.channels = self.maps[self.feature][0]
        self.grid: CellGrid = grids[self.feature]
        self._tokens = last.dim() == 3
        self._plain = self._tokens and len(set(self.maps)) == 1
        self._prefix = (
            int(last.shape[1] - maps[-1].shape[2] * maps[-1].shape[3]) if self._tokens else 0
        )

        if self._prefix < 0:
            raise UserError(
                f"timm's model {model!r} has fewer tokens at its end than cells: choose another."
            )

        self._channels_last = getattr(self._network, "output_fmt", "NCHW") == "NHWC"
        fixed = bool(self._network.pretrained_cfg.get("fixed_input_size", False))
        self.multiple = 1
        if fixed or any(grid.cuts for grid in grids) or not self._takes(height - 27, height - 5):
            self.multiple = max(strides)

    def _takes(self, height: int, width: int) -> bool:
        """Whether odd sides will do."""
        try:
            with torch.inference_mode():
                self._forward(torch.zeros(1, 3, height, width), [self.feature])
        except Exception:  # noqa: BLE001  whatever a network raises whose branches do not meet again
            return False
        return True

    def _checked_feature(self, model: str, feature: int | None) -> int:
        if feature is None:
            # Stride 16, as in DELG; with other strides the nearest finer one, else the finest.
            strides = [stride for _, stride in self.maps]
            wanted = max((stride for stride in strides if stride <= 16), default=min(strides))
            return max(index for index, stride in enumerate(strides) if stride == wanted)
        if (
            isinstance(feature, bool)
            or not isinstance(feature, int)
            or not 0 <= feature < len(self.maps)
        ):
            listed = ", ".join(
                f"{i} ({c} channels, stride {s})" for i, (c, s) in enumerate(self.maps)
            )
            raise UserError(
                f"The extractor's option feature is {feature!r}; timm's model {model!r} has: "
                f"{listed}."
            )
        return feature

    def _checked_pooling(self, model: str, pooling: str | None) -> str:
        has_token = (
            self._tokens
            and self._prefix > 0
            and getattr(self._network, "cls_token", None) is not None
        )
        if pooling is None:
            return "cls" if has_token else "gem"
        check_choice("The extractor's option pooling", pooling, POOLINGS)
        if pooling == "cls" and not has_token:
            raise UserError(
                f"timm's model {model!r} has no class token: give pooling=gem or pooling=model."
            )
        return pooling


def create_network(model: str, weights: str | None, pretrained: bool) -> Any:
    """timm's model without its classifier.

    Its weights come from a local file or the hub, or are random.

    Nothing is downloaded unless `pretrained`. Raises UserError where timm is absent or does not fit
    torch, the model is unknown, the weights are not to be had, unreadable or of another model.
    """
    timm = _timm(model)
    if pretrained and weights is not None:
        raise UserError(
            "The extractor's options weights and pretrained exclude each other: give one of them."
        )

    if not pretrained and weights is None:
        raise UserError(
            f"timm's model {model!r} needs weights: name a local file by the option weights, or "
            "give pretrained=true to have timm download its own."
        )

    hub = model.startswith(("hf-hub:", "hf_hub:"))
    if hub and not pretrained:
        raise UserError(
            f"{model!r} is a name of the Hugging Face hub, which needs the option pretrained=true."
        )

    if not hub and not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(model, timm.list_models(), 4, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all."
        raise UserError(f"timm {timm.__version__} has no model {model!r}: {hint}")

    # Made with a seed, apart from the caller's generator: random weights are the same everywhere.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = _created(timm, model, pretrained)

    if weights is not None and weights != RANDOM:
        _load(network, weights)
    return network


def _timm(model: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"The extractor 'timm:{model}' needs the package timm ({error}): install the extra of "
            "that name, RRT_EXTRAS=timm ./run_pipeline.sh ..."
        ) from error
    except RuntimeError as error:  # torchvision's compiled operators do not fit torch
        raise UserError(
            f"The package timm cannot be imported ({first_line(error)}): install torch and "
            "torchvision from the same place, both with CUDA or both without."
        ) from error


def _created(timm: Any, model: str, pretrained: bool) -> Any:
    # Vision transformers take other sizes than their own only with an option; most other models do
    # not know the option.
    for options in ({"dynamic_img_size": True}, {}):
        try:
            network = timm.create_model(model, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            if options and "dynamic_img_size" in str(error):
                continue
            raise UserError(
                f"timm's model {model!r} cannot be made ({first_line(error)})."
            ) from error
        except Exception as error:
            if pretrained:
                raise UserError(
                    f"The weights of timm's model {model!r} cannot be had "
                    f"({type(error).__name__}): check the network, or name a local file by the "
                    "option weights."
                ) from error
            raise UserError(
                f"timm's model {model!r} cannot be made ({first_line(error)})."
            ) from error
        about = network.pretrained_cfg
        # timm starts such models with random weights, and a warning.
        if pretrained and (
            about.get("custom_load") or not (about.get("hf_hub_id") or about.get("url"))
        ):
            raise UserError(
                f"timm has no weights for {model!r}: name a local file by the option weights."
            )
        return network

    raise AssertionError("the last attempt returns or raises")


def _load(network: Any, path: str) -> None:
    """Fill the network from a file.

    Classifiers in the file are left out, everything else must be the network's own.
    """
    tensors = read_tensors(path, "The weights in")
    state = {name.removeprefix("module."): value for name, value in tensors.items()}
    wanted: dict[str, Tensor] = network.state_dict()
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(
        f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier)
    )

    def unfit() -> str:
        own = {
            name: value
            for name, value in state.items()
            if name in wanted or not name.startswith(heads)
        }
        return misfit(shapes_of(own), shapes_of(wanted))

    if unfit():
        # Files of other origins; each of timm's model files converts those that it knows.
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                state = convert(dict(state), network)
            except Exception as error:
                raise UserError(
                    f"The weights in {path} are not this model's ({first_line(error)})."
                ) from error

    if reason := unfit():
        raise UserError(f"The weights in {path} are not those of timm's model: {reason}.")
    network.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


def _sha256_of(network: nn.Module) -> str:
    """Of the parameters and buffers, in the order of their names.

    It is the same in whatever file they came.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:150] or type(error).__name__
