"""The photographs of the demo, and what is cut out of them: instances, look-alikes, backgrounds.

All lie in the wheels of packages that the project needs anyway or that are small; nothing is
downloaded. They are the demo's alone: no model of the project is ever trained on them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rrt_core.synthetic.instances import Box, Pixels, Region, cut_instances
from schemas.errors import UserError


@dataclass(frozen=True)
class Photograph:
    """A picture inside an installed package, and how many instances it may give (0: background
    only).
    """

    package: str
    path: str
    instances: int


# one scene by two cameras side by side: real second views; disparity in pixels of the left picture
STEREO_LEFT, STEREO_RIGHT = "data/motorcycle_left.png", "data/motorcycle_right.png"
STEREO_DISPARITY = "data/motorcycle_disp.npz"

# package on PyPI -> the module whose folder the paths start from
_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}

DEMO_PHOTOGRAPHS = (
    Photograph("scikit-image", "data/astronaut.png", 7),
    Photograph("scikit-image", "data/chelsea.png", 5),
    Photograph("scikit-image", "data/coffee.png", 5),
    Photograph("scikit-image", "data/rocket.jpg", 4),
    Photograph("scikit-image", STEREO_LEFT, 9),
    Photograph("scikit-image", "data/hubble_deep_field.jpg", 6),
    Photograph("scikit-image", "data/ihc.png", 6),
    Photograph("scikit-image", "data/camera.png", 5),
    Photograph("scikit-image", "data/coins.png", 3),
    Photograph("scikit-image", "data/page.png", 2),
    Photograph("scikit-image", "data/text.png", 2),
    Photograph("scikit-image", "data/logo.png", 2),
    Photograph("scikit-image", "data/moon.png", 1),
    Photograph("scikit-image", "data/grass.png", 2),
    Photograph("scikit-image", "data/gravel.png", 2),
    Photograph("scikit-learn", "datasets/images/china.jpg", 7),
    Photograph("scikit-learn", "datasets/images/flower.jpg", 3),
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 6),
    Photograph("scikit-image", "data/brick.png", 0),
    Photograph("scikit-image", "data/cell.png", 0),
    Photograph("scikit-image", "data/clock_motion.png", 0),
    Photograph("scikit-image", "data/color.png", 0),
    Photograph("scikit-image", "data/retina.jpg", 0),
    Photograph("scikit-image", STEREO_RIGHT, 0),
)

LOOK_ALIKE_SIDE = 72  # px, least side of what is cut beside the instances


@dataclass(frozen=True)
class Material:
    """What the demo is rendered from.

    Attributes:
        instances: distinct regions.
        second: by instance, the same region cut from another photograph of the scene, or None.
        names: by instance, photograph and box.
        look_alikes: regions beside the instances, of the same photographs.
        backgrounds: uint8 [h, w, 3] pictures that show no part of any instance.
    """

    instances: tuple[Region, ...]
    second: tuple[Region | None, ...]
    names: tuple[str, ...]
    look_alikes: tuple[Region, ...]
    backgrounds: tuple[Pixels, ...]


def package_versions() -> dict[str, str]:
    """Version by package of DEMO_PHOTOGRAPHS. Raises UserError where one is not installed."""
    versions = {}
    for package in _MODULES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(_missing(package)) from None
    return versions


def load_material(instances: int, seed: int) -> Material:
    """Cuts `instances` distinct regions, and all that goes with them, out of DEMO_PHOTOGRAPHS.

    The same for the same count, seed and packages. Photographs that an installed package lacks are
    skipped.

    Raises:
        UserError: a package is not installed, or its photographs are too few for so many instances.
    """
    # the right stereo picture shows instances where no box says so: it only serves as a second view
    wanted = [photo for photo in DEMO_PHOTOGRAPHS if photo.path != STEREO_RIGHT]
    loaded = {photo: _load(photo.package, photo.path) for photo in wanted}
    photos = {photo: pixels for photo, pixels in loaded.items() if pixels is not None}
    found: list[tuple[int, int, Photograph, Region]] = []
    for number, photo in enumerate(DEMO_PHOTOGRAPHS):
        if photo not in photos or not photo.instances:
            continue
        regions = cut_instances(
            photos[photo],
            photo.instances,
            np.random.default_rng((seed, number)),
            side=(0.18, 0.3),
            max_overlap=0.02,
            min_texture=0.3,
            tries=6000,
        )
        found += [(rank, number, photo, region) for rank, region in enumerate(regions)]
    if len(found) < instances:
        absent = sorted({photo.package for photo in loaded if photo not in photos})
        reason = (
            f"the package {absent[0]} as installed lacks some of them"
            if absent
            else "ask for fewer"
        )
        raise UserError(
            f"The demo's photographs give {len(found)} instances, not {instances}: {reason}."
        )
    # the best of each photograph first, so that a small demo is as varied as a large one
    chosen = sorted(found, key=lambda item: item[:2])[:instances]

    look_alikes: list[Region] = []
    backgrounds: list[Pixels] = []
    for number, photo in enumerate(DEMO_PHOTOGRAPHS):
        if photo not in photos:
            continue
        taken: list[Box] = [region.box for _, _, other, region in chosen if other == photo]
        rng = np.random.default_rng((seed, number, 1))
        beside = cut_instances(
            photos[photo],
            10,
            rng,
            side=(0.14, 0.3),
            min_side=LOOK_ALIKE_SIDE,
            tries=6000,
            max_overlap=0.0,
            min_texture=0.12,
            avoid=taken,
        )
        look_alikes += beside
        backgrounds += [region.pixels for region in beside[:3]] if taken else [photos[photo]]
    if not backgrounds:
        raise UserError(_missing("scikit-image"))
    second = _second_views([(photo, region) for _, _, photo, region in chosen])
    names = [
        f"{photo.package}/{photo.path}#{','.join(map(str, region.box))}"
        for *_, photo, region in chosen
    ]
    return Material(
        tuple(region for *_, region in chosen),
        tuple(second),
        tuple(names),
        tuple(look_alikes),
        tuple(backgrounds),
    )


def _missing(package: str) -> str:
    return (
        f"The demo needs the photographs in the package {package}; install it with: pip install "
        f"{package}"
    )


def _find(package: str, path: str) -> str | None:
    """Where the file lies, without importing the package; None where the package does not ship
    it.
    """
    spec = importlib.util.find_spec(_MODULES[package])
    if spec is None or spec.origin is None:
        raise UserError(_missing(package))
    place = os.path.join(os.path.dirname(spec.origin), *path.split("/"))
    return place if os.path.isfile(place) else None


def _load(package: str, path: str) -> Pixels | None:
    """The photograph as uint8 [H, W, 3], RGB (transparent parts white), longest side at most
    1,000.
    """
    place = _find(package, path)
    if place is None:
        return None
    with Image.open(place) as image:
        coloured = image.convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, coloured).convert("RGB"), np.uint8)
    shrink = 1000 / max(pixels.shape[:2])
    if shrink < 1:
        smaller = cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(smaller, np.uint8)
    return np.ascontiguousarray(pixels)


def _second_views(chosen: list[tuple[Photograph, Region]]) -> list[Region | None]:
    """By instance: the region of the right stereo picture that shows it, where it is a left
    picture's.
    """
    right = _load("scikit-image", STEREO_RIGHT)
    disparity_file = _find("scikit-image", STEREO_DISPARITY)
    if right is None or disparity_file is None:
        return [None] * len(chosen)
    with np.load(disparity_file) as archive:
        disparity = archive["arr_0"]
    source = stereo_source(disparity)
    return [
        _seen_from_the_right(region, right, source) if photo.path == STEREO_LEFT else None
        for photo, region in chosen
    ]


def stereo_source(disparity: NDArray[np.float32]) -> NDArray[np.int64]:
    """By pixel of the right picture, the left picture's column that it shows, int64 [H, W]; -1 if
    unknown.

    disparity: float32 [H, W], px, of the left picture (infinite where unknown): x_right = x_left -
        disparity.
    """
    height, width = disparity.shape
    source = np.full((height, width), -1, np.int64)
    rows, columns = np.nonzero(np.isfinite(disparity))
    values = disparity[rows, columns]
    nearest_last = np.argsort(
        values, kind="stable"
    )  # near things hide far ones: they are written last
    rows, columns = rows[nearest_last], columns[nearest_last]
    targets = np.round(columns - values[nearest_last]).astype(np.int64)
    inside = targets >= 0
    source[rows[inside], targets[inside]] = columns[inside]
    return source


def _seen_from_the_right(region: Region, right: Pixels, source: NDArray[np.int64]) -> Region | None:
    """The region as the right picture shows it, outlined by the disparity; None if little of it is
    seen.
    """
    x, y, w, h = region.box
    columns = source[y : y + h]
    mine = (columns >= x) & (columns < x + w)
    inner = np.zeros(mine.shape, np.uint8)
    rows, places = np.nonzero(mine)
    inner[rows, places] = region.mask[rows, columns[rows, places] - x]
    known = columns >= 0
    # holes of unknown origin, which the left picture does not show, belong to no other instance:
    # filled in
    closed = cv2.morphologyEx(inner, cv2.MORPH_CLOSE, np.ones((21, 21), np.uint8))
    mask = np.where(known, inner, closed).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if np.count_nonzero(mask) < 0.7 * np.count_nonzero(region.mask):
        return None
    box = (int(left), int(y + top), int(width), int(height))
    pixels = right[box[1] : box[1] + height, left : left + width]
    return Region(
        pixels.copy(), mask[top : top + height, left : left + width].copy(), box, region.texture
    )
