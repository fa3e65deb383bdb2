"""Matrices of global descriptors as others keep them, and our own flat arrays of local ones.

    .npy   [n, D] or [D, n], read by memory map
    .npz   one of its arrays
    .mat   [D, n], MATLAB's or revisitop's features (X: gallery, Q: queries); version 7.3 is HDF5
           and read by rows
    .h5    [n, D] in a dataset `features` (AMES, ILIAS)
    clip   clip-retrieval's folder: img_emb/img_emb_0.npy ..., metadata/metadata_0.parquet ...

Object arrays are refused: reading one would run code of the file.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq

from schemas.errors import UserError
from schemas.importers import ImportedLocals, Unusable, checked_locals, parsing, reading
from schemas.openers.hdf5 import dataset, datasets, open_hdf5
from schemas.openers.npy import open_npy, read_header
from schemas.openers.parquet import columns_of

# MATLAB's classes of numbers
NUMBERS = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32)))
MOST_BYTES = 4_000_000_000  # of a matrix that cannot be mapped
LAYOUTS = ("auto", "rows", "columns")
LOCAL_ARRAYS = ("descriptor", "xy", "scale", "strength", "offset")


class Matrix:
    """Global descriptors, an image a row, whatever the file's layout.

    rows: images, n.
    dimension: D.

    `pieces` follow each other; `columns`: an image is a column of theirs.
    """

    def __init__(self, path: str, pieces: Sequence[Any], columns: bool) -> None:
        self.path, self._pieces, self._columns = path, list(pieces), columns
        for piece in self._pieces:
            if piece.ndim != 2 or piece.dtype.kind not in "fiu":
                raise UserError(
                    f"{path}: it holds {piece.dtype} {list(piece.shape)}; it must be a matrix of "
                    "numbers"
                )
        sizes = {int(piece.shape[0 if columns else 1]) for piece in self._pieces}
        if len(sizes) != 1:
            raise UserError(f"{path}: its files have different dimensions, {sorted(sizes)}")
        self.dimension = sizes.pop()
        if not self.dimension:
            raise UserError(
                f"{path}: it holds {list(self._pieces[0].shape)}: vectors without a dimension"
            )
        self._ends = np.cumsum([piece.shape[1 if columns else 0] for piece in self._pieces])
        self.rows = int(self._ends[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop in the file's dtype, [stop - start, D]. Raises UserError."""
        with parsing(self.path, f"a matrix: rows {start} to {stop - 1}"):
            return self._read(start, stop)

    def _read(self, start: int, stop: int) -> np.ndarray:
        blocks = []
        for piece, end in zip(self._pieces, self._ends, strict=True):
            size = piece.shape[1 if self._columns else 0]
            first, last = max(start - (end - size), 0), min(stop - (end - size), size)
            if first < last:
                block = piece[:, first:last].T if self._columns else piece[first:last]
                blocks.append(np.asarray(block))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)


def open_matrix(
    path: str, kind: str, variable: str = "", layout: str = "auto", expected: int = 0
) -> Matrix:
    """The matrix of a local file.

    Args:
        kind: npy, npz, mat, h5 or clip.
        variable: its name in .npz and .mat.
        layout: rows, columns, or auto: the one whose number of images is `expected`, else columns
            for .mat alone.

    Raises:
        UserError: no such file, not readable, no numbers, more than one array to choose from, or
            too large to load.
    """
    if kind == "clip":
        return Matrix(path, [_npy(name) for name in clip_files(path)[0]], False)
    if kind in ("npy", "npz"):
        array: Any = _npy(path) if kind == "npy" else _npz(path, variable)
    else:
        array = _mat(path, variable) if kind == "mat" else _hdf5(path, "features")

    # HDF5 has MATLAB's matrices transposed
    flipped = kind == "mat" and isinstance(array, h5py.Dataset)
    if array.ndim != 2:
        raise UserError(
            f"{path}: it holds an array of the shape {list(array.shape)}; it must be a matrix"
        )

    columns = kind == "mat" if layout == "auto" else layout == "columns"
    rows_if = {wanted: int(array.shape[1 if wanted != flipped else 0]) for wanted in (False, True)}
    if (
        layout == "auto"
        and expected
        and rows_if[columns] != expected
        and rows_if[not columns] == expected
    ):
        columns = not columns

    return Matrix(path, [array], columns != flipped)


def _npy(path: str) -> np.ndarray:
    with reading(path, ".npy"):
        return open_npy(path)


def _npz(path: str, variable: str) -> np.ndarray:
    with reading(path, ".npz"):
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            name = _choose(path, variable, list(members))
            _bounded(path, members[name].file_size)
            with archive.open(members[name]) as member:
                read_header(member, members[name].file_size)
        with np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
            return array


def _mat(path: str, variable: str) -> Any:
    from scipy.io import loadmat, whosmat

    with reading(path, "a MATLAB file"):
        try:
            listed = {name: shape for name, shape, kind in whosmat(path) if kind in NUMBERS}
        except NotImplementedError:  # version 7.3
            return _hdf5(path, variable)
        name = _choose(path, variable, list(listed))
        _bounded(path, 8 * int(np.prod([float(size) for size in listed[name]])))
        return loadmat(path, variable_names=[name], appendmat=False)[name]


def _hdf5(path: str, variable: str) -> Any:
    with reading(path, "HDF5"):
        file = open_hdf5(path)
        return dataset(file, _choose(path, variable, datasets(file)))


def _choose(path: str, variable: str, names: Sequence[str]) -> str:
    """The array that is meant. Raises UserError where there is none or a choice."""
    listed = ", ".join(names) or "nothing"
    if variable and variable not in names:
        raise UserError(f"{path}: it has no array {variable!r}; it holds {listed} (--variable)")
    if not variable and len(names) != 1:
        raise UserError(f"{path}: it holds {listed}; name one with --variable")
    return variable or names[0]


def _bounded(path: str, size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(
            f"{path}: its array takes {size:,} bytes in memory, more than {MOST_BYTES:,}; save it "
            "as .npy"
        )


def clip_files(folder: str) -> tuple[list[str], list[str]]:
    """Files of embeddings and of metadata of a clip-retrieval folder, by their numbers.

    Raises UserError where there are no embeddings, or metadata of other numbers: each N has its own
    of both.
    """

    def numbered(below: str, pattern: str) -> dict[int, str]:
        where = os.path.join(folder, below)
        where = where if os.path.isdir(where) else folder
        if not os.path.isdir(where):
            raise UserError(f"{folder}: there is no such folder")
        matches = {name: re.fullmatch(pattern, name) for name in os.listdir(where)}
        chosen = sorted((int(match[1]), name) for name, match in matches.items() if match)
        return {number: os.path.join(where, name) for number, name in chosen}

    vectors = numbered("img_emb", r"img_emb_(\d+)\.npy")
    metadata = numbered("metadata", r"metadata_(\d+)\.parquet")
    alone = sorted(vectors.keys() ^ metadata.keys()) if metadata else []

    if not vectors or alone:
        first = f"; only one of the two is there for N = {alone[0]}" if vectors else ""
        raise UserError(
            f"{folder}: it holds {len(vectors)} files img_emb_N.npy and {len(metadata)} "
            f"metadata_N.parquet{first}; clip-retrieval makes one of each for each N"
        )

    return list(vectors.values()), list(metadata.values())


def clip_names(folder: str) -> list[str] | None:
    """The `image_path` of each row, without a leading slash; None without such a column.

    Raises UserError where a file is no Parquet, has not as many rows as its embeddings, or a row
    without a path.
    """
    names: list[str] = []
    # strict=False: there may be no metadata
    for vectors, path in zip(*clip_files(folder), strict=False):
        with reading(path, "Parquet"), pq.ParquetFile(path) as file:
            if "image_path" not in file.schema_arrow.names:
                return None
            paths = columns_of(file, ["image_path"]).column("image_path").to_pylist()
        rows = _npy(vectors).shape[:1]
        if rows != (len(paths),):
            raise UserError(
                f"{path}: it has {len(paths):,} rows, but {vectors} has {rows[0] if rows else 0:,}"
            )
        if None in paths:
            raise UserError(
                f"{path}: row {paths.index(None)} has no image_path; give the names with --list"
            )
        names += paths

    return [str(name).lstrip("/") for name in names] or None


class FlatLocals:
    """A folder of flat arrays of local descriptors, as `export` writes them.

    descriptor.npy [m, W], xy.npy [m, 2] (x, y), scale.npy [m] (ordinals), strength.npy [m],
    offset.npy.

    offset is int64 [n + 1]: image i has the entries offset[i] .. offset[i + 1]. Raises UserError
    where they do not fit together.

    in_order  an image's locals are kept as they stand, not the strongest first
    """

    def __init__(self, folder: str, *, in_order: bool = False) -> None:
        self.in_order = in_order
        self.arrays = {name: _npy(os.path.join(folder, f"{name}.npy")) for name in LOCAL_ARRAYS}
        described, offset = self.arrays["descriptor"], self.arrays["offset"]
        total = len(described)
        shapes = {"xy": (total, 2), "scale": (total,), "strength": (total,)}

        for name, shape in shapes.items():
            if self.arrays[name].shape != shape:
                raise UserError(
                    f"{folder}/{name}.npy: its shape is {list(self.arrays[name].shape)}, not "
                    f"{list(shape)}"
                )

        if described.ndim != 2 or not described.shape[1] or described.dtype.kind != "f":
            raise UserError(
                f"{folder}/descriptor.npy: it must be a matrix of floating-point numbers"
            )

        whole = offset.ndim == 1 and len(offset) and offset.dtype.kind in "iu"
        if not whole or offset[0] != 0 or offset[-1] != total or (offset[1:] < offset[:-1]).any():
            raise UserError(
                f"{folder}/offset.npy: it must rise from 0 to {total}, the number of descriptors"
            )

        self.rows, self.dimension = len(offset) - 1, int(described.shape[1])

    def locals_of(self, row: int, most: int, scales: int) -> ImportedLocals:
        """One image's first `most`. Raises Unusable (schemas.importers)."""
        start, stop = (int(end) for end in self.arrays["offset"][row : row + 2])
        piece = {name: np.asarray(self.arrays[name][start:stop]) for name in LOCAL_ARRAYS[:4]}
        ordinals = piece["scale"]
        if len(ordinals) and (ordinals.min() < 0 or ordinals.max() >= scales):
            raise Unusable(
                f"it holds scale numbers that are none of 0 .. {scales - 1} (--scales)", "scale"
            )
        return checked_locals(
            piece["descriptor"],
            piece["xy"],
            ordinals,
            piece["strength"],
            dimension=self.dimension,
            most=most,
            in_order=self.in_order,
        )
