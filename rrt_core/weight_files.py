"""Files of weights: read without running code, compared with a network, written alike each time."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import fsspec
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from schemas.errors import UserError

Shape = tuple[int, ...]


def sorted_header(data: bytes) -> bytes:
    """The safetensors file with its header's keys sorted.

    The library writes metadata in another order every time.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def read_weights(url: str, what: str, fix: str = "") -> bytes:
    """The bytes of a file or fsspec URL. Raises UserError; `what` and `fix` are words of it."""
    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise UserError(f"{what} {url}: no such file{fix}.") from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{what} {url} cannot be read: {error}.") from None


def read_tensors(path: str, what: str) -> dict[str, Tensor]:
    """The tensors by name in a `.safetensors` file, or else one of torch.

    The latter may hold them under "state_dict" or "model". Raises UserError; `what` begins it.
    """
    data = read_weights(path, what)
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(data)
        # weights_only: a state dict from elsewhere must not be able to run code.
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{what} {path} are no state dict ({type(error).__name__}): give a file of tensors by "
            "name, nothing else."
        ) from error

    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(
            f"{what} {path} are no state dict: give a .safetensors file, or a .pth of tensors "
            "alone."
        )

    return state


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of each tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


def misfit(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """Why tensors of these shapes do not fill a network of others, in words; "" where they do.

    Counters of batch norms, which some files lack and inference does not need, may be missing.
    """
    missing = [
        name for name in wanted if name not in shapes and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in shapes if name not in wanted]
    parts = [
        f"{len(names)} tensors are {word}, such as {names[0]}"
        for word, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    return "; ".join(parts) or next(
        (
            f"{name} has the shape {shapes[name]}, not {shape}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ),
        "",
    )
