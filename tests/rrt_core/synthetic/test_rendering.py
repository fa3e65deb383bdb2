"""The renderer: same seed, same view; true boxes; distinct instances; levels that differ."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from rrt_core.synthetic.instances import SHAPES, Pixels, cut_instances, cut_region, outline, overlap
from rrt_core.synthetic.rendering import (
    LEVELS,
    Region,
    render_clutter,
    render_view,
    view_rng,
)


def photograph(seed: int, height: int = 300, width: int = 420) -> Pixels:
    """Random coloured shapes: sharp, distinct, full of corners."""
    rng = np.random.default_rng(seed)
    photo = np.full((height, width, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(500):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        at = (int(rng.integers(width)), int(rng.integers(height)))
        to = (at[0] + int(rng.integers(5, 40)), at[1] + int(rng.integers(5, 40)))
        cv2.rectangle(photo, at, to, colour, -1)
    return photo


@pytest.fixture(scope="module")
def photos() -> list[Pixels]:
    return [photograph(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def regions(photos: list[Pixels]) -> list[Region]:
    return cut_instances(photos[0], 5, np.random.default_rng(0))


def test_instances_are_textured_distinct_and_large(
    photos: list[Pixels], regions: list[Region]
) -> None:
    assert len(regions) >= 3
    for place, region in enumerate(regions):
        x, y, w, h = region.box
        assert min(w, h) >= 96 and region.pixels.shape == (h, w, 3) and region.mask.shape == (h, w)
        assert np.array_equal(region.pixels, photos[0][y : y + h, x : x + w])
        assert region.texture > 0.3 and np.mean(region.mask > 0) > 0.5
        assert all(overlap(region.box, other.box) <= 0.05 for other in regions[:place])


def test_flat_photographs_and_avoided_places_give_no_instances() -> None:
    rng = np.random.default_rng(0)
    ramp = np.repeat(np.tile(np.linspace(0, 255, 400), (300, 1))[..., None], 3, 2).astype(np.uint8)
    stripes = np.zeros((300, 400, 3), np.uint8)
    stripes[:, ::20] = 255
    assert cut_instances(ramp, 3, rng) == []
    assert cut_instances(stripes, 3, rng) == []
    assert cut_instances(photograph(0, 80, 80), 3, rng) == []
    assert cut_instances(photograph(0), 3, rng, avoid=[(0, 0, 420, 300)]) == []


def test_a_box_outside_of_the_photograph_is_refused(photos: list[Pixels]) -> None:
    with pytest.raises(ValueError, match="does not lie inside"):
        cut_region(photos[0], (400, 0, 100, 100), np.random.default_rng(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_nearly_fill_their_rectangle(shape: str) -> None:
    mask = outline(shape, 90, 130, np.random.default_rng(3))
    _, _, width, height = cv2.boundingRect(mask)
    assert mask.shape == (90, 130) and set(np.unique(mask)) <= {0, 255}
    assert width > 100 and height > 65 and np.mean(mask > 0) > 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seed_gives_the_same_view(
    level: str, photos: list[Pixels], regions: list[Region]
) -> None:
    def view(number: int) -> bytes:
        return render_view(
            regions[0], photos[1], view_rng(7, 0, number), level, clutter=photos[2:]
        ).jpeg()

    first = [view(number) for number in range(3)]
    assert [view(number) for number in (2, 1, 0)] == first[::-1]
    assert len(set(first)) == 3


@pytest.mark.parametrize("level", LEVELS)
def test_boxes_enclose_the_object_and_lie_inside(level: str, photos: list[Pixels]) -> None:
    # a pure green object in a world without green: what can be seen of it is known from the picture
    # itself
    photo = np.zeros((200, 160, 3), np.uint8)
    photo[..., 1] = 255
    region = cut_region(photo, (0, 0, 160, 200), np.random.default_rng(0), "rectangle")
    world = [p.copy() for p in photos[1:]]
    for p in world:
        p[..., 1] = 0
    plain = replace(
        LEVELS[level],
        gain=(1, 1),
        gamma=(1, 1),
        cast=0,
        shade=0,
        defocus=(0, 0),
        motion=(0, 0),
        noise=(0, 0),
    )
    for number in range(12):
        view = render_view(region, world[0], view_rng(0, 0, number), plain, size=320, clutter=world)
        x, y, w, h = view.box
        height, width = view.pixels.shape[:2]
        assert max(height, width) == 320
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height
        green = (view.pixels[..., 1] > 128).astype(np.uint8)
        gx, gy, gw, gh = cv2.boundingRect(green)
        assert np.allclose([x, y, x + w, y + h], [gx, gy, gx + gw, gy + gh], atol=2)
        assert view.cover == pytest.approx(green.mean(), abs=0.01)
        assert 0 < view.visible <= 1


def test_levels_really_differ(photos: list[Pixels], regions: list[Region]) -> None:
    mean: dict[str, tuple[float, float]] = {}
    for level in LEVELS:
        views = [
            render_view(regions[n % 3], photos[1], view_rng(0, 0, n), level, clutter=photos[2:])
            for n in range(30)
        ]
        mean[level] = (
            float(np.mean([v.visible for v in views])),
            float(np.mean([v.cover for v in views])),
        )
    visible, cover = zip(*(mean[level] for level in ("mild", "medium", "hard")), strict=True)
    assert visible[0] > 0.95 and visible[0] > visible[1] > visible[2] > 0.5
    assert cover[0] > 1.3 * cover[1] > 1.7 * cover[2]


def test_compressed_view_is_near_the_rendered_one(
    photos: list[Pixels], regions: list[Region]
) -> None:
    view = render_view(regions[1], photos[1], view_rng(0, 1, 0), "mild")
    assert view.compressed().shape == view.pixels.shape
    assert np.abs(view.compressed().astype(int) - view.pixels).mean() < 12


def test_clutter_shows_no_instance(photos: list[Pixels]) -> None:
    view = render_clutter(photos[1], view_rng(0, 0, 0), "medium", clutter=photos[2:])
    assert view.box == (0, 0, 0, 0) and view.visible == 0 and view.pixels.std() > 10


def test_an_unknown_level_is_refused(photos: list[Pixels], regions: list[Region]) -> None:
    with pytest.raises(ValueError, match="level is one of"):
        render_view(regions[0], photos[1], view_rng(0, 0, 0), "impossible")
