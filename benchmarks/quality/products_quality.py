"""Reranking real photographs with weights that never saw the query's product.

    python benchmarks/quality/products_quality.py train --fold 0 --work DIR --start WEIGHTS
    python benchmarks/quality/products_quality.py score --work DIR [--only METHOD ...]
    python benchmarks/quality/products_quality.py table --work DIR --out PLOT.png

`train` is run for the folds 0, 1 and 2. 100 queries, 1,664 images.

Data: RRT_TEST_DATA/products, queries `val`, gallery `train` and the 800 photographs of photos/.
Products sorted by name, fold = position mod 3. The weights of a fold start from weights trained on
rendered views (train_weights.py: run/step-002400.safetensors, before its long sequences) and go on
with the photographs of the other folds' products, mixed with rendered views (--views DIR of
rendered_views.py); the recipe is fixed beforehand, so that nothing is chosen on a test product.

All methods see the same locals (the extractor's defaults, 500 an image) and the same shortlists
(the global top 100). Thresholds of the baselines are chosen for each fold and number of locals on
the queries of the other folds' products, in a gallery without the fold's own. The ensemble's weight
is chosen in the same way, but over the zero-shot weights' scores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality import rendered_views
from benchmarks.quality.pair_sampling import (
    LOOKALIKES,
    Budget,
    PairSampler,
    Pool,
    joined,
    labelled_pool,
    pair_figures,
    rendered_pool,
)
from benchmarks.quality.products_global_and_locals import describe
from benchmarks.quality.quality_plot import Curve, draw
from benchmarks.quality.rendered_views import BINNING
from benchmarks.quality.retrieval_tasks import (
    Task,
    average_precisions,
    bootstrap,
    ensembled,
    firsts,
    make_task,
    perfect,
    plain_average_precision,
    scores,
)
from rrt_core.checkpoints import load_checkpoint, save_checkpoint
from rrt_core.extractors import create as create_extractor
from rrt_core.rerankers import Locals, create
from rrt_core.rerankers.rrt import EMBEDDED_WEIGHTS
from rrt_core.training.loop import TrainingOptions, train
from rrt_core.transformer.model import bin_scales

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
FOLDS = 3
BUDGETS = (32, 64, 128, 256, 500)
# A pair at 500 takes ten times as long as at 64.
RRT_BUDGETS = {"rrt": (32, 64, 128, 500), "zero": (128,)}
GEOMETRIC_GRID = [
    {"max_distance": distance, "residual": residual}
    for distance in (0.8, 0.9, 1.0)
    for residual in (10.0, 20.0, 30.0)
]
MUTUAL_GRID = [{"min_similarity": similarity} for similarity in (0.4, 0.5, 0.55, 0.6, 0.65, 0.7)]
LAMBDAS, GAMMAS = np.round(np.arange(0, 1.01, 0.1), 1), (0.1, 0.2, 0.5, 1.0)
STEPS, LEARNING_RATE, WARMUP, PRODUCTS_SHARE = 700, 1.5e-4, 50, 0.6
BUDGET = Budget(
    low=48, high=224, long_low=100, long_high=500, long_from=0.7, pairs=32, typical=90, least=12
)


@dataclass
class Products:
    """Images described: queries, then the gallery.

    fold, label: int [n], -1 for photographs that are no products.
    """

    images: list[Locals]
    query: np.ndarray  # bool [n]
    label: np.ndarray
    fold: np.ndarray
    names: list[str]


def open_products(data: Path) -> Products:
    """Describe (or take from the temporary folder) all photographs."""
    products = data / "products"
    queries, train_split = (sorted((products / split).rglob("*.jpg")) for split in ("val", "train"))
    files = [*queries, *train_split, *sorted((data / "photos").glob("*.jpg"))]
    if not queries:
        raise SystemExit(f"{products} holds no photographs; set RRT_TEST_DATA")
    names = sorted({path.parent.name for path in queries + train_split})
    extractor = create_extractor("efficientnet")
    images = [
        Locals(d.global_descriptor, d.descriptors, d.xy, d.scale, d.strength, extractor.scales)
        for d in describe(extractor, files, 1.0)
    ]
    label = np.array(
        [names.index(path.parent.name) if path.parent.name in names else -1 for path in files]
    )
    fold = np.where(label >= 0, label % FOLDS, -1)
    return Products(images, np.arange(len(files)) < len(queries), label, fold, names)


def task_of(products: Products) -> Task:
    """All queries against the whole gallery."""
    queries, gallery = np.flatnonzero(products.query), np.flatnonzero(~products.query)

    def relevant(query: int, images: np.ndarray) -> np.ndarray:
        return np.asarray(products.label[images] == products.label[query])

    return make_task("products", products.images, queries, [gallery] * len(queries), relevant)


# ----------------------------------------------------------------------------------------- training


def products_pool(products: Products, keep: np.ndarray) -> Pool:
    """The kept images as a pool; those without a label are distractors."""
    chosen = np.flatnonzero(keep)
    most = max(len(products.images[i].descriptors) for i in chosen)
    rows = bin_scales(products.images[0].scales, BINNING)
    local = np.zeros((len(chosen), most, products.images[0].descriptors.shape[1]), np.float16)
    scale_rows, count = np.zeros((len(chosen), most), np.uint8), np.zeros(len(chosen), np.int32)
    for place, i in enumerate(chosen):
        n = count[place] = len(products.images[i].descriptors)
        local[place, :n] = products.images[i].descriptors
        scale_rows[place, :n] = rows[products.images[i].scale]
    descriptor = np.stack([products.images[i].global_descriptor for i in chosen])
    return labelled_pool(descriptor, local, count, scale_rows, products.label[chosen])


def fold_weights(args: argparse.Namespace, fold: int) -> Path:
    """The file of a fold's weights."""
    return Path(args.work / f"fold{fold}.safetensors")


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Train one fold's weights, or go on: the last value of each figure that was reported."""
    products = open_products(args.data)
    known = products_pool(products, products.fold != args.fold)
    rendered = rendered_pool(rendered_views.load(args.views, "training"))
    held_out = rendered_pool(rendered_views.load(args.views, "validation"))
    sampler = PairSampler(
        joined(rendered, known, PRODUCTS_SHARE), STEPS, args.fold, BUDGET, LOOKALIKES
    )
    validation = PairSampler(held_out, STEPS, 0, BUDGET, LOOKALIKES)
    options = TrainingOptions(
        steps=STEPS,
        lr=LEARNING_RATE,
        warmup=WARMUP,
        seed=args.fold,
        evaluate_every=STEPS,
        checkpoint_every=50,
        precision="bfloat16",
        micro_batch=8,
    )
    last: dict[str, float] = {}

    def report(row: dict[str, float]) -> None:
        last.update(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)

    model = load_checkpoint(str(args.start)).model.train()
    train(
        model,
        sampler.batch_of,
        lambda trained: pair_figures(trained, held_out, validation, 96, 300),
        options,
        args.work / f"fold{args.fold}",
        report,
    )
    save_checkpoint(
        str(fold_weights(args, args.fold)),
        model,
        {"fold": args.fold, "start": str(args.start.name)},
    )
    return {"fold": args.fold, "trained": last}


# ------------------------------------------------------------------------------------------ scoring


def methods(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Every (method, number of locals), the quick ones first."""
    for budget in BUDGETS:
        for method in ("mutual", "geometric", "rrt", "zero"):
            if budget in RRT_BUDGETS.get(method, BUDGETS):
                yield method, budget


def baseline(method: str, budget: int, **options: float) -> object:
    """A baseline at a number of locals a side."""
    name = {"mutual": "mutual_nn", "geometric": "geometric"}[method]
    return create(name, query_tokens=budget, gallery_tokens=budget, **options)


def tuned(
    args: argparse.Namespace, products: Products, task: Task, method: str, budget: int
) -> list[np.ndarray]:
    """A baseline's scores, its options chosen for each fold on the other folds' products."""
    grid = MUTUAL_GRID if method == "mutual" else GEOMETRIC_GRID
    fold = products.fold[task.queries]
    gained = [[] for _ in grid]
    tried = [scores(task, baseline(method, budget, **options), args.work) for options in grid]
    chosen: list[np.ndarray] = [np.zeros(0)] * len(task.queries)
    for test in range(FOLDS):
        others = np.flatnonzero(fold != test)
        banned = products.fold == test
        inner = task.only(others, banned)
        for place, scored in enumerate(tried):
            seen = [
                s[~banned[task.order[i][: len(s)]]] for i, s in ((i, scored[i]) for i in others)
            ]
            gained[place].append(average_precisions(inner, seen, plain_average_precision).mean())
        best = int(np.argmax([figures[test] for figures in gained]))
        print(f"    {method} at {budget}, fold {test}: {grid[best]}")
        for i in np.flatnonzero(fold == test):
            chosen[i] = tried[best][i]
    return chosen


def transformer(
    args: argparse.Namespace, products: Products, task: Task, budget: int
) -> list[np.ndarray]:
    """Each query scored by its fold's weights."""
    fold = products.fold[task.queries]
    logits: list[np.ndarray] = [np.zeros(0)] * len(task.queries)
    for test in range(FOLDS):
        mine = np.flatnonzero(fold == test)
        reranker = create(
            "rrt", weights=str(fold_weights(args, test)), query_tokens=budget, gallery_tokens=budget
        )
        for i, scored in zip(mine, scores(task.only(mine), reranker, args.work), strict=True):
            logits[i] = scored
    return logits


def scores_of(
    args: argparse.Namespace, products: Products, task: Task, method: str, budget: int
) -> list[np.ndarray]:
    """The scores of one method."""
    if method == "rrt":
        return transformer(args, products, task, budget)
    if method == "zero":
        weights = str(args.start)
        reranker = create("rrt", weights=weights, query_tokens=budget, gallery_tokens=budget)
        return scores(task, reranker, args.work)
    return tuned(args, products, task, method, budget)


def run_score(args: argparse.Namespace) -> dict[str, Any]:
    """Score what --only names, or everything: mAP of each."""
    products = open_products(args.data)
    task = task_of(products)
    precision: dict[str, float] = {}
    for method, budget in methods(args):
        if not args.only or f"{method}-{budget}" in args.only or method in args.only:
            scored = scores_of(args, products, task, method, budget)
            values = average_precisions(task, scored, plain_average_precision)
            precision[f"{method}-{budget}"] = float(values.mean())
    return {"queries": len(task.queries), "mAP": precision}


# ------------------------------------------------------------------------------------------ results

TITLES = {
    "mutual": "mutual nearest neighbours",
    "geometric": "geometric verification",
    "rrt": "RRT",
    "zero": "RRT, never trained on products",
}


def ensemble_weights(
    products: Products, task: Task, scored: Sequence[np.ndarray]
) -> list[tuple[float, float]]:
    """For each fold the (lambda, gamma) that is best on the other folds' products."""
    fold = products.fold[task.queries]
    chosen = []
    for test in range(FOLDS):
        others = np.flatnonzero(fold != test)
        banned = products.fold == test
        inner = task.only(others, banned)
        seen = [scored[i][~banned[task.order[i][: len(scored[i])]]] for i in others]
        figures = {
            (float(weight), gamma): average_precisions(
                inner, ensembled(inner, seen, float(weight), gamma), plain_average_precision
            ).mean()
            for weight in LAMBDAS
            for gamma in GAMMAS
        }
        chosen.append(max(figures, key=figures.__getitem__))
    return chosen


def run_table(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table and the intervals, and return them; write plot, CSV and JSON."""
    products = open_products(args.data)
    task = task_of(products)
    fold = products.fold[task.queries]
    average: dict[tuple[str, int], np.ndarray] = {}
    lines = ["method,locals,mAP,recall_at_1"]
    rows: list[dict[str, Any]] = []

    def add(title: str, budget: int, scored: Sequence[np.ndarray] | None) -> None:
        average[title, budget] = average_precisions(task, scored, plain_average_precision)
        mean, recall = float(average[title, budget].mean()), float(firsts(task, scored).mean())
        rows.append({"method": title, "locals": budget, "mAP": mean, "recall_at_1": recall})
        lines.append(f"{title},{budget},{mean:.4f},{recall:.2f}")
        print(lines[-1], flush=True)

    add("global", 0, None)
    add("perfect reranking", 0, perfect(task))
    for method, budget in methods(args):
        if args.only and method not in args.only and f"{method}-{budget}" not in args.only:
            continue
        scored = scores_of(args, products, task, method, budget)
        add(TITLES[method], budget, scored)
        if method == "rrt" and budget in RRT_BUDGETS["zero"]:
            weights = ensemble_weights(
                products, task, scores_of(args, products, task, "zero", budget)
            )
            print(f"    ensemble (lambda, gamma) a fold: {weights}")
            mixed = [
                ensembled(task.only(np.array([i])), [scored[i]], *weights[fold[i]])[0]
                for i in range(len(scored))
            ]
            add("RRT and global", budget, mixed)
    rrt, rival = TITLES["rrt"], TITLES["geometric"]
    intervals = {}
    for budget, method, other in (
        (500, rrt, 500),
        (128, rrt, 500),
        (128, "RRT and global", 500),
        (128, rrt, 128),
    ):
        if (method, budget) not in average or (rival, other) not in average:
            continue
        difference = average[method, budget] - average[rival, other]
        low, high = bootstrap(difference)
        compared, mean = f"{method} at {budget} - {rival} at {other}", float(difference.mean())
        intervals[compared] = [mean, low, high]
        print(f"{compared}: {mean:+.4f}, 95 % [{low:+.4f}, {high:+.4f}]")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    args.out.with_suffix(".json").write_text(
        json.dumps({"intervals": intervals, "recipe": recipe()}, indent=1) + "\n"
    )
    curves = [
        Curve(
            title,
            [(n, float(values.mean())) for (t, n), values in average.items() if t == title and n],
        )
        for title in dict.fromkeys(title for title, n in average if n)
    ]
    levels = {
        "global": float(average["global", 0].mean()),
        "perfect": float(average["perfect reranking", 0].mean()),
    }
    draw(args.out, "Products: 100 queries, 1,664 images, top 100 reranked", [("", curves, levels)])
    return {"rows": rows, "intervals": intervals}


def recipe() -> dict[str, object]:
    """What the folds were trained with."""
    return {
        "steps": STEPS,
        "lr": LEARNING_RATE,
        "warmup": WARMUP,
        "products_share": PRODUCTS_SHARE,
        "budget": vars(BUDGET),
        "lookalikes": LOOKALIKES,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("train", "score", "table"))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints and scores"
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fold", type=int, choices=range(FOLDS), default=0)
    parser.add_argument("--views", type=Path, help="work folder of rendered_views.py (train)")
    parser.add_argument(
        "--start",
        type=Path,
        default=Path(EMBEDDED_WEIGHTS),
        help="weights trained on rendered views",
    )
    parser.add_argument(
        "--only", nargs="*", help="methods (mutual, geometric, rrt, zero) or METHOD-LOCALS"
    )
    parser.add_argument("--out", type=Path, default=Path("products_quality.png"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = {"train": run_train, "score": run_score, "table": run_table}
    print_figures(stages[args.stage](args))


if __name__ == "__main__":
    main()
