"""Views of instances to train the interim weights on: rendered, described, kept in a folder.

Instances are textured regions of photographs (rrt_core/instances.py); each is rendered in front of
other photographs once for every line of VIEW_KINDS. Queries come with a box, so some views are described as
the crop to the instance's box. A chunk of photographs is one file of the cache; a rerun makes the missing
ones only, and several processes may share the work (`part` of `parts`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

from rrt_core.extractors import Description, Extractor
from rrt_core.images import decode
from rrt_core.rendering import LEVELS, Level, cut_instances, render_view, view_rng

MILD, MEDIUM, HARD = LEVELS["mild"], LEVELS["medium"], LEVELS["hard"]
HARD_POSE = replace(MEDIUM, roll=HARD.roll, tilt=HARD.tilt, cut=HARD.cut)
# name, level, cropped to the instance's box
VIEW_KINDS: tuple[tuple[str, Level, bool], ...] = (
    ("query", replace(MILD, cover=(0.3, 0.6), cut=(-1.0, 0.0)), True),
    ("medium query", MEDIUM, True),
    ("mild", MILD, False),
    ("medium", MEDIUM, False),
    # Poses of the hard level under the light of the medium one: beyond that, nothing is left to be learnt.
    ("hard", replace(HARD_POSE, cover=(0.14, 0.42), warp=(0.02, 0.06)), False),
)
INSTANCES_PER_PHOTO = 3
VALIDATION_PHOTOS = 80
PHOTOS_PER_CHUNK = 16
CLUTTER_PHOTOS = 3
VIEW_SIZE = 360  # longest side, pixels
LEAST_VISIBLE = 0.3  # share of the object; a view that shows less is not used
LEAST_BOX = 32  # pixels; what is smaller is not used either


@dataclass
class Views:
    """n described views.

    descriptor f32 [n, D]; local f16 [n, k, L], zeros behind `count` i32 [n]; scale u8 [n, k], ordinals
    instance i32 [n] (photo * INSTANCES_PER_PHOTO + region); photo i32 [n]; kind i8 [n], place in VIEW_KINDS
    crop bool [n]; others i32 [n, 1 + CLUTTER_PHOTOS]: photographs of background and clutter
    """

    descriptor: np.ndarray
    local: np.ndarray
    count: np.ndarray
    scale: np.ndarray
    instance: np.ndarray
    photo: np.ndarray
    kind: np.ndarray
    crop: np.ndarray
    others: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def take(self, keep: np.ndarray) -> Views:
        return Views(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def photographs(folder: Path, seed: int) -> list[Path]:
    """All .jpg of the folder in a seeded order; the first VALIDATION_PHOTOS are held out."""
    files = sorted(folder.glob("*.jpg"))
    if len(files) <= 2 * VALIDATION_PHOTOS:
        raise SystemExit(f"{folder}: {len(files)} photographs (.jpg), more than {2 * VALIDATION_PHOTOS} are needed")
    order = np.random.default_rng(seed).permutation(len(files))
    return [files[i] for i in order]


def chunk_path(cache: Path, chunk: int) -> Path:
    return cache / f"views-{chunk:03d}.npz"


def describe_all(
    files: list[Path], count: int, cache: Path, extractor: Extractor, kept: int, seed: int, part: int, parts: int
) -> None:
    """Make the chunks number part, part + parts, ... that the cache lacks.

    Instances are cut from the first `count` photographs, backgrounds from all; `kept` locals of a view are stored.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for chunk in range(part, -(-count // PHOTOS_PER_CHUNK), parts):
        path = chunk_path(cache, chunk)
        if path.exists():
            continue
        first = chunk * PHOTOS_PER_CHUNK
        rows = []
        for photo in range(first, min(first + PHOTOS_PER_CHUNK, count, len(files))):
            rows += _describe_photo(files, photo, extractor, kept, seed)
        beside = path.with_suffix(".tmp.npz")
        np.savez(beside, **{field.name: np.stack([row[field.name] for row in rows]) for field in fields(Views)})
        beside.replace(path)
        print(f"{path.name}: {len(rows)} views", flush=True)


def load(cache: Path, count: int) -> Views:
    """Views of the instances of the first `count` photographs, in order."""
    paths = [chunk_path(cache, chunk) for chunk in range(-(-count // PHOTOS_PER_CHUNK))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise SystemExit(f"{cache} lacks {', '.join(missing)}: run the stage `describe` to its end")
    chunks = [np.load(path) for path in paths]
    views = Views(**{field.name: np.concatenate([chunk[field.name] for chunk in chunks]) for field in fields(Views)})
    return views.take(views.photo < count)


@functools.lru_cache(maxsize=400)
def _pixels(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def _describe_photo(
    files: list[Path], photo: int, extractor: Extractor, kept: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Rows of all views of one photograph's instances. Backgrounds come from the photograph's own split."""
    split = range(VALIDATION_PHOTOS) if photo < VALIDATION_PHOTOS else range(VALIDATION_PHOTOS, len(files))
    foreign = np.asarray([other for other in split if other != photo])
    regions = cut_instances(_pixels(files[photo]), INSTANCES_PER_PHOTO, np.random.default_rng((seed, photo)))
    rows = []
    for place, region in enumerate(regions):
        instance = photo * INSTANCES_PER_PHOTO + place
        for kind, (_, level, crop) in enumerate(VIEW_KINDS):
            rng = view_rng(seed, instance, kind)
            others = rng.choice(foreign, 1 + CLUTTER_PHOTOS, replace=False)
            background, *clutter = (_pixels(files[other]) for other in others)
            view = render_view(region, background, rng, level, size=VIEW_SIZE, clutter=clutter)
            if view.visible < LEAST_VISIBLE or min(view.box[2:]) < LEAST_BOX:
                continue
            box = view.box if crop else None
            image = decode(view.jpeg(), "view", box, max_pixels=10**6, min_side=10)
            (found,) = extractor.describe([image])
            assert isinstance(found, Description)
            row = _row(found, kept) | {"others": others.astype(np.int32), "crop": np.bool_(crop)}
            row |= {"instance": np.int32(instance), "photo": np.int32(photo), "kind": np.int8(kind)}
            rows.append(row)
    return rows


def _row(found: Description, kept: int) -> dict[str, np.ndarray]:
    count = min(kept, len(found.descriptors))
    local = np.zeros((kept, found.descriptors.shape[1]), np.float16)
    scale = np.zeros(kept, np.uint8)
    local[:count], scale[:count] = found.descriptors[:count], found.scale[:count]
    return {"descriptor": found.global_descriptor, "local": local, "count": np.int32(count), "scale": scale}
