"""Local descriptors: an HDF5 file a part.

Datasets (contiguous, unchunked, unfiltered, no times; m = images described, n = descriptors of all
of them):

    row         int32   [m]      rows of the global part, ascending
    offset      int64   [m + 1]  image i has descriptors offset[i] .. offset[i + 1], in an order of
                                 which every prefix serves: the strongest first, or spread over the
                                 picture
    descriptor  float32 | float16 | int8 [n, W]   L2 = 1 before rounding
                uint8   [n, ceil(W / 8)]          binary: signs, the first in the highest bit
    rotation    float32 [W, W]   of binary alone: orthogonal; the signs are those of
                                 descriptor @ rotation
    xy          float32 [n, 2]   pixels of the upright original
    scale       uint8   [n]      true ordinal in the store's list of scales
    strength    float32 [n]

int8 keeps a direction: 127 stands for the largest magnitude of the descriptor, which itself need
not be stored, since `decoded` makes L2 = 1 again. binary keeps only the orthant of the rotated
descriptor: the unit vector in its middle, rotated back, stands for it. A file carries its rotation,
so that a reader needs nothing else.

Their byte offsets (the *layout*) are kept in the unit's marker, so that slices are read by byte
ranges from any file system, without HDF5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from schemas.openers.hdf5 import dataset, open_hdf5

DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1", "binary": "|u1"}
# Which software can read a file: what knows version 1 alone would take int8 for lengths.
SCHEMA_VERSIONS = {
    "float32": "rrt-local/1",
    "float16": "rrt-local/1",
    "int8": "rrt-local/2",
    "binary": "rrt-local/3",
}
NAMES = ("row", "offset", "descriptor", "xy", "scale", "strength")
ROTATION = "rotation"
OTHER_DTYPES = {  # of the datasets beside the descriptors
    "row": "<i4",
    "offset": "<i8",
    "xy": "<f4",
    "scale": "|u1",
    "strength": "<f4",
    ROTATION: "<f4",
}
PLACE_BYTES = 13  # xy, scale and strength of a descriptor


@dataclass(frozen=True)
class LocalRow:
    """The local descriptors of one image; `row` is its row in the global part.

    Shapes are as in the file.
    """

    row: int
    descriptors: np.ndarray  # float32 [n, W], or as `encoded` gives them
    xy: np.ndarray  # float32 [n, 2]
    scale: np.ndarray  # uint8 [n]
    strength: np.ndarray  # float32 [n]


def bytes_a_local(dimension: int, dtype: str) -> int:
    """Bytes on disk of one descriptor with its place, scale and strength."""
    if dtype == "binary":
        return -(-dimension // 8) + PLACE_BYTES
    return dimension * np.dtype(DTYPES[dtype]).itemsize + PLACE_BYTES


def encoded(descriptors: np.ndarray, dtype: str, rotation: np.ndarray | None = None) -> np.ndarray:
    """Descriptors float32 [n, W] as they are stored under a key of DTYPES.

    What is in that form already stays.

    binary needs the `rotation`, float32 [W, W]. Raises ValueError without it.
    """
    kind = np.dtype(DTYPES[dtype])
    if dtype in ("float32", "float16") or descriptors.dtype == kind:
        return np.asarray(descriptors, kind)
    if dtype == "binary":
        if rotation is None:
            raise ValueError("binary descriptors need a rotation")
        # In float64: the order of a sum, which is the machine's, then hardly ever turns a sign.
        return np.packbits(
            np.asarray(descriptors, np.float64) @ np.asarray(rotation, np.float64) >= 0, axis=1
        )
    values = np.asarray(descriptors, np.float32)
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    return np.rint(values * (127.0 / np.where(largest > 0, largest, 1.0))).astype(kind)


def decoded(descriptors: np.ndarray, rotation: np.ndarray | None = None) -> np.ndarray:
    """Stored descriptors [n, W] of any dtype as float32 [n, W].

    Those of int8 and binary have L2 = 1.

    (An int8 descriptor of zeros alone stays zeros.) binary needs the file's `rotation`, and raises
    ValueError without it. An int8 descriptor is turned by an angle whose sine is at most sqrt(W) /
    254 times its largest magnitude (at L2 = 1): some 0.4 degrees at 128 dimensions. A binary one is
    turned by the angle whose cosine is the L1 norm of the rotated descriptor over sqrt(W): some 37
    degrees where its values are normally distributed.
    """
    if descriptors.dtype.kind == "u":
        if rotation is None:
            raise ValueError("binary descriptors need a rotation")
        width = len(rotation)
        signs = np.unpackbits(descriptors, axis=1, count=width).astype(np.float32) * 2 - 1
        return np.asarray(
            signs @ np.asarray(rotation, np.float32).T / np.sqrt(np.float32(width)), np.float32
        )
    values = np.asarray(descriptors, np.float32)
    if descriptors.dtype.kind != "i":
        return values
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths > 0, lengths, 1.0), np.float32)


def write_part(
    path: str,
    rows: Sequence[LocalRow],
    dimension: int,
    dtype: str,
    rotation: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write a part to a local path; gives its layout: name -> {"offset" (bytes), "dtype", "shape"}.

    binary needs the `rotation`, float32 [W, W]. Raises ValueError where it is absent or not
    orthogonal.
    """
    if dtype == "binary":
        _check_rotation(rotation, dimension)
    width = -(-dimension // 8) if dtype == "binary" else dimension
    counts = [len(row.descriptors) for row in rows]
    arrays = {
        "row": np.array([row.row for row in rows], "<i4"),
        "offset": np.concatenate([[0], np.cumsum(counts)]).astype("<i8"),
        "descriptor": _stack(
            [encoded(row.descriptors, dtype, rotation) for row in rows], (width,), DTYPES[dtype]
        ),
        "xy": _stack([row.xy for row in rows], (2,), "<f4"),
        "scale": _stack([row.scale for row in rows], (), "u1"),
        "strength": _stack([row.strength for row in rows], (), "<f4"),
    }
    if dtype == "binary":
        arrays[ROTATION] = np.asarray(rotation, "<f4")

    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["schema"] = SCHEMA_VERSIONS[dtype]
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)

    with h5py.File(path, "r", locking=False) as file:
        return layout_of(file)


def layout_of(file: h5py.File) -> dict[str, Any]:
    """Where the datasets of an opened file lie: name -> offset (-1 if empty), dtype, shape."""
    return {
        name: {
            "offset": -1 if (start := data.id.get_offset()) is None else int(start),
            "dtype": data.dtype.str,
            "shape": list(data.shape),
        }
        for name, data in ((name, dataset(file, name)) for name in file)
    }


def _check_rotation(rotation: np.ndarray | None, dimension: int) -> None:
    shape = None if rotation is None else rotation.shape
    if rotation is None or shape != (dimension, dimension):
        raise ValueError(
            f"binary descriptors need a rotation of {dimension} x {dimension}, not {shape}"
        )
    if not np.allclose(rotation.T @ rotation, np.eye(dimension), atol=1e-4):
        raise ValueError("the rotation is not orthogonal")


def _stack(pieces: Sequence[np.ndarray], tail: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.concatenate(
        [np.zeros((0, *tail), dtype), *[np.asarray(piece, dtype) for piece in pieces]]
    )


def check_layout(layout: dict[str, Any], size: int) -> None:
    """Raise ValueError where a layout is not that of a file of so many bytes.

    A marker may come from a stranger: whatever it says, no reader takes bytes or memory for it
    that the file does not have.
    """
    for name in (*NAMES, *((ROTATION,) if ROTATION in layout else ())):
        entry: Any = layout.get(name)
        try:
            offset, kind, shape = entry["offset"], np.dtype(entry["dtype"]), entry["shape"]
            known = kind.str in {
                OTHER_DTYPES.get(name),
                *(DTYPES.values() if name == "descriptor" else ()),
            } and all(type(n) is int and n >= 0 for n in shape)
            end = offset + math.prod(shape) * kind.itemsize
            axes = 2 if name in ("descriptor", "xy", ROTATION) else 1
            if not known or type(offset) is not int or len(shape) != axes:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"the layout of {name!r} in its marker is {entry!r:.100}") from None

        if math.prod(shape) and not 0 <= offset <= end <= size:
            raise ValueError(f"{name!r} ends at byte {end:,} by its marker; it has {size:,}")

    counts = {name: layout[name]["shape"][0] for name in NAMES}
    locals_ = {counts[name] for name in ("descriptor", "xy", "scale", "strength")}
    if counts["offset"] != counts["row"] + 1 or len(locals_) != 1:
        raise ValueError(f"the layout in its marker has {counts}")


def check_rows(layout: dict[str, Any], rows: np.ndarray, offsets: np.ndarray) -> None:
    """Raise ValueError where rows do not ascend, or offsets do not rise over all descriptors."""
    total = layout["descriptor"]["shape"][0]
    if (rows[1:] <= rows[:-1]).any() or (rows < 0).any():
        raise ValueError("'row' does not ascend")
    if (offsets[0], offsets[-1]) != (0, total) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"'offset' does not rise from 0 to {total:,}")


def byte_range(layout: dict[str, Any], name: str, start: int, stop: int) -> tuple[int, int]:
    """Bytes (begin, end) of a dataset's entries start .. stop in the file of this layout."""
    entry = layout[name]
    width = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"][1:], dtype=np.int64))
    return entry["offset"] + start * width, entry["offset"] + stop * width


def from_bytes(layout: dict[str, Any], name: str, data: bytes) -> np.ndarray:
    """The entries of a dataset from the bytes of its `byte_range`."""
    entry = layout[name]
    return np.frombuffer(data, entry["dtype"]).reshape(-1, *entry["shape"][1:])


def read_part(path: str) -> dict[str, np.ndarray]:
    """All datasets of a local file as they are stored, through HDF5.

    Raises ValueError for another schema's file.
    """
    with open_hdf5(path) as file:
        known = sorted(set(SCHEMA_VERSIONS.values()))
        if file.attrs.get("schema") not in known:
            raise ValueError(
                f"its schema is {file.attrs.get('schema')!r}, this software reads "
                f"{', '.join(known)}"
            )
        return {
            name: dataset(file, name)[()]
            for name in (*NAMES, *((ROTATION,) if ROTATION in file else ()))
        }
