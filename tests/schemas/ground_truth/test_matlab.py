"""MATLAB's ground truth: the same as the pickle's, with positions from 1."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.ground_truth.restricted_pickle import load_plain

DATA = (
    Path(os.environ.get("RRT_TEST_DATA", Path(__file__).resolve().parents[4] / "shared"))
    / "ground_truth"
)


def as_matlab(path: Path, truth: dict[str, Any]) -> Path:
    """Write plain data of a pickle as MATLAB would: a struct array, positions from 1, cell arrays
    of names.
    """
    kinds = [key for key in ("bbx", "easy", "hard", "junk", "ok") if key in truth["gnd"][0]]
    gnd = np.zeros((1, len(truth["gnd"])), [(key, object) for key in kinds])
    for place, query in enumerate(truth["gnd"]):
        for key in kinds:
            shift = 0 if key == "bbx" else 1
            gnd[key][0, place] = np.asarray(query[key], np.float64).reshape(1, -1) + shift
    cells = {name: np.array(truth[name], object).reshape(-1, 1) for name in ("imlist", "qimlist")}
    savemat(path, {"gnd": gnd, **cells})
    return path


TRUTH = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q1", "q2"],
    "gnd": [
        {"bbx": [1.5, 2.0, 30.0, 40.0], "easy": [0], "hard": [1, 2], "junk": []},
        {"bbx": [0.0, 0.0, 5.0, 6.0], "easy": [], "hard": [3], "junk": [0]},
    ],
}


def test_as_the_pickle(tmp_path: Path) -> None:
    (tmp_path / "gnd_small.pkl").write_bytes(pickle.dumps(TRUTH))
    as_matlab(tmp_path / "gnd_small.mat", TRUTH)
    assert load_ground_truth(str(tmp_path / "gnd_small.mat")) == load_ground_truth(
        str(tmp_path / "gnd_small.pkl")
    )


@pytest.mark.parametrize("name", ["gnd_roxford5k.pkl", "gnd_rparis6k.pkl"])
def test_the_real_ones(name: str, tmp_path: Path) -> None:
    result = next(iter(DATA.rglob(name)), None)
    if result is None:
        pytest.skip(f"RRT_TEST_DATA has no {name}")
    truth = load_plain(result.read_bytes(), name)
    path = as_matlab(tmp_path / name.replace(".pkl", ".mat"), truth)
    assert load_ground_truth(str(path)) == load_ground_truth(str(result))


def test_what_is_no_ground_truth(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as revisitop's MATLAB file"):
        load_ground_truth(str(path))
    savemat(path, {"other": 1})
    with pytest.raises(UserError, match="cannot be read as revisitop's MATLAB file: 'gnd'"):
        load_ground_truth(str(path))
