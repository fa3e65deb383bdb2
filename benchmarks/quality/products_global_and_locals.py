"""What descriptors are worth on real products: global mAP, and mutual neighbours on top.

    python benchmarks/quality/products_global_and_locals.py
        [--extractor NAME] [--set OPTION=JSON] [--box PART]

The 100 validation photographs of $RRT_TEST_DATA/products query the 864 training ones among the 800
of photos/. mAP is the plain average precision over the whole gallery, no junk. The global top 100
is ordered anew by mutual nearest neighbours of the first 64, 200 and 500 locals, scored by their
number, by how many are more similar than 0.6, 0.8 and 0.9, and by the sum of their cubed
similarities. Descriptors are kept in a temporary folder named by what made them, so that a second
run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.extractors import Description, Extractor, create
from rrt_core.images import decode

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
TOP = 100
LOCALS = (64, 200, 500)
WAYS = {
    "number": len,
    "number above 0.6": lambda similarity: (similarity > 0.6).sum(),
    "number above 0.8": lambda similarity: (similarity > 0.8).sum(),
    "number above 0.9": lambda similarity: (similarity > 0.9).sum(),
    "sum of cubes": lambda similarity: (similarity**3).sum(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extractor", default="efficientnet")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=JSON",
        help="an option of the extractor",
    )
    parser.add_argument(
        "--box", type=float, default=1.0, help="query the middle of each side, this fraction"
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    options = {
        name: json.loads(value)
        for name, _, value in (item.partition("=") for item in arguments.set)
    }
    extractor = create(arguments.extractor, **options)

    products = arguments.data / "products"
    queries, train = (sorted((products / split).rglob("*.jpg")) for split in ("val", "train"))
    gallery = train + sorted((arguments.data / "photos").glob("*.jpg"))
    relevant = np.array([[g.parent.name == q.parent.name for g in gallery] for q in queries])
    described = describe(extractor, gallery, 1.0)
    wanted = describe(extractor, queries, arguments.box)

    left, right = (np.stack([d.global_descriptor for d in side]) for side in (wanted, described))
    order = np.argsort(-(left @ right.T), axis=1, kind="stable")
    print(
        f"{extractor.name} {json.dumps(extractor.config)}, box {arguments.box:g}, "
        f"{len(gallery):,} images"
    )
    figures = {"global": show("global", order, relevant)}
    recall = np.take_along_axis(relevant, order[:, :TOP], axis=1).sum(axis=1) / relevant.sum(axis=1)
    print(f"  recall in the top {TOP}: {recall.mean():.3f}")

    started = time.monotonic()
    scores = rerank(wanted, described, order[:, :TOP])
    for (kept, way), values in scores.items():
        again = np.argsort(-values, axis=1, kind="stable")
        reranked = np.concatenate(
            [np.take_along_axis(order[:, :TOP], again, 1), order[:, TOP:]], axis=1
        )
        name = f"{kept} locals, {way}"
        figures[name] = show(name, reranked, relevant)
    seconds = time.monotonic() - started
    print(f"  {seconds:.0f} s for {len(queries) * TOP:,} pairs")
    print_figures(
        {
            "extractor": extractor.name,
            "gallery_images": len(gallery),
            "queries": len(queries),
            f"recall_{TOP}": recall.mean(),
            "rankings": figures,
            "reranking_seconds": seconds,
        }
    )


def describe(extractor: Extractor, files: list[Path], box: float) -> list[Description]:
    made_by = [extractor.name, extractor.revision, extractor.config, extractor.weights_sha256, box]
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"rrt-products-{key}"
    folder.mkdir(exist_ok=True)
    descriptions, seconds, made = [], 0.0, 0
    for path in files:
        kept = folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.npz"
        if not kept.exists():
            image = decode(path.read_bytes(), path.name)
            if box < 1:
                width, height = image.width, image.height
                middle = (width * (1 - box) / 2, height * (1 - box) / 2, width * box, height * box)
                image = decode(path.read_bytes(), path.name, middle)
            started = time.process_time()
            description = extractor.describe([image])[0]
            seconds, made = seconds + time.process_time() - started, made + 1
            if not isinstance(description, Description):
                raise SystemExit(f"{path}: {description.reason}")
            unfinished = kept.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as file:
                np.savez(file, **vars(description))
            unfinished.rename(kept)
        with np.load(kept) as arrays:
            descriptions.append(Description(**arrays))
    if made:
        print(
            f"{made} images described in {seconds:.0f} s of processor time: {made / seconds:.1f} "
            f"a second"
        )
    return descriptions


def rerank(
    queries: list[Description], gallery: list[Description], shortlist: np.ndarray
) -> dict[tuple[int, str], np.ndarray]:
    scores = {(kept, way): np.zeros(shortlist.shape) for kept in LOCALS for way in WAYS}
    for row, candidates in enumerate(shortlist):
        for column, candidate in enumerate(candidates):
            between = queries[row].descriptors @ gallery[candidate].descriptors.T
            for kept in LOCALS:
                similarities = mutual(between[:kept, :kept])
                for way, score in WAYS.items():
                    scores[kept, way][row, column] = score(similarities)
    return scores


def mutual(similarity: np.ndarray) -> np.ndarray:
    """Similarities, not negative, of the pairs that are each other's nearest."""
    if not similarity.size:
        return np.zeros(0)
    forth = similarity.argmax(axis=1)
    back = np.ascontiguousarray(similarity.T).argmax(axis=1)
    rows = np.flatnonzero(back[forth] == np.arange(len(forth)))
    return np.maximum(similarity[rows, forth[rows]], 0)


def show(name: str, order: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Print mAP and Recall@1 of a ranking, and return them."""
    precisions = []
    for ranks, hits in zip(order, relevant, strict=True):
        places = np.flatnonzero(hits[ranks]) + 1
        precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    first = np.mean([hits[ranks[0]] for ranks, hits in zip(order, relevant, strict=True)])
    print(f"  {name}: mAP {np.mean(precisions):.3f}, R@1 {first:.2f}")
    return {"mAP": float(np.mean(precisions)), "recall_1": float(first)}


if __name__ == "__main__":
    main()
