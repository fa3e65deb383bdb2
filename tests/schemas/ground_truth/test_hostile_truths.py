"""Ground truths and labels: any values and any bytes are read, or refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.ground_truth.labels import match_labels, read_labels
from tests.support.hostile import accepted, inputs
from tests.support.mutations import HOSTILE, byte_changes, json_bytes, places, set_at

QUERY = {"name": "a", "box": [1.0, 2.0, 3.0, 4.0], "easy": [1], "hard": ["c"], "junk": [0]}
TRUTH = {
    "schema": "rrt-ground-truth/1",
    "name": "x",
    "gallery": ["a", "b", "c", "d"],
    "queries": [QUERY, {**QUERY, "name": "b", "box": None}],
}
GND: dict[str, Any] = {
    "imlist": ["a", "b", "c"],
    "qimlist": ["q"],
    "gnd": [
        {"bbx": [1.0, 2.0, 30.0, 40.0], "easy": np.array([0]), "hard": np.array([1]), "junk": [2]}
    ],
}
ODD = [*HOSTILE, float("nan"), float("inf"), b"\xff", (1, 2), {1}, np.float32(2), np.zeros((2, 2))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("truths")


def read(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    return accepted(lambda: load_ground_truth(str(path)))


def test_json(folder: Path) -> None:
    path = folder / "truth.json"
    assert read(path, json.dumps(TRUTH).encode())

    @inputs(60)
    @given(json_bytes(TRUTH))
    def any_bytes(data: bytes) -> None:
        read(path, data)

    any_bytes()


def test_pickles(folder: Path) -> None:
    path = folder / "gnd_x.pkl"
    assert read(path, pickle.dumps(GND))

    @inputs(60)
    @given(
        byte_changes(pickle.dumps(GND, 2))
        | st.builds(
            lambda where, value: pickle.dumps(set_at(GND, where, value)),
            st.sampled_from([*places(GND)]),
            st.sampled_from(ODD),
        )
    )
    def any_bytes(data: bytes) -> None:
        read(path, data)

    any_bytes()


def test_matlab(folder: Path) -> None:
    path = folder / "gnd_x.mat"
    gnd = np.zeros(1, [("bbx", object), ("easy", object), ("hard", object), ("junk", object)])
    gnd[0] = (np.array([1.0, 2.0, 30.0, 40.0]), np.array([1]), np.array([2]), np.array([3]))
    data = io.BytesIO()
    savemat(data, {"imlist": np.array(["a", "b", "c"], object), "qimlist": "q", "gnd": gnd})
    assert read(path, data.getvalue())

    @inputs(30)
    @given(byte_changes(data.getvalue()))
    def any_bytes(changed: bytes) -> None:
        read(path, changed)

    any_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
def test_boxes_that_are_no_numbers(value: float, folder: Path) -> None:
    path = folder / "gnd_box.pkl"
    path.write_bytes(pickle.dumps(set_at(GND, ("gnd", 0, "bbx"), [0.0, 0.0, value, 1.0])))
    with pytest.raises(UserError, match="for a box: not four finite numbers"):
        load_ground_truth(str(path))


def test_a_pickle_of_lists_in_each_other(folder: Path) -> None:
    """Some hundred bytes that would be walked for years."""
    bomb: list[Any] = []
    for _ in range(60):
        bomb = [bomb, bomb]
    endless: list[Any] = []
    endless.append(endless)
    for value in (bomb, endless):
        path = folder / "gnd_bomb.pkl"
        path.write_bytes(pickle.dumps(set_at(GND, ("gnd", 0, "bbx"), value)))
        with pytest.raises(UserError, match="more than 4,000,000 values"):
            load_ground_truth(str(path))


def test_files_that_are_none(folder: Path) -> None:
    pipe = folder / "pipe.json"
    os.mkfifo(pipe)
    large = folder / "large.json"
    with open(large, "wb") as file:
        file.truncate(6_000_000_000)
    for url, what in [
        (str(pipe), "it is no file"),
        (str(large), "larger than 128,000,000 bytes"),
        (str(folder), "it is no file"),
        ("a\0b.json", "null"),
        ("n" * 5000 + ".json", "too long"),
        ("s4://x/y.json", "s4"),
    ]:
        with pytest.raises(UserError, match=what):
            load_ground_truth(url)


LABELS = b"a,1\nb,2\nc,1\n"


def _parquet(columns: dict[str, pa.Array]) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data)
    return data.getvalue()


PARQUET = _parquet({"path": pa.array(["a", "b"]), "label": pa.array([1, 2])})
ARRAYS = st.sampled_from(
    [
        pa.array(["a", "b"]),
        pa.array([None, "b"]),
        pa.array([1.5, float("nan")]),
        pa.array([["a"], []]),
        pa.array([{"x": 1}, None]),
        pa.array([b"\xff", b"a"]),
        pa.nulls(2),
    ]
)


@inputs(80)
@given(
    byte_changes(LABELS)
    | byte_changes(PARQUET)
    | st.builds(lambda name, label: _parquet({"path": name, "label": label}), ARRAYS, ARRAYS)
)
def test_labels(data: bytes) -> None:
    accepted(lambda: match_labels(read_labels(data, "labels"), ["s/a", "s/b"], "labels"))
