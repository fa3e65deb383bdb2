"""What accuracy the transformer's cheaper settings cost, and what they save: one table, one plot.

    python benchmarks/quality/knobs.py --out DIR
        [--weights FILE [--fold N]] [--queries 40] [--only KNOB ...]

Photographs of $RRT_TEST_DATA/products, as products_quality.py takes them: queries `val`, gallery
`train` and photos/, the default extractor with 500 locals, the global top 100 reranked. Each knob
is turned alone, the others stand at the exact setting (500+500 locals, float32 everywhere):

    tokens      strongest locals used of the query + of a gallery image
    storage     how the store keeps locals: decoded as a store's reader does
    cascade     a cheap reranker on all 100, 500+500 on the best 20 of each query
    precision   the network's arithmetic; left out where the reranker has no such option
    baseline    mutual nearest neighbours and geometric verification at their defaults, to compare
                with

All settings score one query before the next is begun, so that a machine whose speed drifts treats
them alike. Rates are pairs of the shortlist a second of processor time (CPU, --threads of them
together) or of wall time (another device). 40 of the 100 queries, evenly spread, take about an hour
of one core; --queries 100 takes all. Weights that were trained on some of the products must be
given with --fold: then only queries of that fold (products sorted by name, position mod 3) are
used. What is scored is kept in DIR/scores.jsonl: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality.products_quality import open_products, task_of
from benchmarks.quality.retrieval_tasks import (
    SHORTLIST,
    Task,
    average_precisions,
    firsts,
    plain_average_precision,
)
from rrt_core.rerankers import Locals, Reranker, create
from schemas.errors import UserError
from schemas.local_descriptors import bytes_a_local, decoded, encoded

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
TOKENS = ((500, 500), (500, 100), (100, 500), (500, 50), (128, 128), (64, 64))
EXACT = "500+500"
KEEP = 20
FEW = {"query_tokens": 64, "gallery_tokens": 64}


@dataclass
class Setting:
    """A row of the table: one knob turned."""

    knob: str
    label: str
    reranker: Reranker
    storage: str = "float32"
    # A query each, of the shortlist in global order.
    logits: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def identity(self) -> str:
        """Of all that changes the logits."""
        made_by = [
            self.reranker.name,
            self.reranker.revision,
            self.reranker.weights_sha256,
            self.reranker.config,
        ]
        return hashlib.sha256(
            json.dumps([made_by, self.storage], sort_keys=True).encode()
        ).hexdigest()[:16]


def settings(weights: str | None, device: str) -> list[Setting]:
    """All rows; the exact one first."""
    model: dict[str, Any] = {"weights": weights, "device": device}

    def rrt(query: int = 500, gallery: int = 500, **options: Any) -> Reranker:
        return create("rrt", query_tokens=query, gallery_tokens=gallery, **model, **options)

    def cascade(first: str, options: dict[str, Any]) -> Reranker:
        return create(
            "cascade", keep=KEEP, first=first, first_options=options, second_options=model
        )

    rows = [
        Setting("tokens", f"{query}+{gallery}", rrt(query, gallery)) for query, gallery in TOKENS
    ]
    rows += [Setting("storage", kind, rows[0].reranker, kind) for kind in ("float16", "int8")]
    rows.append(Setting("storage", "int8, 128+128", rrt(128, 128), "int8"))
    rows.append(Setting("cascade", f"64+64, best {KEEP}", cascade("rrt", {**model, **FEW})))
    rows.append(Setting("cascade", f"mutual_nn, best {KEEP}", cascade("mutual_nn", {})))
    try:
        rows.append(Setting("precision", "bfloat16", rrt(precision="bfloat16")))
        rows.append(Setting("precision", "bfloat16, 128+128", rrt(128, 128, precision="bfloat16")))
    except UserError as error:
        print(f"precision is left out: {error}")
    rows += [Setting("baseline", name, create(name)) for name in ("mutual_nn", "geometric")]
    return rows


def stored(image: Locals, kind: str) -> Locals:
    """An image as a store of this dtype gives it back."""
    return dataclasses.replace(image, descriptors=decoded(encoded(image.descriptors, kind)))


def score(rows: Sequence[Setting], task: Task, kept: Path, device: str) -> None:
    """Fill in the logits and seconds of all rows, query by query."""
    known: dict[tuple[str, int], dict[str, Any]] = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut
            known[entry["setting"], entry["query"]] = entry
    clock = time.process_time if device == "cpu" else time.perf_counter
    warm: set[str] = set()
    begun = time.monotonic()
    for number, (query, order) in enumerate(zip(task.queries, task.order, strict=True)):
        forms: dict[str, tuple[Locals, list[Locals]]] = {}
        for row in rows:
            entry = known.get((row.identity, int(query)))
            if entry is None:
                if row.storage not in forms:
                    candidates = [stored(task.images[i], row.storage) for i in order[:SHORTLIST]]
                    forms[row.storage] = stored(task.images[query], row.storage), candidates
                image, candidates = forms[row.storage]
                if row.identity not in warm:
                    row.reranker.score_query(image, candidates[:1])
                    warm.add(row.identity)
                started = clock()
                logits = row.reranker.score_query(image, candidates).logit
                entry = {"setting": row.identity, "query": int(query), "seconds": clock() - started}
                entry["logits"] = [float(logit) for logit in logits]
                with kept.open("a") as file:
                    file.write("\n" + json.dumps(entry))
            row.logits.append(np.array(entry["logits"], np.float32))
            row.seconds += entry["seconds"]
        print(
            f"{number + 1} of {len(task.queries)} queries, {time.monotonic() - begun:.0f} s",
            flush=True,
        )


def table(rows: Sequence[Setting], task: Task) -> list[dict[str, Any]]:
    """A line a row, the global order first."""
    exact, width = rows[0], task.images[0].descriptors.shape[1]
    before = average_precisions(task, None, plain_average_precision)
    lines = [
        {
            "knob": "global",
            "setting": "",
            "mAP": before.mean(),
            "recall_1": firsts(task, None).mean(),
        }
    ]
    for row in rows:
        precisions = average_precisions(task, row.logits, plain_average_precision)
        pairs = sum(map(len, row.logits))
        tokens = int(row.reranker.config["gallery_tokens"])
        line = {"knob": row.knob, "setting": row.label, "mAP": precisions.mean()}
        line["recall_1"] = firsts(task, row.logits).mean()
        line["pairs_a_second"] = pairs / row.seconds
        line["times_faster"] = exact.seconds / row.seconds
        line["gallery_kB"] = tokens * bytes_a_local(width, row.storage) / 1e3
        if row.knob in ("storage", "precision") and tokens == 500:
            pieces = zip(row.logits, exact.logits, strict=True)
            line["logit_error"] = max(float(np.abs(ours - theirs).max()) for ours, theirs in pieces)
        lines.append(line)
    return lines


COLUMNS = (
    "knob",
    "setting",
    "mAP",
    "recall_1",
    "pairs_a_second",
    "times_faster",
    "gallery_kB",
    "logit_error",
)
FORMATS = {
    "mAP": ".3f",
    "recall_1": ".2f",
    "pairs_a_second": ".1f",
    "times_faster": ".1f",
    "gallery_kB": ".1f",
}


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Print the table as Markdown."""
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for line in lines:
        cells = [
            format(line[name], FORMATS.get(name, ".2g" if name == "logit_error" else ""))
            if name in line
            else ""
            for name in COLUMNS
        ]
        print("| " + " | ".join(cells) + " |")


PANELS = (
    ("pairs_a_second", "pairs a second", ("tokens", "cascade", "precision", "baseline")),
    ("gallery_kB", "kB of locals read of a gallery image", ("tokens", "storage")),
)
MARKERS = {"tokens": "o", "storage": "s", "cascade": "D", "precision": "^", "baseline": "x"}


def draw(path: Path, lines: Sequence[dict[str, Any]], title: str) -> None:
    """mAP against time, and against what must be stored and read; one marker a knob."""
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 5.2), sharey=True)
    for axis, (column, name, knobs) in zip(axes, PANELS, strict=True):
        for knob in knobs:
            chosen = [line for line in lines if line["knob"] == knob]
            if not chosen:
                continue
            costs, precisions = (
                [line[column] for line in chosen],
                [100 * line["mAP"] for line in chosen],
            )
            color = f"C{list(MARKERS).index(knob)}"
            axis.scatter(costs, precisions, marker=MARKERS[knob], label=knob, s=46, color=color)
            for number, (line, cost, precision) in enumerate(
                zip(chosen, costs, precisions, strict=True)
            ):
                offset = (6, 5 if number % 2 == 0 else -11)
                axis.annotate(
                    line["setting"],
                    (cost, precision),
                    xytext=offset,
                    textcoords="offset points",
                    fontsize=8,
                )
        axis.axhline(100 * lines[0]["mAP"], linestyle=":", color="grey", label="global order")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
        axis.margins(x=0.18, y=0.12)
        axis.legend(loc="best", fontsize=8)
    axes[0].set_ylabel("mAP, per cent")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights of the transformer; the embedded ones where absent",
    )
    parser.add_argument(
        "--fold", type=int, choices=(0, 1, 2), help="take only queries of this fold's products"
    )
    parser.add_argument(
        "--queries", type=int, default=40, metavar="N", help="how many, evenly spread (default: 40)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="KNOB", help="these knobs beside the exact setting"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = settings(arguments.weights, arguments.device)
    except UserError as error:
        raise SystemExit(f"knobs: {error}") from None
    rows = rows[:1] + [row for row in rows[1:] if not arguments.only or row.knob in arguments.only]

    products = open_products(arguments.data)
    task = task_of(products)
    possible = np.arange(len(task.queries))
    if arguments.fold is not None:
        possible = np.flatnonzero(products.fold[task.queries] == arguments.fold)
    places = (
        np.linspace(0, len(possible) - 1, min(arguments.queries, len(possible))).round().astype(int)
    )
    task = task.only(possible[places])
    score(rows, task, arguments.out / "scores.jsonl", arguments.device)

    lines = table(rows, task)
    weights = rows[0].reranker.weights_sha256[:12]
    title = (
        f"{len(task.queries)} queries of {len(possible)}, the top {SHORTLIST} reranked, weights "
        f"{weights}"
    )
    print(f"{title}, {arguments.device}, {arguments.threads} thread(s)\n")
    show(lines)
    with (arguments.out / "knobs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    draw(arguments.out / "knobs.png", lines, title)
    print_figures({"queries": len(task.queries), "weights_sha256": weights, "settings": lines})


if __name__ == "__main__":
    main()
