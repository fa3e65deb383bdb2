"""Mining against plain loops in Python, and figures against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rrt_core.training.figures import list_precision, pair_figures
from rrt_core.training.mining import NONE, TripletSampler, choose_anchors, nearest
from schemas.errors import UserError


def small_integers(count: int, width: int) -> np.ndarray:
    """Products of small whole numbers are exact in float32, so that equal ones are equal in every
    order of sums.
    """
    return np.random.default_rng(0).integers(-2, 3, (count, width)).astype(np.float32)


def naive_nearest(descriptors: np.ndarray, query: int, pool: np.ndarray, count: int) -> list[int]:
    scored = [
        (-float(descriptors[query] @ descriptors[row]), int(row)) for row in pool if row != query
    ]
    result = [row for _, row in sorted(scored)][:count]
    return result + [NONE] * (count - len(result))


@pytest.mark.parametrize(("block", "count"), [(7, 10), (64, 10), (1000, 10), (5, 60)])
def test_nearest_equals_a_loop(block: int, count: int) -> None:
    descriptors = small_integers(60, 4)  # with many equal products, and equal records
    pool = np.arange(0, 60, 2)
    queries = np.array([0, 3, 4, 58, 59])
    result = nearest(descriptors, queries, pool, count, block=block)
    assert result.dtype == np.int32
    for row, query in enumerate(queries):
        assert result[row].tolist() == naive_nearest(descriptors, query, pool, count)


def test_nearest_of_halves_from_a_memory_map(tmp_path) -> None:
    path = tmp_path / "globals.npy"
    np.save(path, small_integers(40, 6).astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    result = nearest(mapped, np.arange(40), np.arange(40), 5, block=16)
    assert [row.tolist() for row in result] == [
        naive_nearest(mapped.astype(np.float32), query, np.arange(40), 5) for query in range(40)
    ]


def mined(count: int = 200, k: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 12, count)
    centres = rng.standard_normal((12, 16))
    descriptors = (centres[labels] + 1.2 * rng.standard_normal((count, 16))).astype(np.float32)
    rows = np.arange(count)
    return nearest(descriptors, rows, rows, k), labels


def test_anchors_equal_a_loop() -> None:
    neighbours, labels = mined()
    neighbours[5, :] = np.flatnonzero(labels == labels[5])[:12]  # no negative
    neighbours[6, 3:] = NONE
    wanted, too_few, without = [], 0, 0
    for row in range(50, 200):
        same = [labels[other] == labels[row] for other in neighbours[row] if other != NONE]
        too_few += sum(same) < 5
        without += sum(same) >= 5 and all(same)
        if sum(same) >= 5 and not all(same):
            wanted.append(row)
    result = choose_anchors(neighbours, labels, np.arange(50, 200), 5)
    assert result.rows.tolist() == wanted and len(wanted) > 20
    assert (result.too_few, result.without_negative) == (too_few, without)
    assert choose_anchors(neighbours, labels, np.array([5, 6]), 5).without_negative == 1


def test_triplets_are_right_and_depend_on_the_step_alone() -> None:
    neighbours, labels = mined()
    anchors = choose_anchors(neighbours, labels, np.arange(200), 5).rows
    sampler = TripletSampler(neighbours, labels, anchors, 3)
    for step in range(30):
        rows, positive, negative = sampler.triplets(step, 7)
        for anchor, same, other in zip(rows, positive, negative, strict=True):
            assert same in neighbours[anchor] and other in neighbours[anchor]
            assert labels[same] == labels[anchor] != labels[other]
    again = TripletSampler(neighbours, labels, anchors, 3).triplets(29, 7)
    assert all(np.array_equal(a, b) for a, b in zip(again, sampler.triplets(29, 7), strict=True))
    other = TripletSampler(neighbours, labels, anchors, 4).triplets(29, 7)
    assert not all(np.array_equal(a, b) for a, b in zip(again, other, strict=True))


def test_each_anchor_once_an_epoch() -> None:
    neighbours, labels = mined()
    anchors = choose_anchors(neighbours, labels, np.arange(200), 5).rows
    sampler = TripletSampler(neighbours, labels, anchors, 0)
    stream = np.concatenate([sampler.anchors_of(step, 9) for step in range(len(anchors))])
    for epoch in stream.reshape(9, -1):
        assert np.array_equal(np.sort(epoch), anchors)
    assert not np.array_equal(stream[: len(anchors)], stream[len(anchors) : 2 * len(anchors)])


def test_all_positives_and_negatives_are_drawn_evenly() -> None:
    """One anchor with 5 positives and 7 negatives, 6,000 draws: each within 15 per cent of its
    share.
    """
    labels = np.array([0] * 6 + [1] * 7)
    neighbours = np.arange(1, 13)[None].repeat(13, axis=0).astype(np.int32)
    sampler = TripletSampler(neighbours, labels, np.array([0]), 0)
    _, positive, negative = sampler.triplets(0, 6_000)
    assert np.unique(positive).tolist() == [1, 2, 3, 4, 5] and np.unique(negative).tolist() == list(
        range(6, 13)
    )
    assert np.abs(np.bincount(positive)[1:] / 1_200 - 1).max() < 0.15
    assert np.abs(np.bincount(negative)[6:] / (6_000 / 7) - 1).max() < 0.15


def test_no_anchor() -> None:
    with pytest.raises(UserError, match="no anchor"):
        TripletSampler(np.zeros((2, 1), np.int32), np.zeros(2, np.int64), np.zeros(0, np.int64), 0)


def test_pair_figures_equal_scikit_learn() -> None:
    """To 1e-12."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    logits = np.round(rng.normal(labels, 2.0), 1)  # with equal ones
    result = pair_figures(logits, labels)
    assert result["val_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert result["val_loss"] == pytest.approx(
        log_loss(labels, 1 / (1 + np.exp(-logits))), abs=1e-12
    )


def test_list_precision_by_hand() -> None:
    """Trapezoids between the precision before and at each positive."""
    hits = np.array([False, True, True])
    assert list_precision(hits, 4) == pytest.approx((0 + 1 / 2 + 1 / 2 + 2 / 3) / 8)
    assert list_precision(hits, 2, np.array([-1.0, 2.0, 2.0])) == 1.0
    assert list_precision(np.zeros(3, bool), 2) == 0.0
