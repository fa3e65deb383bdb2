"""The metric behind transformations of vectors: what a centring takes away from inner products."""

from __future__ import annotations

import numpy as np
import pytest

from rrt_core.indexes import faiss_index as indexes
from rrt_core.indexes import kinds

DIMENSION, ROWS, WANTED = 256, 4_000, 50


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    """Float32 [4000, 256] of length 1, in clusters, whose mean is .75 long, as that of real
    descriptors is; products with it vary by half as much as those with a query.
    """
    random = np.random.default_rng(0)
    scales = 1 / np.sqrt(1 + np.arange(DIMENSION))
    centres = random.normal(size=(ROWS // 8, DIMENSION)) * scales
    noise = random.normal(size=(ROWS, DIMENSION)) * scales
    rows = unit(centres[random.integers(0, len(centres), ROWS)] + 0.6 * noise)
    mean = unit(random.normal(size=(1, DIMENSION)))
    return unit(rows + mean * (1.15 + 0.2 * random.normal(size=(ROWS, 1)))).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def recall(key: str, gallery: np.ndarray, metric: kinds.Metric | None) -> float:
    """Mean recall@50 of 60 queries of the gallery, by plain products."""
    queries = gallery[:60]
    truth = np.argsort(-(queries @ gallery.T), axis=1)[:, :WANTED]
    index = kinds.empty_index(key, DIMENSION, metric)
    indexes.train(index, gallery)
    indexes.add(index, gallery, np.arange(ROWS))
    found = indexes.search(index, queries, WANTED, 1)
    return float(np.mean([np.isin(*pair).mean() for pair in zip(truth, found, strict=True)]))


@pytest.mark.parametrize("key", ["PCA64,SQ8", "PCAR64,SQ8"])
def test_behind_a_centring_inner_product_loses_the_mean(key: str, gallery: np.ndarray) -> None:
    assert 0.74 < np.linalg.norm(gallery.mean(axis=0)) < 0.76
    own, product = recall(key, gallery, None), recall(key, gallery, "inner_product")
    assert own > 0.7 > 0.5 > product, (own, product)


@pytest.mark.parametrize(
    ("key", "metric"),
    [
        ("Flat", "inner_product"),
        ("SQ8", "inner_product"),
        ("IVF16,PQ8x4", "inner_product"),
        ("IVF16,RaBitQ", "inner_product"),
        ("PCA16,Flat", "l2"),
        ("OPQ8,IVF16,PQ8x4", "l2"),
        ("RR64,IVF16,RaBitQ", "l2"),
        ("PCAR32,IVF16,PQ8x4fs", "l2"),
        ("LSH", "l2"),  # faiss has no other
    ],
)
def test_metric_of_a_kind(key: str, metric: str) -> None:
    assert kinds.metric_of(key, 64) == metric
    index = kinds.empty_index(key, 64)
    assert index.metric_type == kinds.METRICS[kinds.metric_of(key, 64)]
    assert kinds.bare_of(index).metric_type == index.metric_type
