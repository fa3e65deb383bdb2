"""Reranking rendered views of photographs that nothing was trained on, and the demo.

    python benchmarks/quality/rendered_quality.py score --views DIR --work DIR
        [--demo DEMO] [--only METHOD ...]
    python benchmarks/quality/rendered_quality.py table --views DIR --work DIR
        [--demo DEMO] --out PLOT.png

Tasks: mild, medium and hard (rendered_views.py, split `test`): the crops of QUERIES instances are
the queries, the views of all test instances at one level the gallery. --demo names a demo's output
folder (run_pipeline.sh demo), whose images are evaluated under the ROxford protocols Medium and
Hard.

The global top 100 is reranked; all methods score the same pairs from the same locals (the
extractor's defaults). Thresholds of the baselines and the ensemble's weight are chosen on the split
`validation`, for each number of locals, over its three levels together. mAP is that of ROxford
(trapezoids).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality import rendered_views
from benchmarks.quality.described import described
from benchmarks.quality.products_quality import GAMMAS, GEOMETRIC_GRID, LAMBDAS, MUTUAL_GRID
from benchmarks.quality.quality_plot import Curve, draw
from benchmarks.quality.rendered_views import SPLITS, TASK_KINDS, Views, entangled
from benchmarks.quality.retrieval_tasks import (
    Task,
    average_precisions,
    bootstrap,
    ensembled,
    make_task,
    perfect,
    scores,
)
from rrt_core.extractors import create as create_extractor
from rrt_core.metrics.revisited import PROTOCOLS, average_precision, positions_of
from rrt_core.rerankers import Locals, Reranker, create
from rrt_core.rerankers.rrt import EMBEDDED_WEIGHTS
from rrt_core.synthetic.levels import LEVELS
from schemas.ground_truth.ground_truth import load_ground_truth

QUERIES = 60  # a task
QUERIES_SEED = 77
BUDGETS = (32, 64, 128, 256)
RRT_BUDGETS = (64, 128)  # at 500 a pair takes ten times as long as at 64
ENSEMBLE_BUDGET = 128
METHODS = {
    "mutual": "mutual nearest neighbours",
    "geometric": "geometric verification",
    "rrt": "RRT",
}


def rop_average_precision(relevant: np.ndarray) -> float:
    """The average precision of ROxford's evaluation, of a complete ranking."""
    places = np.flatnonzero(relevant).astype(np.int64)
    return average_precision(places, len(places)) if len(places) else float("nan")


def level_tasks(work: Path, split: str) -> list[Task]:
    """One task a level: queries against that level's views.

    Views that are entangled with the query are left out.
    """
    views = rendered_views.load(work, split)
    images = [_stored(views, i) for i in range(len(views))]
    names = np.array([name for name, _, _ in TASK_KINDS])[views.kind]
    queries = np.flatnonzero(names == "query")
    queries = np.sort(np.random.default_rng(QUERIES_SEED).permutation(queries)[:QUERIES])
    tasks = []
    for level in LEVELS:
        gallery = np.flatnonzero(names == level)
        own = [views.instance[gallery] == views.instance[q] for q in queries]
        galleries = [
            gallery[mine | ~entangled(views, int(q), gallery)]
            for q, mine in zip(queries, own, strict=True)
        ]
        answered = np.array([bool(mine.any()) for mine in own])

        def relevant(query: int, others: np.ndarray) -> np.ndarray:
            return np.asarray(views.instance[others] == views.instance[query])

        chosen = [gallery for gallery, yes in zip(galleries, answered, strict=True) if yes]
        tasks.append(make_task(f"{split}-{level}", images, queries[answered], chosen, relevant))
    return tasks


def _stored(views: Views, i: int) -> Locals:
    n = int(views.count[i])
    falling = np.arange(n, 0, -1, dtype=np.float32)
    # The views keep rows of the scale embedding; DELG's scales at those rows give them back.
    scales = (2.0, 1.4142135, 1.0, 0.70710677, 0.5, 0.35355338, 0.25)
    local = views.local[i, :n].astype(np.float32)
    return Locals(views.descriptor[i], local, views.xy[i, :n], views.rows[i, :n], falling, scales)


def demo_tasks(folder: Path, work: Path) -> list[Task]:
    """Medium and Hard of a demo's images, described with the extractor's defaults."""
    root = next(path.parent for path in sorted(folder.rglob("ground_truth.json")))
    truth = load_ground_truth(str(root / "ground_truth.json"))
    extractor = create_extractor("efficientnet")
    files = [root / "images" / name for name in truth.gallery]
    queries = [(root / "images" / query.name, query.box) for query in truth.queries]
    images = [
        Locals(d.global_descriptor, d.descriptors, d.xy, d.scale, d.strength, extractor.scales)
        for d in described(extractor, [*((path, None) for path in files), *queries], work)
    ]
    tasks = []
    for protocol in ("medium", "hard"):
        rules = PROTOCOLS[protocol]
        positive = [set(positions_of(query, rules.positive).tolist()) for query in truth.queries]
        galleries = [
            np.setdiff1d(np.arange(len(files)), positions_of(query, rules.junk))
            for query in truth.queries
        ]
        numbers = np.arange(len(files), len(images))

        def relevant(
            query: int, others: np.ndarray, positive: list[set[int]] = positive
        ) -> np.ndarray:
            return np.array([int(i) in positive[query - len(files)] for i in others])

        tasks.append(make_task(f"demo-{protocol}", images, numbers, galleries, relevant))
    return tasks


def grid_of(method: str) -> list[dict[str, float]]:
    """What is tried for a method."""
    return {"mutual": MUTUAL_GRID, "geometric": GEOMETRIC_GRID, "rrt": [{}]}[method]


def reranker(
    args: argparse.Namespace, method: str, budget: int, options: dict[str, float]
) -> Reranker:
    """A method at a number of locals a side."""
    name = {"mutual": "mutual_nn", "geometric": "geometric", "rrt": "rrt"}[method]
    given: dict[str, object] = {"query_tokens": budget, "gallery_tokens": budget, **options}
    if method == "rrt":
        given["weights"] = str(args.weights)
    return create(name, **given)


def mean_of(tasks: Sequence[Task], scored: Sequence[Sequence[np.ndarray]]) -> float:
    """Mean over tasks of mAP."""
    means = [
        average_precisions(task, s, rop_average_precision).mean()
        for task, s in zip(tasks, scored, strict=True)
    ]
    return float(np.mean(means))


def chosen_options(
    args: argparse.Namespace, validation: Sequence[Task], method: str, budget: int
) -> dict[str, float]:
    """The options that are best on the validation split."""
    grid = grid_of(method)
    if len(grid) == 1:
        return grid[0]
    tried = [
        mean_of(
            validation,
            [scores(task, reranker(args, method, budget, o), args.work) for task in validation],
        )
        for o in grid
    ]
    return grid[int(np.argmax(tried))]


def ensemble_weights(
    args: argparse.Namespace, validation: Sequence[Task], budget: int
) -> tuple[float, float]:
    """(lambda, gamma) that is best on the validation split."""
    scored = [scores(task, reranker(args, "rrt", budget, {}), args.work) for task in validation]
    figures = {
        (float(weight), gamma): mean_of(
            validation,
            [
                ensembled(task, s, float(weight), gamma)
                for task, s in zip(validation, scored, strict=True)
            ],
        )
        for weight in LAMBDAS
        for gamma in GAMMAS
    }
    return max(figures, key=figures.__getitem__)


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(method, number of locals) that --only names, or all."""
    for budget in BUDGETS:
        for method in METHODS:
            if method == "rrt" and budget not in RRT_BUDGETS:
                continue
            if not args.only or method in args.only or f"{method}-{budget}" in args.only:
                yield method, budget


def all_tasks(args: argparse.Namespace) -> list[Task]:
    """The tasks that are reported."""
    return level_tasks(args.views, "test") + (demo_tasks(args.demo, args.work) if args.demo else [])


def run_score(args: argparse.Namespace) -> dict[str, Any]:
    """Score all that --only names: mAP of each, by task."""
    validation, tasks = level_tasks(args.views, "validation"), all_tasks(args)
    precision: dict[str, dict[str, float]] = {}
    for method, budget in wanted(args):
        options = chosen_options(args, validation, method, budget)
        weighted = validation if method == "rrt" and budget == ENSEMBLE_BUDGET else []
        for task in [*tasks, *weighted]:
            scored = scores(task, reranker(args, method, budget, options), args.work)
            values = average_precisions(task, scored, rop_average_precision)
            precision.setdefault(f"{method}-{budget}", {})[task.name] = float(values.mean())
    return {"mAP": precision}


def run_table(args: argparse.Namespace) -> dict[str, Any]:
    """Print mAP a task and the intervals, and return them; write CSV, JSON and plot."""
    validation, tasks = level_tasks(args.views, "validation"), all_tasks(args)
    names = [task.name.replace("test-", "") for task in tasks]
    results: dict[tuple[str, int], list[np.ndarray]] = {}
    lines = ["method,locals," + ",".join(names)]

    def add(title: str, budget: int, scored: Sequence[Sequence[np.ndarray] | None]) -> None:
        results[title, budget] = [
            average_precisions(task, s, rop_average_precision)
            for task, s in zip(tasks, scored, strict=True)
        ]
        cells = [f"{100 * values.mean():.2f}" for values in results[title, budget]]
        lines.append(f"{title},{budget}," + ",".join(cells))
        print(lines[-1], flush=True)

    print(f"{lines[0]}      seeds {rendered_views.SEEDS}, {len(SPLITS['test'])} test photographs")
    add("global", 0, [None] * len(tasks))
    add("perfect reranking", 0, [perfect(task) for task in tasks])
    for method, budget in wanted(args):
        options = chosen_options(args, validation, method, budget)
        scored = [
            scores(task, reranker(args, method, budget, options), args.work) for task in tasks
        ]
        if options:
            print(f"    {method} at {budget}: {options}")
        add(METHODS[method], budget, scored)
        if method == "rrt" and budget == ENSEMBLE_BUDGET:
            weights = ensemble_weights(args, validation, budget)
            print(f"    ensemble (lambda, gamma): {weights}")
            add(
                "RRT and global",
                budget,
                [ensembled(t, s, *weights) for t, s in zip(tasks, scored, strict=True)],
            )
    intervals = {}
    for rival in (("global", 0), *((title, BUDGETS[-1]) for title in list(METHODS.values())[:2])):
        for budget in BUDGETS:
            if ("RRT", budget) not in results or rival not in results:
                continue
            for name, ours, theirs in zip(
                names, results["RRT", budget], results[rival], strict=True
            ):
                low, high = bootstrap(ours - theirs)
                key = f"RRT at {budget} - {rival[0]} at {rival[1]}, {name}"
                intervals[key] = [float((ours - theirs).mean()), low, high]
                print(f"{key}: {(ours - theirs).mean():+.4f}, 95 % [{low:+.4f}, {high:+.4f}]")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    args.out.with_suffix(".json").write_text(json.dumps(intervals, indent=1) + "\n")
    panels = []
    for place, name in enumerate(names):
        curves = [
            Curve(
                title,
                [
                    (n, float(values[place].mean()))
                    for (t, n), values in results.items()
                    if t == title and n
                ],
            )
            for title in dict.fromkeys(title for title, n in results if n)
        ]
        levels = {
            title: float(results[title, 0][place].mean())
            for title in ("global", "perfect reranking")
        }
        panels.append((name, curves, levels))
    draw(args.out, "Rendered views never trained on, top 100 reranked", panels)

    rows = [
        {
            "method": title,
            "locals": budget,
            "mAP": {name: float(each.mean()) for name, each in zip(names, values, strict=True)},
        }
        for (title, budget), values in results.items()
    ]
    return {"rows": rows, "intervals": intervals}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("score", "table"))
    parser.add_argument(
        "--views", type=Path, required=True, help="work folder of rendered_views.py"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for scores")
    parser.add_argument("--demo", type=Path, help="output folder of run_pipeline.sh demo")
    parser.add_argument("--weights", type=Path, default=Path(EMBEDDED_WEIGHTS))
    parser.add_argument(
        "--only", nargs="*", help="methods (mutual, geometric, rrt) or METHOD-LOCALS"
    )
    parser.add_argument("--out", type=Path, default=Path("rendered_quality.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    stages = {"score": run_score, "table": run_table}
    print_figures(stages[args.stage](args))


if __name__ == "__main__":
    main()
