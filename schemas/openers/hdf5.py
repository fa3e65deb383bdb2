"""Opening HDF5 files of any bytes: only what lies in the file itself is read."""

from __future__ import annotations

from typing import Any

import h5py

MOST_ROW_BYTES = 1_000_000_000  # of an entry of the first axis, the least that is read at once


def open_hdf5(file: Any) -> h5py.File:
    """A file by its path, or of opened bytes, for reading. Raises what h5py does."""
    return h5py.File(file, "r", locking=False) if isinstance(file, str) else h5py.File(file, "r")


def datasets(file: h5py.File) -> list[str]:
    """Names of the datasets at the top that lie in the file itself; links are not followed."""
    return [name for name in file if _is_hard(file, name) and _is_dataset(file, name)]


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset at the top of a file.

    Raises ValueError where there is none, it is a link, its data lie in other files, or it claims
    entries that are too large for memory.
    """
    if name not in set(file):
        raise ValueError(f"it has no dataset {name!r}")
    if not _is_hard(file, name):
        raise ValueError(f"{name!r} is a link, and links are not followed")
    if not _is_dataset(file, name):
        raise ValueError(f"{name!r} is no dataset")

    data = file[name]
    if data.external or data.is_virtual:
        raise ValueError(f"the data of {name!r} lie in other files, which are not opened")
    if data.shape is None:
        raise ValueError(f"{name!r} is empty")

    row = data.nbytes // max(1, data.shape[0]) if data.shape else data.dtype.itemsize
    if row > MOST_ROW_BYTES:
        raise ValueError(f"each entry of {name!r} would take {row:,} bytes")

    return data


def _is_hard(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name, getlink=True), h5py.HardLink)


def _is_dataset(file: h5py.File, name: str) -> bool:
    return file.get(name, getclass=True) is h5py.Dataset
