"""The order of locals of which any prefix covers the picture."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from rrt_core.extractors import create, identity_of, options_of_store
from rrt_core.extractors.spread import POOL, SPREAD, STRENGTH, kept_locals, spread
from schemas.errors import UserError
from tests.rrt_core.extractors.test_extractors import described, image


def some_locals(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, most of them in one corner; scales; strengths, some of them equal."""
    rng = np.random.default_rng(seed)
    xy = (rng.random((count, 2)) ** 2 * (640, 480)).astype(np.float32)
    strength = rng.integers(count, size=count) / 7 + 600 - np.linalg.norm(xy, axis=1)
    return xy, rng.integers(3, size=count).astype(np.uint8), strength.astype(np.float32)


def in_turn(xy: np.ndarray, scale: np.ndarray, strength: np.ndarray, cells: int) -> list[int]:
    """The same order by lists, a turn at a time."""
    queues = defaultdict(list)
    low, extent = xy.min(0).astype(float), np.ptp(xy.astype(float), axis=0)
    for place in sorted(range(len(xy)), key=lambda each: -strength[each]):
        cell = np.minimum((xy[place] - low) / extent * cells, cells - 1).astype(int)
        queues[scale[place], *cell].append(place)
    ordered = []
    while any(queues.values()):
        turn = [queue.pop(0) for queue in queues.values() if queue]
        ordered += sorted(turn, key=lambda place: (-strength[place], place))
    return ordered


@pytest.mark.parametrize(("count", "cells"), [(700, 8), (300, 3), (5, 8)])
def test_the_strongest_of_each_cell_and_scale_come_in_turn(count: int, cells: int) -> None:
    xy, scale, strength = some_locals(count)
    got = spread(xy, scale, strength, cells)
    np.testing.assert_array_equal(got, in_turn(xy, scale, strength, cells))


def test_a_prefix_covers_the_picture() -> None:
    xy, scale, strength = some_locals(2000)
    first, strongest = (kept_locals(order, xy, scale, strength, 64) for order in (SPREAD, STRENGTH))
    covered = [len(np.unique(xy[some] // 80, axis=0)) for some in (first, strongest)]
    assert covered[0] > 1.4 * covered[1]


def test_fewer_are_the_first_of_more() -> None:
    xy, scale, strength = some_locals(2000)
    more, fewer = (kept_locals(SPREAD, xy, scale, strength, most) for most in (POOL, 100))
    np.testing.assert_array_equal(fewer, more[:100])
    strongest = kept_locals(STRENGTH, xy, scale, strength, POOL)
    assert set(more) == set(strongest)


@pytest.mark.parametrize("count", [0, 1])
def test_few(count: int) -> None:
    xy, scale, strength = some_locals(count)
    assert len(spread(xy, scale, strength)) == count
    same = np.zeros((4, 2), np.float32)
    equal = spread(same, np.zeros(4, np.uint8), np.ones(4, np.float32))
    np.testing.assert_array_equal(equal, range(4))


@pytest.mark.parametrize("name", ["efficientnet", "rootsift"])
def test_both_orders_keep_the_same_locals(name: str) -> None:
    one = image(300, 200)
    by_strength, by_place = (
        described(create(name, order=order, max_locals=POOL), one) for order in (STRENGTH, SPREAD)
    )
    assert (np.diff(by_strength.strength) <= 0).all()
    assert len(by_place.xy) == len(by_strength.xy) > 100
    key = [np.lexsort((*one.xy.T, one.scale, one.strength)) for one in (by_strength, by_place)]
    for array in ("xy", "scale", "strength", "descriptors"):
        np.testing.assert_array_equal(
            getattr(by_strength, array)[key[0]], getattr(by_place, array)[key[1]]
        )
    np.testing.assert_array_equal(by_strength.global_descriptor, by_place.global_descriptor)
    fewer = described(create(name, max_locals=100), one)
    np.testing.assert_array_equal(fewer.descriptors, by_place.descriptors[:100])


def test_a_store_of_an_earlier_version_keeps_its_order() -> None:
    before = identity_of(create("efficientnet", order="strength"))
    assert before["config"] == {
        "sizes": [512, 360, 256],
        "max_locals": 500,
        "enlarge": 2.0,
        "min_size": 256,
    }
    options = options_of_store("efficientnet", {}, before["config"])
    assert identity_of(create("efficientnet", **options)) == before
    now = identity_of(create("efficientnet"))
    assert now["config"]["order"] == "spread"
    assert options_of_store("efficientnet", {}, now["config"]) == {}
    assert options_of_store("efficientnet", {"order": "spread"}, {}) == {"order": "spread"}
    assert options_of_store("delg", {}, {}) == {}


@pytest.mark.parametrize("name", ["efficientnet", "rootsift", "timm:resnet18"])
def test_an_order_that_is_none(name: str) -> None:
    with pytest.raises(UserError, match=r"order must be spread or strength, not 'grid'"):
        create(name, order="grid")
