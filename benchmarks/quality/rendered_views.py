"""Rendered views of instances for training, validation and test: split, seeds, levels, descriptors.

    python benchmarks/quality/rendered_views.py SPLIT --work DIR [--part 0 --parts 2]

describes a split, or finishes it. The 800 photographs of RRT_TEST_DATA/photos are put into one
seeded order and split; instances are textured regions of photographs
(rrt_core/synthetic/instances.py), each rendered in front of other photographs of its own split.
Training has a view for every line of TRAINING_KINDS. Validation and test have, of each instance, a
query (described as the crop to its box) and VIEWS_A_LEVEL gallery views at each of the renderer's
levels mild, medium and hard (rrt_core/synthetic/levels.py). Splits, seeds and kinds are fixed here
before anything is trained and do not change afterwards.

A chunk of photographs is one file of the cache; a rerun makes the missing ones only, and several
processes may share the work (`part` of `parts`).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.extractors import Description, Extractor, create
from rrt_core.images import decode
from rrt_core.synthetic.instances import cut_instances
from rrt_core.synthetic.rendering import LEVELS, Level, render_view, view_rng
from rrt_core.transformer.model import bin_scales

PHOTOS = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared")) / "photos"
# Of the seeded order.
SPLITS = {"validation": range(80), "test": range(80, 160), "training": range(160, 800)}
ORDER_SEED = 0
SEEDS = {"validation": 4201, "test": 4202, "training": 4203}
VIEWS_A_LEVEL = 3
MILD, MEDIUM, HARD = LEVELS["mild"], LEVELS["medium"], LEVELS["hard"]
QUERY = replace(MILD, cover=(0.3, 0.6), cut=(-1.0, 0.0))
# Poses of the hard level in the light of the medium one: a net learns slowly from the full one.
HARD_POSE = replace(
    MEDIUM, roll=HARD.roll, tilt=HARD.tilt, cut=HARD.cut, cover=(0.14, 0.42), warp=(0.02, 0.06)
)
Kind = tuple[str, Level, bool]  # name, level, cropped to the instance's box
TRAINING_KINDS: tuple[Kind, ...] = (
    ("query", QUERY, True),
    ("medium query", MEDIUM, True),
    ("mild", MILD, False),
    ("medium", MEDIUM, False),
    ("medium", MEDIUM, False),
    ("hard pose", HARD_POSE, False),
    ("hard pose", HARD_POSE, False),
    ("hard", HARD, False),
)
TASK_KINDS: tuple[Kind, ...] = (
    ("query", QUERY, True),
    *((name, level, False) for name, level in LEVELS.items() for _ in range(VIEWS_A_LEVEL)),
)
KINDS = {"training": TRAINING_KINDS, "validation": TASK_KINDS, "test": TASK_KINDS}
# Training mixes the extractor's defaults with the demo's quicker sizes: the weights serve both.
QUICK_SIZES, QUICK_SHARE = (320, 224), 1 / 3
INSTANCES_PER_PHOTO = 3
PHOTOS_PER_CHUNK = 16
CLUTTER_PHOTOS = 3
VIEW_SIZE = 360  # longest side, pixels
LEAST_VISIBLE = 0.3  # share of the object; a view that shows less is not used
LEAST_BOX = 32  # pixels; what is smaller is not used either
MOST_LOCALS = 500
BINNING = "fixed"


@dataclass
class Views:
    """n described views.

    descriptor  f32 [n, D]
    local       f16 [n, k, L], zeros behind `count` i32 [n]
    rows        u8 [n, k], of the scale embedding
    xy          f32 [n, k, 2]
    instance    i32 [n], photo * INSTANCES_PER_PHOTO + region
    photo       i32 [n]
    kind        i8 [n], place in the split's kinds
    crop        bool [n]
    others      i32 [n, 1 + CLUTTER_PHOTOS], photographs of background and clutter
    """

    descriptor: np.ndarray
    local: np.ndarray
    count: np.ndarray
    rows: np.ndarray
    xy: np.ndarray
    instance: np.ndarray
    photo: np.ndarray
    kind: np.ndarray
    crop: np.ndarray
    others: np.ndarray

    def __len__(self) -> int:
        return len(self.count)


def photographs(folder: Path) -> list[Path]:
    """All .jpg of the folder in the seeded order that SPLITS counts in."""
    files = sorted(folder.glob("*.jpg"))
    needed = max(split.stop for split in SPLITS.values())
    if len(files) < needed:
        raise SystemExit(
            f"{folder}: {len(files)} photographs (.jpg), {needed} are needed; set RRT_TEST_DATA"
        )
    order = np.random.default_rng(ORDER_SEED).permutation(len(files))
    return [files[i] for i in order]


def extractors() -> tuple[Extractor, Extractor]:
    """The extractor with its defaults, and with the quicker sizes."""
    return create("efficientnet"), create("efficientnet", sizes=QUICK_SIZES)


def describe_split(
    split: str, files: list[Path], work: Path, part: int, parts: int
) -> dict[str, int]:
    """Make the chunks number part, part + parts, ... that the cache lacks: what was made."""
    (work / split).mkdir(parents=True, exist_ok=True)
    made_by = extractors()
    photos = SPLITS[split]
    made = {"chunks_made": 0, "views_made": 0}
    for chunk in range(part, -(-len(photos) // PHOTOS_PER_CHUNK), parts):
        path = _chunk_path(work, split, chunk)
        if path.exists():
            continue
        rows = []
        for photo in photos[chunk * PHOTOS_PER_CHUNK : (chunk + 1) * PHOTOS_PER_CHUNK]:
            rows += _describe_photo(split, files, photo, made_by)
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(
            beside,
            **{field.name: np.stack([row[field.name] for row in rows]) for field in fields(Views)},
        )
        beside.replace(path)
        made["chunks_made"] += 1
        made["views_made"] += len(rows)
        print(f"{path.name}: {len(rows)} views", flush=True)
    return made


def load(work: Path, split: str) -> Views:
    """The described views of a split, in order."""
    paths = [
        _chunk_path(work, split, chunk)
        for chunk in range(-(-len(SPLITS[split]) // PHOTOS_PER_CHUNK))
    ]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise SystemExit(
            f"{work} lacks {', '.join(missing)}: run `rendered_views.py {split}` to its end"
        )
    chunks = [np.load(path) for path in paths]
    return Views(
        **{
            field.name: np.concatenate([chunk[field.name] for chunk in chunks])
            for field in fields(Views)
        }
    )


def entangled(views: Views, i: int, others: np.ndarray) -> np.ndarray:
    """bool [len(others)]: the two pictures may show one thing beside their instances.

    Either the background of one is the photograph that the other's instance was cut from, or both
    have a background or clutter in common (of which a crop shows next to nothing).
    """
    in_theirs = (views.others[others] == views.photo[i]).any(axis=1)
    in_ours = np.isin(views.photo[others], views.others[i])
    common = (
        np.isin(views.others[others], views.others[i]).any(axis=1)
        & ~views.crop[others]
        & ~views.crop[i]
    )
    return np.asarray(in_theirs | in_ours | common)


def _chunk_path(work: Path, split: str, chunk: int) -> Path:
    return work / split / f"views-{chunk:03d}.npz"


@functools.lru_cache(maxsize=400)
def _pixels(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def _describe_photo(
    split: str, files: list[Path], photo: int, made_by: tuple[Extractor, Extractor]
) -> list[dict[str, np.ndarray]]:
    """Rows of all views of one photograph's instances."""
    seed = SEEDS[split]
    foreign = np.asarray([other for other in SPLITS[split] if other != photo])
    regions = cut_instances(
        _pixels(files[photo]), INSTANCES_PER_PHOTO, np.random.default_rng((seed, photo))
    )
    rows = []
    for place, region in enumerate(regions):
        instance = photo * INSTANCES_PER_PHOTO + place
        for kind, (_, level, crop) in enumerate(KINDS[split]):
            rng = view_rng(seed, instance, kind)
            others = rng.choice(foreign, 1 + CLUTTER_PHOTOS, replace=False)
            quick = split == "training" and rng.uniform() < QUICK_SHARE
            background, *clutter = (_pixels(files[other]) for other in others)
            view = render_view(region, background, rng, level, size=VIEW_SIZE, clutter=clutter)
            if view.visible < LEAST_VISIBLE or min(view.box[2:]) < LEAST_BOX:
                continue
            box = view.box if crop else None
            image = decode(view.jpeg(), "view", box, max_pixels=10**6, min_side=10)
            extractor = made_by[quick]
            (description,) = extractor.describe([image])
            assert isinstance(description, Description)
            row = _row(description, extractor) | {
                "others": others.astype(np.int32),
                "crop": np.bool_(crop),
            }
            row |= {"instance": np.int32(instance), "photo": np.int32(photo), "kind": np.int8(kind)}
            rows.append(row)
    return rows


def _row(description: Description, extractor: Extractor) -> dict[str, np.ndarray]:
    count = min(MOST_LOCALS, len(description.descriptors))
    local = np.zeros((MOST_LOCALS, description.descriptors.shape[1]), np.float16)
    rows, xy = np.zeros(MOST_LOCALS, np.uint8), np.zeros((MOST_LOCALS, 2), np.float32)
    local[:count], xy[:count] = description.descriptors[:count], description.xy[:count]
    rows[:count] = bin_scales(extractor.scales, BINNING)[description.scale[:count]]
    return {
        "descriptor": description.global_descriptor,
        "local": local,
        "count": np.int32(count),
        "rows": rows,
        "xy": xy,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("split", choices=SPLITS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = photographs(arguments.photos)
    made = describe_split(arguments.split, files, arguments.work, arguments.part, arguments.parts)
    print_figures({"split": arguments.split, **made})


if __name__ == "__main__":
    main()
