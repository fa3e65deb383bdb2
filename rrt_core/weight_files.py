"""Files of weights: read without running code, compared with a network, written alike each time."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
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
        mode = os.stat(url).st_mode if os.path.exists(url) else stat.S_IFREG
        if not stat.S_ISREG(mode):  # a device or a pipe may never end
            raise UserError(f"{what} {url} are no regular file{fix}.")
        with fsspec.open(url, "rb") as file:
            data = bytes(file.read())
    except FileNotFoundError:
        raise UserError(f"{what} {url}: no such file{fix}.") from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{what} {url} cannot be read: {error}.") from None
    if not data:
        raise UserError(f"{what} {url}: the file is empty{fix}.")
    return data


def read_tensors(path: str, what: str) -> dict[str, Tensor]:
    """The tensors by name in a file of weights, as `tensors_of` reads it. Raises UserError."""
    return tensors_of(read_weights(path, what), f"{what} {path}")[0]


def tensors_of(data: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name in a file's bytes, and its metadata, {} where it has none.

    The file is one of safetensors, or of torch: a state dict, bare or under "state", "state_dict"
    or "model", by itself or from inside DataParallel. No code in it is run, and no more memory is
    taken than it has bytes. Raises UserError for anything else, and for numbers that are not
    finite; `what` begins it.
    """
    # safetensors: 8 bytes of length and a JSON object; torch: a zip or (old) a pickle
    if data[8:9] == b"{":
        state, metadata = _read_safetensors(data, what)
    else:
        state, metadata = _read_torch(data, what), {}

    if not state:
        raise UserError(f"{what} hold no tensors.")
    # a view may be larger than what it looks at
    if sum(value.numel() * value.element_size() for value in state.values()) > len(data):
        raise UserError(f"{what} name more numbers than the file holds.")
    for name, value in state.items():
        if value.is_complex() or value.is_quantized:
            raise UserError(f"{what}: the tensor {name} is of the type {value.dtype}.")
        if not bool(torch.isfinite(value.float()).all()):
            raise UserError(f"{what}: the tensor {name} has values that are not finite.")
    return state, metadata


def _read_safetensors(data: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # noqa: BLE001  the library's own, and json's and torch's
        raise UserError(f"{what} are not a whole safetensors file: {error}.") from None

    metadata = header.get("__metadata__") or {}
    return state, metadata


def _read_torch(data: bytes, what: str) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(member.file_size for member in archive.infolist()) > len(data):
                    raise UserError(f"{what} are compressed; save them again by torch.save.")
        # weights_only: a state dict from elsewhere must not be able to run code
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  torch raises of nearly every kind
        raise UserError(
            f"{what} are neither a safetensors file nor a plain torch checkpoint of tensors alone "
            f"({type(error).__name__})."
        ) from None

    for key in ("state", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    plain = isinstance(state, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        for name, value in state.items()
    )
    if not plain:
        raise UserError(f"{what} are no state dict: give tensors by name, bare or under 'state'.")
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


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
