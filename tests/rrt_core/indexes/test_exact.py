"""Scores by matrix products against the fixed order bit for bit; counts against a sort."""

from __future__ import annotations

import numpy as np
import pytest

from rrt_core.indexes.exact import rows_before, score_matrix
from rrt_core.indexes.faiss_index import exact_scores, order


def unit(random: np.random.Generator, rows: int, dimension: int, dtype: str) -> np.ndarray:
    values = random.normal(size=(rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dimension", [1, 7, 2048])
def test_products_equal_the_fixed_order(dtype: str, dimension: int) -> None:
    random = np.random.default_rng(dimension)
    rows, queries = unit(random, 1500, dimension, dtype), unit(random, 5, dimension, "float32")
    found = score_matrix(queries, rows)
    assert found.dtype == np.float32 and found.shape == (5, 1500)
    for query, scores in zip(queries, found, strict=True):
        assert np.array_equal(scores, exact_scores(query, rows))


def test_scores_halfway_between_two_floats() -> None:
    """Sums that lie on, or hardly beside, the middle of two float32, in any order of terms."""
    random = np.random.default_rng(0)
    rows = np.zeros((400, 64), np.float32)
    rows[:, 0], rows[:, 1] = 1.0, 2.0**-24  # of 1 and 1 + 2^-23 the middle
    rows[::2, 2:] = random.normal(size=(200, 62)) * 1e-17
    rows = np.ascontiguousarray(rows[:, random.permutation(64)])
    queries = np.ones((3, 64), np.float32)
    for query, scores in zip(queries, score_matrix(queries, rows), strict=True):
        assert np.array_equal(scores, exact_scores(query, rows))


@pytest.mark.parametrize("levels", [2, 40, 10**9])
def test_counts_are_the_places_of_a_sort(levels: int) -> None:
    random = np.random.default_rng(levels)
    scores = (random.integers(0, levels, 300) / levels).astype(np.float32)
    record_ids = [f"s/{number}é" for number in random.permutation(300) % 290]  # some twice
    row_ids = np.sort(random.permutation(10_000)[:300])
    place = np.empty(300, np.int64)
    place[order(scores, record_ids)] = np.arange(300)

    for chosen in (random.permutation(300)[:25], np.arange(300), np.arange(0)):
        keys = [(record_ids[row].encode(), int(row_ids[row])) for row in chosen]
        found = sum(
            (
                rows_before(scores[part], record_ids[part], row_ids[part], scores[chosen], keys)
                for part in (slice(0, 0), slice(0, 1), slice(1, 120), slice(120, 300))
            ),
            np.zeros(len(chosen), np.int64),
        )
        assert np.array_equal(found, place[chosen])
