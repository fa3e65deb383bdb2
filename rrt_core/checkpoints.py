"""Files of weights: our safetensors, and the `.pt` files of the paper's repository.

A safetensors file names its format, its variant (`landmarks` or `products`; files without one are
of landmarks) and its configuration in the metadata. A products file may hold its backbone's weights
too, under names that begin with `backbone.`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, overload

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn

from rrt_core.products.model import ProductsConfig, ProductsTransformer
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.weight_files import misfit, read_weights, shapes_of, sorted_header, tensors_of
from schemas.errors import JobFailed, UserError

FORMAT = "rrt-weights/1"
LANDMARKS: Literal["landmarks"] = "landmarks"
PRODUCTS: Literal["products"] = "products"
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)
_BACKBONE = "backbone."
# of a products model; all else in the paper's files is its ResNet
_OURS = ("remap.", "remap_local.", "matcher.")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what it was loaded from.

    sha256: of the file's bytes, hexadecimal. notes: what the file says of its own making (JSON), {}
        if nothing.
    """

    model: RerankingTransformer
    sha256: str
    notes: dict[str, Any]


@dataclass(frozen=True)
class ProductsCheckpoint:
    """A loaded products model; sha256 and notes as in Checkpoint.

    backbone: the state dict of its backbone, {} where the file has none. A `.pt` of the paper's
        repository holds a ResNet-50 by the names that torchvision and timm use.
    """

    model: ProductsTransformer
    backbone: dict[str, Tensor]
    sha256: str
    notes: dict[str, Any]


class _File(NamedTuple):
    state: dict[str, Tensor]
    variant: str
    config: dict[str, Any]
    notes: dict[str, Any]


def save_checkpoint(
    path: str,
    model: RerankingTransformer | ProductsTransformer,
    notes: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Tensor] | None = None,
) -> str:
    """Write float32 weights as safetensors and return the file's SHA-256.

    Variant, configuration and `notes` (JSON) go into the metadata.

    backbone: for a products model, the state dict of the network below it, kept in the same file.
    Returns the SHA-256. The bytes depend on the arguments alone. Raises JobFailed where a weight is
    not finite: nothing is written.
    """
    metadata = {
        "format": FORMAT,
        "variant": PRODUCTS if isinstance(model, ProductsTransformer) else LANDMARKS,
        "config": json.dumps(dataclasses.asdict(model.config), sort_keys=True),
        "notes": json.dumps(dict(notes or {}), sort_keys=True),
    }
    state = dict(model.state_dict())
    state |= {_BACKBONE + key: value for key, value in (backbone or {}).items()}
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise JobFailed(
                f"Training: the weights {key} are not finite, so that {path} is not written; "
                f"train again with a lower learning rate, or in float32"
            )
    data = safetensors.torch.save(
        {key: value.detach().float().cpu().contiguous() for key, value in state.items()}, metadata
    )
    data = sorted_header(data)
    with fsspec.open(path, "wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


@overload
def load_checkpoint(
    path: str, scale_binning: str | None = None, variant: Literal["landmarks"] = LANDMARKS
) -> Checkpoint: ...
@overload
def load_checkpoint(path: str, *, variant: Literal["products"]) -> ProductsCheckpoint: ...
def load_checkpoint(
    path: str, scale_binning: str | None = None, variant: str = LANDMARKS
) -> Checkpoint | ProductsCheckpoint:
    """Open our safetensors or a `.pt` of the paper's repository, of either variant.

    No code in the file is run.

    Args:
        path: file or fsspec URL.
        scale_binning: landmarks: overrides the file's table; a `.pt` names none and gets
            `rrt_legacy`.
        variant: what the file must hold.
    Returns: the model in float32 on the CPU, in evaluation mode.
    Raises:
        UserError: no such file, neither format, the other variant, parameters missing, too many or
            of another shape.
    """
    data = read_weights(path, "Reranker weights")
    state, metadata = tensors_of(data, f"Reranker weights {path}")
    contents = _ours(path, state, metadata) if metadata else _papers(path, state)
    if contents.variant != variant:
        raise UserError(
            f"Reranker weights {path} are of the variant for {contents.variant}; weights for "
            f"{variant} are needed here."
        )

    sha256 = hashlib.sha256(data).hexdigest()
    if variant == PRODUCTS:
        products = _filled(
            path,
            ProductsTransformer,
            _config(path, ProductsConfig, contents.config),
            contents.state,
        )
        backbone = {
            key.removeprefix(_BACKBONE): value
            for key, value in contents.state.items()
            if key.startswith(_BACKBONE)
        }
        return ProductsCheckpoint(products, backbone, sha256, contents.notes)

    config = _config(path, ModelConfig, contents.config)
    if scale_binning is not None:
        config = dataclasses.replace(config, scale_binning=scale_binning)
    return Checkpoint(
        _filled(path, RerankingTransformer, config, contents.state), sha256, contents.notes
    )


def _config(path: str, kind: type[C], values: Mapping[str, Any]) -> C:
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(
            f"Reranker weights {path}: the configuration in the metadata is not ours: {error}."
        ) from None


def _filled(path: str, kind: Callable[[C], M], config: C, state: Mapping[str, Tensor]) -> M:
    # Not on the meta device: its random fills import torch's compiler, which takes seconds.
    with torch.random.fork_rng(devices=[]):
        model = kind(config)
    own = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    if reason := misfit(shapes_of(own), shapes_of(model.state_dict())):
        raise UserError(f"Reranker weights {path} do not fit the model: {reason}.")
    model.load_state_dict({key: value.float() for key, value in own.items()})
    return model.eval()


def _papers(path: str, state: dict[str, Tensor]) -> _File:
    """A file without metadata: one of the paper's repository, whose shapes say all but the heads.

    The number of heads leaves no trace in them, and is the paper's 4.
    """
    if any(key.startswith("matcher.") for key in state):
        # `classifier` is the metric-learning framework's classification layer, which no loss of the
        # paper uses.
        state = {
            key if key.startswith(_OURS) else _BACKBONE + key: value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }
        config = {**_sizes(path, state, PRODUCTS), "heads": 4, "backbone": "timm:resnet50"}
        return _File(state, PRODUCTS, config, {})

    return _File(state, LANDMARKS, {**_sizes(path, state, LANDMARKS), "heads": 4}, {})


def _sizes(path: str, state: Mapping[str, Tensor], variant: str) -> dict[str, int]:
    """The sizes of a model's configuration, from the shapes of its tensors.

    Raises UserError where they are those of no model: one made of these sizes is not much larger
    than the file.
    """
    prefix = "" if variant == LANDMARKS else "matcher."
    remap = "remap.weight" if variant == LANDMARKS else "remap_local.weight"
    shape = _shape(path, state, remap, 2 if variant == LANDMARKS else 4, variant)
    sizes = {"d_model": shape[0]}
    if variant == LANDMARKS:
        sizes["global_dim"] = shape[1]
    else:
        sizes["map_channels"] = shape[1]
        sizes["global_dim"] = _shape(path, state, "remap.weight", 2, variant)[0]

    layers = f"{prefix}encoder.layers."
    numbers = {key.removeprefix(layers).split(".")[0] for key in state if key.startswith(layers)}
    first = f"{layers}0.linear1.weight"
    sizes["feedforward"] = _shape(path, state, first, 2, variant)[0]
    sizes["layers"] = len(numbers)
    for number in range(len(numbers)):
        for name, wanted in (
            ("self_attn.in_proj_weight", (3 * sizes["d_model"], sizes["d_model"])),
            ("linear1.weight", (sizes["feedforward"], sizes["d_model"])),
        ):
            key = f"{layers}{number}.{name}"
            found = _shape(path, state, key, 2, variant)
            if found != wanted:
                raise UserError(
                    f"Reranker weights {path} do not fit the model: {key} has the shape {found}, "
                    f"not {wanted}."
                )
    return sizes


def _shape(
    path: str, state: Mapping[str, Tensor], key: str, dimensions: int, variant: str
) -> tuple[int, ...]:
    if key not in state or state[key].dim() != dimensions or not state[key].numel():
        raise UserError(
            f"Reranker weights {path}: the parameter {key} is missing; they are of no model for "
            f"{variant}."
        )
    return tuple(state[key].shape)


def _ours(path: str, state: dict[str, Tensor], metadata: Mapping[str, str]) -> _File:
    """A file of `save_checkpoint`, whose configuration must be that of its tensors."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"Reranker weights {path}: the metadata does not name the format {FORMAT}.")

    try:
        config = json.loads(metadata["config"])
        notes = json.loads(metadata.get("notes", "{}"))
        if not isinstance(config, dict) or not isinstance(notes, dict):
            raise TypeError("it is no mapping")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"Reranker weights {path}: the configuration in the metadata is not ours: {error}."
        ) from None

    variant = metadata.get("variant", LANDMARKS)
    if variant not in (LANDMARKS, PRODUCTS):
        raise UserError(f"Reranker weights {path} are of no known variant: {variant[:40]!r}.")
    kind = ModelConfig if variant == LANDMARKS else ProductsConfig
    read = _config(path, kind, config)
    for name, size in _sizes(path, state, variant).items():
        if getattr(read, name) != size:
            raise UserError(
                f"Reranker weights {path}: the configuration in the metadata says {name} "
                f"{getattr(read, name)}, and the tensors are of {size}."
            )
    return _File(state, variant, config, notes)
