"""Does our DELG compute what the original computes?

    python benchmarks/parity/delg_parity.py --reference DIR --photos FOLDER --photos FOLDER

DIR is a checkout of tensorflow/models (research/delf and research/object_detection/core are read);
FOLDER holds photographs. Needed beside the project: the extra `convert` and the packages tf_keras
(of TensorFlow's own version) and tf-slim, as docs/delg.md installs them.

Their network gets random weights (batch statistics too) and is exported as a SavedModel by their
own code; our converter makes our file of it; their examples/extractor.py and our extractor describe
the same photographs, one of them larger than 1,024 pixels and one cropped to a box as a query.
ResNet-101 in Keras is built of their blocks, since their code gives ResNet-50 alone; in the layout
slim both ResNets are those of tf_slim. A line is printed for each photograph; code 1 if a place
differs or a difference exceeds 1e-4.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.parity.delg_reference import (
    IMAGE_SCALES,
    Maps,
    Reference,
    import_sources,
    references,
)
from pipelines.exchange.convert_delg import Options, run, summarise
from rrt_core.extractors import Description
from rrt_core.extractors.delg.extractor import Delg, scaled
from rrt_core.images import Image, decode

TOLERANCE = 1e-4
LARGE = 1280  # longest side of the photograph that must be shrunk
MOST = 1000


class Case(NamedTuple):
    name: str
    data: bytes
    box: tuple[float, float, float, float] | None


def cases(folders: list[Path], count: int, longest: int) -> list[Case]:
    """Photographs spread over the folders, shrunk to `longest`.

    The last two are large; the last is a query with a box.
    """
    made: list[Case] = []
    listed = [
        sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
        )
        for folder in folders
    ]
    chosen = [
        paths[i * len(paths) // count] for i in range(count) for paths in [listed[i % len(listed)]]
    ]
    for place, path in enumerate(chosen):
        picture = PillowImage.open(path).convert("RGB")
        to = LARGE if place >= count - 2 else min(longest, max(picture.size))
        factor = to / max(picture.size)
        picture = picture.resize([max(1, round(side * factor)) for side in picture.size])
        box = None
        if place == count - 1:
            width, height = picture.size
            box = (0.31 * width, 0.23 * height, 0.4 * width, 0.45 * height)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        made.append(Case(path.stem[:20], buffer.getvalue(), box))
    return made


def their_input(case: Case) -> tuple[np.ndarray, float]:
    """As delg/extract_features.py: pixels, cropped to the rounded box, and the resize factor."""
    picture = PillowImage.open(io.BytesIO(case.data)).convert("RGB")
    if case.box is None:
        return np.array(picture), 1.0
    whole = max(picture.size)
    x, y, width, height = case.box
    picture = picture.crop([round(value) for value in (x, y, x + width, y + height)])
    return np.array(picture), max(picture.size) / whole


def map_differences(reference: Reference, ours: Delg, pixels: np.ndarray) -> dict[str, float]:
    """Greatest difference of each map over its greatest value, over the seven scales."""
    worst: dict[str, float] = {}
    normalised = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 128.0) / 128.0
    for scale in IMAGE_SCALES:
        theirs = reference.maps(pixels, scale)
        with torch.inference_mode():
            block3 = ours._network.trunk(scaled(normalised, scale))
            if block3 is None:
                continue
            attention, descriptors = ours._network.local_maps(block3)
        own: Maps = {
            "block3": block3[0].permute(1, 2, 0).numpy(),
            "attention": attention[0, :, :, None].numpy(),
            "descriptors": descriptors[0].permute(1, 2, 0).numpy(),
        }
        for name, value in theirs.items():
            assert value.shape == own[name].shape, (name, value.shape, own[name].shape)
            worst[name] = max(
                worst.get(name, 0.0), float(np.abs(value - own[name]).max() / np.abs(value).max())
            )
    return worst


def compare(
    theirs: dict[str, Any], ours: Description, origin: tuple[float, float]
) -> dict[str, Any]:
    """Numbers of places (exact), then differences, all 0 where no local is in both.

    `score` is relative, `local` and `global` are L2 distances of unit vectors.
    """
    local = theirs["local_features"]
    # of a photograph without locals they are empty, of any shape
    xy = np.asarray(local["locations"]).reshape(-1, 2)[:, ::-1] + np.array(origin, np.float32)
    scales = np.asarray(local["scales"]).reshape(-1)
    ordinals = np.abs(scales[:, None] * np.array(IMAGE_SCALES)[None] - 1).argmin(1)
    them = [(int(s), float(x), float(y)) for s, (x, y) in zip(ordinals, xy, strict=True)]
    us = [(int(s), float(x), float(y)) for s, (x, y) in zip(ours.scale, ours.xy, strict=True)]
    where = {key: n for n, key in enumerate(us)}
    both = [(n, where[key]) for n, key in enumerate(them) if key in where]
    a, b = ([pair[side] for pair in both] for side in (0, 1))
    compared: dict[str, Any] = {
        "locals": len(them),
        "other": len(set(them) ^ set(us)),
        "swapped": sum(x != y for x, y in zip(them, us, strict=False)),
        "score": 0.0,
        "local": 0.0,
    }

    if both:
        attention = local["attention"][a]
        compared["score"] = float((np.abs(attention - ours.strength[b]) / attention).max())
        apart = local["descriptors"][a] - ours.descriptors[b]
        compared["local"] = float(np.linalg.norm(apart, axis=1).max())

    compared["global"] = float(np.linalg.norm(theirs["global_descriptor"] - ours.global_descriptor))
    return compared


def one_model(reference: Reference, photographs: list[Case]) -> dict[str, Any]:
    """Print a table: locals, places that differ or are swapped, the largest difference."""
    converted = str(reference.folder) + ".safetensors"
    options = Options(model=str(reference.folder), out=converted, threshold=reference.threshold)
    summarise(options, run(options))
    ours = Delg(weights=converted, max_locals=MOST, device="cpu")
    print(
        f"{'photograph':<22}{'pixels':>11}{'locals':>7}{'other':>6}{'swapped':>8}"
        f"{'block3':>9}{'attention':>10}"
        f"{'features':>9}{'score':>9}{'local':>9}{'global':>9}{'s theirs':>9}{'s ours':>7}",
        flush=True,
    )
    total = {"locals": 0, "other": 0, "swapped": 0}
    worst = 0.0
    for case in photographs:
        pixels, factor = their_input(case)
        started = time.perf_counter()
        theirs = reference.extract(pixels, factor)
        between = time.perf_counter()
        image: Image = decode(case.data, case.name, case.box)
        described = ours.describe([image])[0]
        ended = time.perf_counter()
        assert isinstance(described, Description)
        assert np.array_equal(pixels, image.pixels) and factor == image.resize_factor

        compared = compare(theirs, described, image.origin)
        for name in total:
            total[name] += compared[name]
        maps = map_differences(reference, ours, pixels) if max(pixels.shape) < LARGE else {}
        vectors = [compared[name] for name in ("score", "local", "global")]
        worst = max(worst, *maps.values(), *vectors)

        columns = "".join(
            f"{maps[name]:>{width}.1e}" if maps else f"{'':>{width}}"
            for name, width in (("block3", 9), ("attention", 10), ("descriptors", 9))
        )
        columns += "".join(f"{value:>9.1e}" for value in vectors)
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        print(
            f"{case.name:<22}{size:>11}"
            f"{compared['locals']:>7}{compared['other']:>6}{compared['swapped']:>8}{columns}"
            f"{between - started:>9.1f}{ended - between:>7.1f}",
            flush=True,
        )
    print(f"largest difference {worst:.1e}\n", flush=True)
    return {
        "photographs": len(photographs),
        "locals": total["locals"],
        "other_places": total["other"],
        "swapped_places": total["swapped"],
        "largest_difference": worst,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reference", required=True, type=Path, help="checkout of tensorflow/models"
    )
    parser.add_argument(
        "--photos",
        required=True,
        type=Path,
        action="append",
        help="folder of photographs; repeatable",
    )
    parser.add_argument("--count", type=int, default=10, help="photographs")
    parser.add_argument(
        "--longest", type=int, default=448, help="longest side of most of them, pixels"
    )
    parser.add_argument("--depths", default="50,101")
    parser.add_argument("--layouts", default="keras,slim")
    parser.add_argument("--strides", default="32,16", help="of the local map, in keras")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import_sources(args.reference)
    photographs = cases(args.photos, args.count, args.longest)
    sample = their_input(photographs[0])[0]
    models: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for layout in args.layouts.split(","):
            for depth in (int(text) for text in args.depths.split(",")):
                strides = [int(text) for text in args.strides.split(",")]
                for reference in references(
                    depth, layout, strides, Path(work), sample, args.seed, MOST
                ):
                    print(
                        f"ResNet-{depth}, {layout}, threshold {reference.threshold:.2f}", flush=True
                    )
                    models[reference.folder.name] = one_model(reference, photographs)

    worst = max(model["largest_difference"] for model in models.values())
    others = sum(model["other_places"] for model in models.values())
    equal = worst <= TOLERANCE and not others
    print(
        "equal"
        if equal
        else f"NOT equal: largest difference {worst:.1e}, allowed {TOLERANCE:.0e}; "
        f"{others} places differ"
    )
    print_figures(
        {
            "largest_difference": worst,
            "allowed_difference": TOLERANCE,
            "other_places": others,
            "equal": equal,
            "models": models,
        }
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
