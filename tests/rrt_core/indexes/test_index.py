"""Indexes against plain numpy and raw faiss."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from rrt_core.indexes import faiss_index as indexes
from rrt_core.indexes import kinds
from schemas.errors import UserError


def unit_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_flat_equals_numpy() -> None:
    gallery, queries = unit_rows(500, 32), unit_rows(7, 32, 1)
    ids = np.arange(500) * 4096 + 3
    index = kinds.empty_index("Flat", 32)
    indexes.add(index, gallery, ids)
    result = indexes.search(index, queries, 20, nprobe=1)
    np.testing.assert_array_equal(result, ids[np.argsort(-(queries @ gallery.T), axis=1)[:, :20]])


def test_fewer_rows_than_asked() -> None:
    index = kinds.empty_index("Flat", 8)
    indexes.add(index, unit_rows(3, 8), np.array([5, 6, 7]))
    assert sorted(indexes.search(index, unit_rows(1, 8), 10, 1)[0].tolist()) == [5, 6, 7]


@pytest.mark.parametrize("key", ["IVF16,Flat", "IVF16,PQ8x4", "IVF16,SQ8", "OPQ8_32,IVF16,PQ8x4"])
def test_merged_shards_equal_raw_faiss(key: str) -> None:
    faiss.omp_set_num_threads(1)
    gallery, queries = unit_rows(3000, 32), unit_rows(5, 32, 1)
    metric = kinds.METRICS[kinds.metric_of(key, 32)]
    reference = faiss.index_factory(32, key, metric)
    reference.train(gallery)
    reference.add(gallery)
    faiss.extract_index_ivf(reference).nprobe = 4
    _, expected = reference.search(queries, 30)
    trained = kinds.empty_index(key, 32)
    indexes.train(trained, gallery)
    shards = []
    for start in range(0, 3000, 1000):
        shard = faiss.clone_index(trained)
        indexes.add(shard, gallery[start : start + 1000], np.arange(start, start + 1000))
        shards.append(shard)
    for shard in shards:
        indexes.merge(trained, shard)
    assert trained.ntotal == 3000
    np.testing.assert_array_equal(indexes.search(trained, queries, 30, nprobe=4), expected)


def test_flat_shards_merge() -> None:
    a, b = kinds.empty_index("Flat", 8), kinds.empty_index("Flat", 8)
    rows = unit_rows(20, 8)
    indexes.add(a, rows[:10], np.arange(10))
    indexes.add(b, rows[10:], np.arange(10, 20) + 4096)
    indexes.merge(a, b)
    result = indexes.search(a, rows[15:16], 1, 1)
    assert result.tolist() == [[15 + 4096]]


def test_keys_that_cannot_be() -> None:
    with pytest.raises(UserError, match="nonsense"):
        kinds.empty_index("nonsense", 8)
    with pytest.raises(UserError, match="PQ7"):
        kinds.empty_index("IVF4,PQ7", 8)
    with pytest.raises(UserError, match="refinement"):
        kinds.empty_index("IVF4,PQ4,Refine(Flat)", 8)


def test_too_small_a_sample_is_told() -> None:
    index = kinds.empty_index("IVF64,Flat", 8)
    with pytest.raises(UserError, match="choose Flat"):
        indexes.train(index, unit_rows(10, 8))


def test_choice_of_key() -> None:
    assert kinds.choose_key(1_560, 1280) == "Flat"
    assert kinds.choose_key(1_005_994, 2048) == "IVF4096,PQ64x8"
    assert kinds.choose_key(1_005_994, 1280) == "IVF4096,PQ64x8"
    assert not kinds.needs_training("Flat", 64)
    assert kinds.needs_training("IVF16,PQ8", 64)


def test_exact_scores_do_not_depend_on_company() -> None:
    gallery, query = unit_rows(257, 1280), unit_rows(1, 1280, 1)[0]
    together = indexes.exact_scores(query, gallery)
    alone = np.concatenate([indexes.exact_scores(query, gallery[i : i + 1]) for i in range(257)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(
        together, gallery.astype(np.float64) @ query.astype(np.float64), atol=1e-7
    )


def test_order_is_by_score_then_by_bytes_of_the_id() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.5], np.float32)
    assert indexes.order(scores, ["s/ä", "s/z", "s/b", "s/B"]).tolist() == [1, 3, 2, 0]


def test_sample_does_not_depend_on_order() -> None:
    names = [f"s/{i}" for i in range(100)]
    forward, backward = indexes.sample_order(names, 1), indexes.sample_order(names[::-1], 1)
    np.testing.assert_array_equal(forward, backward[::-1])
    assert (indexes.sample_order(names, 2) != forward).any()
