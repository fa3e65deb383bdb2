#!/usr/bin/env python3
"""Which locals are kept, and what rerankers make of them, on real photographs.

    python benchmarks/quality/real_sets.py --work DIR --split validation --orders strength grid8
    python benchmarks/quality/real_sets.py --work DIR --split test --orders strength grid8

Data: RRT_TEST_DATA with splits.json, which says what may be chosen by (`validation`) and what only
counted (`test`); sets museum, monuments, products and, in the test alone, covers. Distractors are
its photos/. A choice among orders is made on the validation instances; no photograph of a test
instance lies in their galleries.

An order is how an image's locals are sorted before the first 500 are kept and the first --tokens of
these compared: `strength`, `gridN` (rrt_core/extractors/spread.py with N cells a side),
`strongest-gridN` (the strongest 500, then sorted so). All methods score the first 100 images by
global similarity. mAP as in revisitop: junk left out, trapezoids.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality.described import described
from benchmarks.quality.retrieval_tasks import (
    Task,
    average_precisions,
    bootstrap,
    make_task,
    scores,
)
from rrt_core.extractors import Description, create
from rrt_core.extractors.spread import spread
from rrt_core.metrics.revisited import average_precision
from rrt_core.rerankers import Locals
from rrt_core.rerankers import create as create_reranker

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
KEPT = 500  # locals an image, of all that are described
DESCRIBED = 4096
SETS = ("museum", "monuments", "products", "covers")


@dataclass(frozen=True)
class Question:
    """A query, and which photographs of the gallery show its instance or are left out."""

    query: Path
    positive: frozenset[Path]
    junk: frozenset[Path]


@dataclass(frozen=True)
class RealSet:
    """Queries with the gallery of all of them; distractors come on top."""

    name: str
    questions: list[Question]
    gallery: list[Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="descriptions and scores are kept")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--orders", nargs="+", default=["strength", "grid8"])
    parser.add_argument("--rerankers", nargs="+", default=["geometric", "rrt"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--distractors", type=int, default=400)
    parser.add_argument("--extractor", default="efficientnet")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    extractor = create(arguments.extractor, max_locals=DESCRIBED, order="strength")
    table: dict[str, dict[str, float]] = {}
    for real in sets(arguments.split, arguments.sets):
        paths, descriptions = everything(real, arguments, extractor)
        baseline: dict[str, np.ndarray] = {}
        for order in arguments.orders:
            images = [in_order(one, order, extractor.scales) for one in descriptions]
            task = the_task(real, f"{arguments.split}-{real.name}-{order}", paths, images)
            if not baseline:
                values = average_precisions(task, None, trapezoids)
                table.setdefault(real.name, {})["global"] = float(values.mean())
                print(f"{real.name:10} {'global':32} {values.mean():.4f}", flush=True)
            for name in arguments.rerankers:
                tokens = {"query_tokens": arguments.tokens, "gallery_tokens": arguments.tokens}
                reranker = create_reranker(name, **tokens)
                begun = time.monotonic()
                values = average_precisions(
                    task, scores(task, reranker, arguments.work), trapezoids
                )
                first = baseline.setdefault(name, values)
                low, high = bootstrap(values - first)
                label = f"{name} {arguments.tokens} {order}"
                table[real.name][label] = float(values.mean())
                change = f"{values.mean() - first.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
                taken = f"{len(values)} queries, {time.monotonic() - begun:.0f} s"
                print(f"{real.name:10} {label:32} {values.mean():.4f}  {change}  {taken}")
                sys.stdout.flush()
    print_figures(table)


def sets(split: str, names: list[str]) -> Iterator[RealSet]:
    """The chosen sets of a split; `covers` has no validation."""
    chosen = json.loads((DATA / "splits.json").read_text())
    for name in names:
        if split == "test":
            truth = json.loads((DATA / "splits" / f"{name}.json").read_text())
            yield _from_truth(name, truth, list(truth["gallery"]), lambda query: True)
        elif name != "covers":
            yield VALIDATION[name](chosen)


def _museum(chosen: dict) -> RealSet:
    truth = json.loads((DATA / "museum" / "ground_truth.json").read_text())
    test = json.loads((DATA / "splits" / "museum.json").read_text())
    tested = {name for query in test["queries"] for name in query["positive"]}
    names = {name for part in ("train", "validation") for name in chosen["museum"][part]["queries"]}
    gallery = [name for name in truth["gallery"] if name not in tested]
    return _from_truth("museum", truth, gallery, lambda query: query["name"] in names)


def _monuments(chosen: dict) -> RealSet:
    truth = json.loads((DATA / "monuments" / "ground_truth.json").read_text())
    rows = list(csv.DictReader((DATA / "monuments" / "labels.csv").open()))
    place = {Path(row["file"]).stem: row["landmark"] for row in rows}
    known = {*chosen["monuments"]["train"], *chosen["monuments"]["validation"]}
    gallery = [name for name in truth["gallery"] if place[name.rpartition("/")[2]] in known]
    return _from_truth(
        "monuments",
        truth,
        gallery,
        lambda query: place[query["name"]] in chosen["monuments"]["validation"],
    )


def _products(chosen: dict) -> RealSet:
    rows = list(csv.DictReader((DATA / "products" / "labels.csv").open()))
    known = {*chosen["products"]["train"], *chosen["products"]["validation"]}
    files: dict[str, list[Path]] = {}
    for row in rows:
        if row["product"] in known:
            files.setdefault(row["product"], []).append(DATA / "products" / row["path"])
    questions = [
        Question(path, frozenset(files[product]) - {path}, frozenset([path]))
        for product in chosen["products"]["validation"]
        for path in files[product]
    ]
    return RealSet("products", questions, [path for some in files.values() for path in some])


VALIDATION: dict[str, Callable[[dict], RealSet]] = {
    "museum": _museum,
    "monuments": _monuments,
    "products": _products,
}


def _from_truth(
    name: str, truth: dict, gallery: list[str], wanted: Callable[[dict], bool]
) -> RealSet:
    folder = DATA / name
    files = {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".jpg", ".png")
    }

    def found(names: list[str]) -> frozenset[Path]:
        return frozenset(files[each] for each in names)

    inside = set(gallery)
    questions = [
        Question(
            files.get(query["name"]) or files[f"queries/{query['name']}"],
            found([each for each in query["positive"] if each in inside]),
            found(query["junk"]),
        )
        for query in truth["queries"]
        if query["positive"] and wanted(query)
    ]
    return RealSet(name, questions, [files[each] for each in gallery])


def everything(
    real: RealSet, arguments: argparse.Namespace, extractor: object
) -> tuple[list[Path], list[Description]]:
    """Gallery, distractors and the queries that are not in it, with their descriptions."""
    photos = sorted((DATA / "photos").iterdir())
    unseen = [photo for number, photo in enumerate(photos) if number % 4 == 0]
    seen = [photo for number, photo in enumerate(photos) if number % 4]
    distractors = (seen if arguments.split == "validation" else unseen + seen)[
        : arguments.distractors
    ]
    paths = list(
        dict.fromkeys([*real.gallery, *distractors, *(each.query for each in real.questions)])
    )
    items = [(path, None) for path in paths]
    return paths, described(extractor, items, arguments.work)


def in_order(description: Description, order: str, scales: tuple[float, ...]) -> Locals:
    """The first KEPT locals of an image by the named order."""
    everyone = np.arange(len(description.strength))  # the strongest first
    prefix, _, cells = order.rpartition("grid")
    if order != "strength":
        kept = slice(KEPT if prefix == "strongest-" else None)
        everyone = spread(
            description.xy[kept], description.scale[kept], description.strength[kept], int(cells)
        )
    chosen = everyone[:KEPT]
    return Locals(
        description.global_descriptor,
        description.descriptors[chosen],
        description.xy[chosen],
        description.scale[chosen],
        description.strength[chosen],
        scales,
    )


def the_task(real: RealSet, name: str, paths: list[Path], images: list[Locals]) -> Task:
    """Each query in the gallery and the distractors, its junk left out."""
    number = {path: place for place, path in enumerate(paths)}
    asked = {question.query for question in real.questions} - set(real.gallery)
    everyone = np.array([number[path] for path in paths if path not in asked])
    questions = {number[question.query]: question for question in real.questions}

    def gallery(question: Question) -> np.ndarray:
        left_out = [number[path] for path in question.junk]
        return everyone[~np.isin(everyone, left_out)]

    def relevant(query: int, some: np.ndarray) -> np.ndarray:
        return np.isin(some, [number[path] for path in questions[query].positive])

    galleries = [gallery(question) for question in questions.values()]
    return make_task(name, images, np.array(list(questions)), galleries, relevant)


def trapezoids(relevant: np.ndarray) -> float:
    """revisitop's average precision of a complete ranking without junk."""
    places = np.flatnonzero(relevant)
    return average_precision(places, len(places))


if __name__ == "__main__":
    main()
