"""Geometric verification: planted transforms exactly, scikit-image's RANSAC, SciPy's tree, and what
is degenerate.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree
from skimage.measure import ransac
from skimage.transform import AffineTransform

from rrt_core.metrics.revisited import replay
from rrt_core.rerankers import Locals, create
from rrt_core.rerankers.geometric import couples
from schemas.errors import UserError


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def image(descriptors: np.ndarray, xy: np.ndarray) -> Locals:
    count = len(descriptors)
    strength = np.linspace(1, 0.5, count, dtype=np.float32)
    return Locals(
        unit(np.ones(8)),
        descriptors,
        xy.astype(np.float32),
        np.zeros(count, np.uint8),
        strength,
        (1.0,),
    )


def planted(seed: int, inliers: int, outliers: int, jitter: float = 0.0) -> tuple[Locals, Locals]:
    """Couples by descriptor: the first `inliers` under one affine transform, the others anywhere in
    640 x 480.
    """
    rng = np.random.default_rng(seed)
    count = inliers + outliers
    descriptors = unit(rng.standard_normal((count, 128)))
    xy = rng.uniform(0, (640, 480), (count, 2))
    turn = rng.uniform(-np.pi, np.pi)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag(
        [1.4, 0.8]
    )
    seen = xy @ matrix.T + rng.uniform(-50, 50, 2) + rng.uniform(-jitter, jitter, (count, 2))
    seen[inliers:] = rng.uniform(0, (640, 480), (outliers, 2))
    order = rng.permutation(count)  # so that the couples are found by descriptor, not by row
    noisy = unit(descriptors + 0.02 * rng.standard_normal((count, 128)))
    return image(noisy, seen), image(descriptors[order], xy[order])


@pytest.mark.parametrize("count", [4, 5, 50, 400])
def test_a_planted_transform_is_found_exactly(count: int) -> None:
    assert create("geometric", residual=0.01).score([planted(count, count, 0)]).tolist() == [count]


@pytest.mark.parametrize(("inliers", "outliers"), [(20, 60), (60, 60), (150, 50)])
def test_planted_inliers_among_outliers(inliers: int, outliers: int) -> None:
    """Residual 1 pixel: chance brings at most a few outliers onto the planted transform."""
    for seed in range(5):
        count = create("geometric", residual=1.0).score([planted(seed, inliers, outliers)])[0]
        assert inliers <= count <= inliers + 2


@pytest.mark.parametrize("residual", [2.0, 10.0, 20.0])
@pytest.mark.parametrize(("inliers", "outliers"), [(40, 120), (100, 100), (200, 40)])
def test_counts_as_scikit_images_ransac(inliers: int, outliers: int, residual: float) -> None:
    """Over the same couples, located to a quarter of a pixel. Both draw their samples at random, so
    that outliers at the rim of the residual come and go: at least 98 in 100 planted ones, and
    counts equal to 4 in 100 couples.
    """
    for seed in range(3):
        query, gallery = planted(seed, inliers, outliers, jitter=0.25)
        count = create("geometric", residual=residual).score([(query, gallery)])[0]
        used, nearest = couples(query.descriptors, gallery.descriptors, 1.0)
        assert len(used) == inliers + outliers
        source, target = gallery.xy[nearest].astype(np.float64), query.xy[used].astype(np.float64)
        _, mask = ransac((source, target), AffineTransform, 3, residual, max_trials=1000, rng=0)
        assert min(count, mask.sum()) >= 0.98 * inliers
        assert abs(count - mask.sum()) <= 0.04 * len(used)


def test_couples_are_those_of_scipys_tree() -> None:
    rng = np.random.default_rng(3)
    query, gallery = unit(rng.standard_normal((200, 16))), unit(rng.standard_normal((90, 16)))
    for bound in (0.3, 0.7, 1.0, 2.0):
        _, nearest = cKDTree(gallery).query(query, distance_upper_bound=bound)
        used, result = couples(query, gallery, bound)
        assert used.tolist() == np.flatnonzero(nearest < len(gallery)).tolist()
        assert result.tolist() == nearest[used].tolist()


def test_residual_is_in_pixels_of_the_query() -> None:
    """The transform runs from gallery to query, as in DELG: enlarging the gallery changes
    nothing.
    """
    query, gallery = planted(7, 60, 60, jitter=2.0)
    larger = image(gallery.descriptors, gallery.xy * 16)  # a power of two: the same bits
    scores = create("geometric", residual=3.0).score([(query, gallery), (query, larger)])
    assert scores[0] == scores[1]


def test_a_pair_has_one_score_whatever_was_scored_before() -> None:
    reranker = create("geometric")
    pairs = [planted(seed, 10 + seed, 40, jitter=3.0) for seed in range(12)]
    scores = reranker.score(pairs)
    assert scores.dtype == np.float32
    order = np.random.default_rng(0).permutation(len(pairs))
    cv2.setRNGSeed(99)
    assert reranker.score([pairs[i] for i in order]).tobytes() == scores[order].tobytes()
    assert np.concatenate([reranker.score([pair]) for pair in pairs]).tobytes() == scores.tobytes()
    assert reranker.score([]).shape == (0,)


def test_degenerate_pairs_score_finite() -> None:
    rng = np.random.default_rng(4)
    descriptors = unit(rng.standard_normal((30, 128)))
    spread = rng.uniform(0, 400, (30, 2))
    line = np.stack([np.arange(30.0), 2 * np.arange(30.0)], 1)
    none = image(np.zeros((0, 128), np.float32), np.zeros((0, 2)))
    some = image(descriptors, spread)
    three = image(descriptors[:3], spread[:3])
    pairs = {
        "none in the query": (none, some),
        "none in the gallery": (some, none),
        "none at all": (none, none),
        "three couples": (three, some),
        "on a line": (image(descriptors, line), image(descriptors, line)),
        "all at one place": (some, image(descriptors, np.zeros((30, 2)))),
        "nothing alike": (some, image(unit(rng.standard_normal((30, 128))), spread)),
    }
    scores = create("geometric").score(list(pairs.values()))
    assert scores.tolist() == [0.0] * len(pairs), dict(zip(pairs, scores.tolist(), strict=True))
    # All query locals coupled with one gallery local.
    alike = image(unit(descriptors[:1] + 0.01 * rng.standard_normal((30, 128))), spread)
    assert create("geometric").score([(alike, image(descriptors[:1], spread[:1]))]).tolist() == [
        0.0
    ]
    assert create("geometric").score([(image(descriptors[:4], spread[:4]), some)]).tolist() == [4.0]


def test_a_nearer_bound_leaves_fewer_couples() -> None:
    rng = np.random.default_rng(6)
    query, gallery = planted(5, 80, 0)
    query.descriptors[:40] = unit(query.descriptors[:40] + 0.06 * rng.standard_normal((40, 128)))
    scores = [
        create("geometric", max_distance=bound).score([(query, gallery)])[0]
        for bound in (0.1, 0.5, 1.0)
    ]
    assert scores[0] == 0 and scores[1] == 40 and scores[2] == 80


def test_equal_counts_keep_the_global_order() -> None:
    """DELG orders by (inliers, initial score): replay keeps equal logits in the order of the
    ranking.
    """
    inliers = np.array([4.0, 0.0, 9.0, 4.0, 0.0, 9.0])
    initial = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    expected = sorted(range(6), key=lambda i: (inliers[i], initial[i]), reverse=True)
    assert replay(np.arange(6), [], 6, inliers).tolist() == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_distance", -0.1),
        ("max_distance", 3),
        ("residual", 0),
        ("residual", "20"),
        ("trials", 0),
        ("trials", 1.5),
        ("confidence", 1.0),
        ("confidence", True),
        ("query_tokens", 0),
        ("gallery_tokens", -1),
    ],
)
def test_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(UserError, match=f"Reranker option {option} must"):
        create("geometric", **{option: value})


def test_other_dimension_names_both() -> None:
    query, gallery = planted(1, 10, 0)
    gallery.descriptors = gallery.descriptors[:, :32]
    with pytest.raises(UserError, match=r"128 and 32"):
        create("geometric").score([(query, gallery)])
