"""MATLAB's version of a revisitop ground truth, as the plain data that the pickles hold."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from schemas.errors import UserError

MOST_BYTES = 32_000_000  # which compressed data can make much larger in memory
POSITIONS = ("easy", "hard", "junk", "ok")


def load_matlab(data: bytes, place: str) -> Any:
    """`imlist`, `qimlist` and `gnd` of a gnd_*.mat (version 7.0 or older) as plain data.

    Plain are lists, dicts, texts and numbers.

    MATLAB counts positions from 1, its boxes from 0 (revisitop's crop_qim.m): positions are made to
    start at 0. Nothing in the file is run. Raises UserError where it is no such file.
    """
    if len(data) > MOST_BYTES:
        raise UserError(f"The ground truth {place} is larger than {MOST_BYTES:,} bytes.")

    from scipy.io import loadmat  # a sixth of a second of every start, for what few have

    try:
        content = loadmat(
            io.BytesIO(data), simplify_cells=True, variable_names=["imlist", "qimlist", "gnd"]
        )
        queries = content["gnd"]
        entries = [queries] if isinstance(queries, dict) else list(queries)
        return {
            "imlist": [str(name) for name in np.atleast_1d(content["imlist"]).tolist()],
            "qimlist": [str(name) for name in np.atleast_1d(content["qimlist"]).tolist()],
            "gnd": [{key: _plain(key, value) for key, value in entry.items()} for entry in entries],
        }
    except NotImplementedError:
        raise UserError(
            f"The ground truth {place} is a MATLAB file of version 7.3; save it in MATLAB "
            "with '-v7', or take the .pkl"
        ) from None
    except Exception as error:  # a damaged file fails with almost any exception
        reason = str(error) or type(error).__name__
        raise UserError(
            f"The ground truth {place} cannot be read as revisitop's MATLAB file: {reason}."
        ) from error


def _plain(key: str, value: Any) -> Any:
    if key in POSITIONS:
        return [int(position) - 1 for position in np.atleast_1d(value).ravel().tolist()]
    return np.atleast_1d(value).ravel().tolist() if key == "bbx" else None
