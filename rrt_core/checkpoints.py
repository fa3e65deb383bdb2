"""Files of weights: our safetensors, and the `.pt` files of the paper's repository.

A safetensors file names its format, its variant (`landmarks` or `products`; files without one are
of landmarks) and its configuration in the metadata. A products file may hold its backbone's weights
too, under names that begin with `backbone.`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple, TypeVar, overload

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rrt_core.products.model import ProductsConfig, ProductsTransformer
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.weight_files import misfit, read_weights, shapes_of, sorted_header
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

    # A safetensors file is 8 bytes of length and a JSON object; a torch file is a zip or (old) a
    # pickle.
    contents = _read_safetensors(path, data) if data[8:9] == b"{" else _read_torch(path, data)
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


def _read_torch(path: str, data: bytes) -> _File:
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Reranker weights {path} is neither a safetensors file nor a plain torch checkpoint: "
            f"{reason}"
        ) from None

    state = checkpoint.get("state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(
            f"Reranker weights {path}: no state dict under the key 'state', as the paper's files "
            "have it."
        )

    # written from inside DataParallel
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("matcher.") for key in state):
        # `classifier` is the metric-learning framework's classification layer, which no loss of the
        # paper uses.
        state = {
            key if key.startswith(_OURS) else _BACKBONE + key: value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }
        return _File(state, PRODUCTS, _products_shape(path, state), {})

    return _File(state, LANDMARKS, _landmarks_shape(path, state), {})


def _landmarks_shape(path: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes from the shapes; the number of heads leaves no trace in them and is the paper's 4."""
    _require_matrices(path, state, ("remap.weight", "encoder.layers.0.linear1.weight"), "landmark")
    d_model, global_dim = state["remap.weight"].shape
    return {"global_dim": global_dim, "d_model": d_model, "heads": 4} | _depth(state, "")


def _products_shape(path: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    keys = ("remap.weight", "remap_local.weight", "matcher.encoder.layers.0.linear1.weight")
    _require_matrices(path, state, keys, "products")
    d_model, map_channels = state["remap_local.weight"].shape[:2]
    shape = {
        "map_channels": map_channels,
        "global_dim": state["remap.weight"].shape[0],
        "d_model": d_model,
    }
    return shape | {"heads": 4, "backbone": "timm:resnet50"} | _depth(state, "matcher.")


def _depth(state: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    prefix += "encoder.layers."
    layers = 1 + max(
        int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)
    )
    return {"layers": layers, "feedforward": state[prefix + "0.linear1.weight"].shape[0]}


def _require_matrices(
    path: str, state: Mapping[str, Tensor], keys: tuple[str, ...], variant: str
) -> None:
    for key in keys:
        if key not in state or state[key].dim() < 2:
            raise UserError(
                f"Reranker weights {path}: parameter {key} is missing; not a {variant} model of "
                "the paper."
            )


def _read_safetensors(path: str, data: bytes) -> _File:
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"Reranker weights {path} is not a whole safetensors file: {error}."
        ) from None

    # safetensors: 8 bytes length of the header, little-endian, then the header as JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise UserError(f"Reranker weights {path}: the metadata does not name the format {FORMAT}.")

    try:
        config = json.loads(metadata["config"])
        notes = json.loads(metadata.get("notes", "{}"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"Reranker weights {path}: the configuration in the metadata is not ours: {error}."
        ) from None

    return _File(state, metadata.get("variant", LANDMARKS), config, notes)
