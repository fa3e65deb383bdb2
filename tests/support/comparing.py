"""Whether files are the very same, and whether two finished outputs hold the same data."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow.parquet as pq

# Computed in floats, so that another processor may round them otherwise.
SCORES = {"score", "global_score", "logit", "first_logit"}
SENTENCES = {"reason"}  # words for a person, which may be put better one day
CLOSE = 1e-5
WRITTEN_BY = {".parquet": "pyarrow", ".h5": "h5py", ".faiss": "faiss-cpu"}


def state(*paths: Path) -> dict[Path, tuple[int, str]]:
    """Each file at or below the paths: when it was written (ns), and the SHA-256 of its bytes."""
    return {path: (path.stat().st_mtime_ns, digest) for path, digest in contents(*paths).items()}


def contents(*paths: Path) -> dict[Path, str]:
    """Each file at or below the paths: the SHA-256 of its bytes."""
    below = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return {file: sha256(file.read_bytes()).hexdigest() for file in below if file.is_file()}


def assert_same_output(old: Path, new: Path) -> bool:
    """Assert that two finished outputs were made by one recipe and hold the same data.

    Gives whether the data files are the same to the byte.

    By bytes; Parquet, HDF5 and faiss files by what is in them where other versions of these
    packages wrote them. Scores are alike within 1e-5, and the words of a failure are its own.
    """
    was, now = (json.loads((folder / "manifest.json").read_text()) for folder in (old, new))
    recipes = [{**record["recipe"], "inputs": None} for record in (was, now)]  # inputs hold scores
    assert recipes[0] == recipes[1]
    assert (was["stage"], was["counts"]) == (now["stage"], now["counts"])

    files, others = _data_files(old), _data_files(new)
    assert files.keys() == others.keys()
    for name, path in files.items():
        package = WRITTEN_BY.get(path.suffix, "")
        same_writer = was["versions"].get(package) == now["versions"].get(package)
        _assert_same_file(path, others[name], same_writer)

    same = all(path.read_bytes() == others[name].read_bytes() for name, path in files.items())
    assert same == (was["content"] == now["content"])
    return same


def _data_files(output: Path) -> dict[str, Path]:
    """The files that a finished output names, by their names without the hash of their content."""
    names = pq.read_table(output / "parts.parquet").column("name").to_pylist()
    return {re.sub(r"\.[0-9a-f]{12}\.", ".", name): output / name for name in names}


def _assert_same_file(old: Path, new: Path, same_writer: bool) -> None:
    if old.read_bytes() == new.read_bytes() or old.suffix == ".html":  # a page's words are its own
        return
    if old.suffix == ".parquet":
        differ = _tables(old, new)
    elif old.suffix == ".h5":
        differ = _datasets(old, new)
    elif old.suffix == ".faiss":
        differ = _indexes(old, new)
    else:
        raise AssertionError(f"{new} has other bytes than {old}")
    assert differ or not same_writer, f"{new} has other bytes than {old}, and holds the same"


def _tables(old: Path, new: Path) -> bool:
    """Compare two tables; whether values differ, in the way that is allowed."""
    was, now = (pq.read_table(path) for path in (old, new))
    assert was.schema.equals(now.schema, check_metadata=True), new
    differ = False
    for name in was.column_names:
        left, right = was.column(name), now.column(name)
        if name in SCORES:
            floats = [column.to_numpy() for column in (left, right)]
            np.testing.assert_allclose(*floats, rtol=0, atol=CLOSE, equal_nan=True)
        elif name not in SENTENCES:
            assert left.equals(right), f"{new}: {name}"
            continue
        differ = differ or not left.equals(right)
    return differ


def _datasets(old: Path, new: Path) -> bool:
    """Compare two files of local descriptors, value for value."""
    with h5py.File(old, "r") as was, h5py.File(new, "r") as now:
        assert (dict(was.attrs), was.keys()) == (dict(now.attrs), now.keys()), new
        for name in was:
            left, right = was[name][()], now[name][()]
            assert left.dtype == right.dtype, f"{new}: {name}"
            np.testing.assert_array_equal(left, right, f"{new}: {name}")
    return False


def _indexes(old: Path, new: Path) -> bool:
    """Compare two indexes; whether they were trained to other, close centroids."""
    was, now = (_index_parts(path) for path in (old, new))
    np.testing.assert_allclose(was["centroids"], now["centroids"], rtol=0, atol=CLOSE)
    assert {**was, "centroids": None} == {**now, "centroids": None}, new
    return not np.array_equal(was["centroids"], now["centroids"])


def _index_parts(path: Path) -> dict[str, Any]:
    """Centroids (none of an exact index), and each list's ids and codes."""
    index = faiss.read_index(str(path))
    trained = faiss.try_extract_index_ivf(index)
    if trained is None:
        codes = faiss.vector_to_array(faiss.downcast_index(index.index).codes).tobytes()
        ids = faiss.vector_to_array(index.id_map).tolist()
        return {"centroids": np.zeros(0), "lists": [(ids, codes)]}

    lists = trained.invlists
    held = []
    for number in range(trained.nlist):
        size = lists.list_size(number)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size).tolist() if size else []
        width = size * trained.code_size
        codes = faiss.rev_swig_ptr(lists.get_codes(number), width).tobytes() if size else b""
        held.append((ids, codes))
    return {"centroids": trained.quantizer.reconstruct_n(0, trained.nlist), "lists": held}
