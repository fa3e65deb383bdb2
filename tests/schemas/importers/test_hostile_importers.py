"""Descriptors of other software: any bytes, headers that lie, links that lead elsewhere."""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from schemas import local_descriptors
from schemas.errors import UserError
from schemas.importers import Unusable, delg
from schemas.importers.ames import AmesFile
from schemas.importers.arrays import open_matrix
from schemas.local_descriptors import LocalRow, check_layout
from tests.support.hostile import accepted, inputs
from tests.support.mutations import HOSTILE, byte_changes

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("descriptors")


def _npy(path: Path) -> None:
    np.save(path, MATRIX)


def _npz(path: Path) -> None:
    np.savez_compressed(path, x=MATRIX)


def _mat(path: Path) -> None:
    savemat(path, {"x": MATRIX}, do_compression=True)


def _h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=MATRIX, chunks=(2, 3), compression="gzip")


FORMS = {"npy": _npy, "npz": _npz, "mat": _mat, "h5": _h5}


def read_matrix(path: Path) -> None:
    """As an import does: the shape, then all rows."""
    matrix = open_matrix(str(path), path.suffix[1:])
    for start in range(0, min(matrix.rows, 100), 10):
        matrix.read(start, min(start + 10, matrix.rows))


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_matrices(form: str, folder: Path) -> None:
    path = folder / f"matrix.{form}"
    FORMS[form](path)
    assert accepted(lambda: read_matrix(path))

    @inputs(40)
    @given(byte_changes(path.read_bytes()))
    def any_bytes(data: bytes) -> None:
        path.write_bytes(data)
        accepted(lambda: read_matrix(path))

    any_bytes()


@inputs(60)
@given(
    st.sampled_from(
        ["<f4", "<f8", "|O", "<U9", "V0", "|S0", "<M8[s]", "<c8", "|b1", "x", "<f4,<f4"]
    ),
    st.sampled_from(
        ["(4, 3)", "(4, 4)", "(-4, -3)", "(2**40, 3)", "(10000000000000, 3)", "(0, 99999999999999)"]
    )
    | st.sampled_from(["()", "(12,)", "4, 3", "(4.0, 3)", "(" * 900 + ")" * 900, "None", "'x'"]),
    st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    st.booleans(),
)
def test_headers_of_npy(
    folder: Path, kind: str, shape: str, version: tuple[int, int], columns: bool
) -> None:
    """Whatever the header claims, nothing of that size is allocated."""
    header = f"{{'descr': {kind!r}, 'fortran_order': {columns}, 'shape': {shape}}}\n".encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    path = folder / "claims.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(version) + size + header + MATRIX.tobytes())
    accepted(lambda: read_matrix(path))


def test_an_array_in_a_zip_that_claims_too_much(folder: Path) -> None:
    path = folder / "claims.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3)}\n"
    with zipfile.ZipFile(path, "w") as archive:
        data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
        archive.writestr("x.npy", data + MATRIX.tobytes())
    with pytest.raises(UserError, match=r"claims\.npz: .*its header claims float32"):
        open_matrix(str(path), "npz")


def _linked(how: str, path: Path) -> None:
    elsewhere = path.with_name("elsewhere.h5")
    with h5py.File(elsewhere, "w") as file:
        file["features"] = MATRIX
    path.with_name("secret.bin").write_bytes(MATRIX.tobytes())
    with h5py.File(path, "w") as file:
        if how == "loop":
            file["features"] = h5py.SoftLink("/features")
        elif how == "soft":
            file["matrix"] = MATRIX
            file["features"] = h5py.SoftLink("/matrix")
        elif how == "external":
            file["features"] = h5py.ExternalLink(str(elsewhere), "/features")
        elif how == "storage":
            secret = [(str(path.with_name("secret.bin")), 0, MATRIX.nbytes)]
            file.create_dataset("features", MATRIX.shape, "<f4", external=secret)
        elif how == "virtual":
            layout = h5py.VirtualLayout(MATRIX.shape, "<f4")
            layout[:] = h5py.VirtualSource(str(elsewhere), "features", MATRIX.shape)
            file.create_virtual_dataset("features", layout)
        elif how == "huge":
            file.create_dataset("features", (4, 10**10), "<f4", chunks=(1, 1000))
        elif how == "group":
            file.create_group("features")
        else:
            file["features"] = h5py.Empty("f4")


LINKS = {
    "loop": "links are not followed|holds nothing",
    "soft": "links are not followed|holds matrix",
    "external": "links are not followed|holds nothing",
    "storage": "lie in other files",
    "virtual": "lie in other files",
    "huge": "would take 40,000,000,000 bytes",
    "group": "is no dataset|holds nothing",
    "empty": "is empty",
}


@pytest.mark.parametrize("how", LINKS)
def test_hdf5_that_leads_elsewhere(how: str, folder: Path) -> None:
    path = folder / "linked.h5"
    path.unlink(missing_ok=True)
    _linked(how, path)
    for read in (lambda: AmesFile(str(path)), lambda: open_matrix(str(path), "h5", "features")):
        with pytest.raises(UserError, match=LINKS[how]):
            read()


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    for form in FORMS:
        path = folder / f"pipe.{form}"
        os.mkfifo(path)
        with pytest.raises(UserError, match="it is no file"):
            open_matrix(str(path), form)


@pytest.mark.parametrize("structured", [False, True])
def test_bytes_of_ames(structured: bool, folder: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 4, 13)).astype(np.float32)
    rows[..., 2:4] = 0
    features: Any = rows
    if structured:
        kind = [("metadata", "<f4", (5,)), ("descriptor", "u1", (1,))]
        features = np.zeros((3, 4), np.dtype(kind))
        features["metadata"] = rows[..., :5]
    path = folder / "ames.h5"
    with h5py.File(path, "w") as file:
        file["features"] = features

    def read() -> None:
        ames = AmesFile(str(path))
        for image in ames.read(0, min(3, ames.rows)):
            ames.locals_of(image, 3, (1.0,))

    assert accepted(read)

    @inputs(30)
    @given(byte_changes(path.read_bytes()))
    def any_bytes(data: bytes) -> None:
        path.write_bytes(data)
        accepted(read, Unusable)

    any_bytes()


def test_bytes_of_delg() -> None:
    messages = delg.messages()
    datum = messages["DatumProto"]()
    datum.shape.dim.append(4)
    datum.float_list.value.extend([0.5] * 4)
    features = messages["DelfFeatures"]()
    for number in range(3):
        feature = features.feature.add(x=1.0, y=2.0, scale=1.0, strength=3.0 - number)
        feature.descriptor.CopyFrom(datum)

    def locals_of(data: bytes) -> object:
        return delg.locals_of(delg.parse_local(data), dimension=4, most=2)

    readers: list[tuple[bytes, Callable[[bytes], object]]] = [
        (datum.SerializeToString(), delg.parse_global),
        (features.SerializeToString(), locals_of),
    ]
    for right, read in readers:
        _read_any_bytes(right, read)


def _read_any_bytes(right: bytes, read: Callable[[bytes], object]) -> None:
    @inputs(60)
    @given(byte_changes(right) | st.binary(max_size=64))
    def any_bytes(data: bytes) -> None:
        accepted(lambda: read(data), Unusable)

    any_bytes()


def test_layouts_that_markers_claim(folder: Path) -> None:
    """A reader takes bytes by a layout: none of them may lie outside the file."""
    path = str(folder / "part.h5")
    ones = np.ones((2, 4), np.float32)
    row = LocalRow(0, ones, ones[:, :2], np.zeros(2, np.uint8), ones[:, 0])
    layout = local_descriptors.write_part(path, [row], 4, "float16")
    size = Path(path).stat().st_size
    assert accepted(lambda: check_layout(layout, size))
    names = st.sampled_from(local_descriptors.NAMES)

    @inputs(60)
    @given(names, st.sampled_from(["offset", "dtype", "shape", None]), st.sampled_from(HOSTILE))
    def any_layout(name: str, key: str | None, value: object) -> None:
        claimed = {**layout, name: {**layout[name], key: value} if key else value}

        def read() -> None:
            check_layout(claimed, size)
            start, stop = local_descriptors.byte_range(claimed, name, 0, claimed[name]["shape"][0])
            assert start == stop or 0 <= start < stop <= size

        accepted(read, ValueError)

    any_layout()


def test_a_trap_of_compressed_zeros_ends_soon(folder: Path) -> None:
    path = folder / "zeros.npz"
    data = io.BytesIO()
    np.save(data, np.zeros((1000, 1000), np.float32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", data.getvalue())
    started = time.monotonic()
    assert accepted(lambda: read_matrix(path)) and time.monotonic() - started < 5
