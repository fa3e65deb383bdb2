"""Files of reranker weights: our safetensors, which hold their configuration, and the paper repository's `.pt`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rrt_core.transformer import ModelConfig, RerankingTransformer
from schemas.errors import UserError

FORMAT = "rrt-weights/1"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what it was loaded from.

    sha256: of the file's bytes, hexadecimal. notes: what the file says of its own making (JSON), {} if nothing.
    """

    model: RerankingTransformer
    sha256: str
    notes: dict[str, Any]


def save_checkpoint(path: str, model: RerankingTransformer, notes: Mapping[str, Any] | None = None) -> str:
    """Write float32 weights as safetensors, configuration and `notes` (JSON) in the metadata; returns the SHA-256."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config), sort_keys=True),
        "notes": json.dumps(dict(notes or {}), sort_keys=True),
    }
    state = {key: value.detach().float().cpu().contiguous() for key, value in model.state_dict().items()}
    data = safetensors.torch.save(state, metadata)
    with fsspec.open(path, "wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def load_checkpoint(path: str, scale_binning: str | None = None) -> Checkpoint:
    """Open our safetensors or a `.pt` of the paper's repository (no code in the file is run).

    Args:
        path: file or fsspec URL.
        scale_binning: overrides the file's table; a `.pt` names none and gets `rrt_legacy`.
    Returns: the model in float32 on the CPU, in evaluation mode.
    Raises:
        UserError: no such file, neither format, parameters missing, too many or of another shape.
    """
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except FileNotFoundError:
        raise UserError(f"Reranker weights {path}: no such file.") from None
    except OSError as error:
        raise UserError(f"Reranker weights {path} cannot be read: {error}.") from None
    # A safetensors file is 8 bytes of length and a JSON object; a torch file is a zip or (old) a pickle.
    reader = _read_safetensors if data[8:9] == b"{" else _read_torch
    state, config, notes = reader(path, data)
    if scale_binning is not None:
        config = dataclasses.replace(config, scale_binning=scale_binning)
    # Not on the meta device: its random fills import torch's compiler, which takes seconds.
    with torch.random.fork_rng(devices=[]):
        model = RerankingTransformer(config)
    _check_state(path, state, model)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return Checkpoint(model.eval(), hashlib.sha256(data).hexdigest(), notes)


def _read_torch(path: str, data: bytes) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Reranker weights {path} is neither a safetensors file nor a plain torch checkpoint: {reason}"
        ) from None
    state = checkpoint.get("state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"Reranker weights {path}: no state dict under the key 'state', as the paper's files have it.")
    if state and all(key.startswith("module.") for key in state):  # written from inside DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state, _infer_config(path, state), {}


def _infer_config(path: str, state: Mapping[str, Tensor]) -> ModelConfig:
    """Sizes from the shapes; the number of heads leaves no trace in them and is the paper's 4."""
    for key in ("remap.weight", "encoder.layers.0.linear1.weight"):
        if key not in state or state[key].dim() != 2:
            raise UserError(f"Reranker weights {path}: parameter {key} is missing; not a landmark model of the paper.")
    d_model, global_dim = state["remap.weight"].shape
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    feedforward = state["encoder.layers.0.linear1.weight"].shape[0]
    return ModelConfig(global_dim, d_model, 4, feedforward, layers, "rrt_legacy")


def _read_safetensors(path: str, data: bytes) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"Reranker weights {path} is not a whole safetensors file: {error}.") from None
    # safetensors: 8 bytes length of the header, little-endian, then the header as JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise UserError(f"Reranker weights {path}: the metadata does not name the format {FORMAT}.")
    try:
        config = ModelConfig(**json.loads(metadata["config"]))
        notes = json.loads(metadata.get("notes", "{}"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"Reranker weights {path}: the configuration in the metadata is not ours: {error}.") from None
    return state, config, notes


def _check_state(path: str, state: Mapping[str, Tensor], model: RerankingTransformer) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    if missing:
        raise UserError(f"Reranker weights {path}: {len(missing)} parameters are missing, the first is {missing[0]}.")
    surplus = [key for key in state if key not in wanted]
    if surplus:
        raise UserError(
            f"Reranker weights {path}: {len(surplus)} parameters are not the model's, the first is {surplus[0]}."
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise UserError(
                f"Reranker weights {path}: parameter {key} has the shape {tuple(state[key].shape)},"
                f" the model needs {tuple(value.shape)}."
            )
