"""Any index key: one that is accepted can be trained, filled, merged and searched; any other is
refused with one sentence, before anything large is built.
"""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_core.indexes import faiss_index as indexes
from rrt_core.indexes import kinds
from schemas.errors import UserError
from tests.support.hostile import accepted, inputs

DIMENSION, ROWS = 16, 160

NUMBERS = st.sampled_from(
    [*["1", "2", "3", "4", "7", "8", "16", "16", "32", "64"], "0", "-1", "99999999999", "1e9", ""]
)
FRONT = st.sampled_from(["PCA", "PCAR", "PCAW", "OPQ", "RR", "L2norm", "Pad", "ITQ", "ITQ8_"])
COARSE = st.sampled_from(["IVF", "IMI2x", "HNSW", "NSG", "ivf"])
LAST = st.sampled_from(
    ["Flat", "SQ8", "SQ4", "SQfp16", "PQ8x4", "PQ4", "PQ", "LSH", "RaBitQ", "NSG"]
)
REST = st.sampled_from(["RFlat", "Refine(Flat)", "IDMap", "IDMap2", ",", "(x)", "\x00", "é", "x64"])
PIECES = st.one_of(
    st.builds(str.__add__, FRONT, NUMBERS),
    st.builds(str.__add__, COARSE, NUMBERS),
    st.builds(str.__add__, LAST, NUMBERS),
    LAST,
    LAST,
    REST,
)
KEYS = st.one_of(st.lists(PIECES, min_size=1, max_size=3).map(",".join), st.text(max_size=8))


def unit_rows(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, DIMENSION)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@inputs(150)
@given(KEYS)
def test_what_is_accepted_works(key: str) -> None:
    if not accepted(lambda: kinds.empty_index(key, DIMENSION)):
        return

    assert kinds.code_bytes(kinds.empty_index(key, DIMENSION)) > 0
    if kinds.least_rows(key, DIMENSION) > ROWS:  # the plan refuses it
        return

    rows, index = unit_rows(2 * ROWS), kinds.empty_index(key, DIMENSION)
    if not index.is_trained and not accepted(lambda: indexes.train(index, rows)):
        return
    stored = faiss.serialize_index(index)
    index, other = faiss.deserialize_index(stored), faiss.deserialize_index(stored)
    indexes.add(index, rows[:ROWS], np.arange(ROWS))
    indexes.add(other, rows[ROWS:], np.arange(ROWS) + 4096)
    indexes.merge(index, other)
    found = indexes.search(index, rows[:4], 2 * ROWS, 32)
    assert index.ntotal == 2 * ROWS
    assert set(found.ravel().tolist()) <= {-1, *range(ROWS), *range(4096, 4096 + ROWS)}


@pytest.mark.parametrize(
    "key", ["HNSW32", "NSG32", "HNSW32,SQ8", "IVF0,Flat", "PCA17,Flat", "Flat,IDMap,IDMap"]
)
def test_keys_that_cannot_be_used_name_those_that_can(key: str) -> None:
    with pytest.raises(UserError, match="Flat|leave IDMap out|1 to 1,048,576 lists"):
        kinds.empty_index(key, DIMENSION)


@pytest.mark.parametrize("key", ["PCA8,Flat", "OPQ4,PQ4x4", "PCAR8,SQ8"])
def test_a_transformation_in_front_of_an_index_without_lists(key: str) -> None:
    """They took no ids, and the first shard failed."""
    index, rows = kinds.empty_index(key, DIMENSION), unit_rows(2 * ROWS)
    indexes.train(index, rows)
    indexes.add(index, rows, np.arange(2 * ROWS) + 10)
    assert (indexes.search(index, rows[:9], 3, 1) >= 10).all()
