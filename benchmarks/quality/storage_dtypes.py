"""What a descriptor's form on disk costs in accuracy, and its bytes.

    python benchmarks/quality/storage_dtypes.py --out DIR
        [--queries 30] [--locals 128 500] [--only RERANKER ...]

Locals in float32, float16, int8 and binary. Photographs of $RRT_TEST_DATA/products as
products_quality.py takes them: 100 queries, 1,664 gallery images, the default extractor, the global
top 100 reranked at 128 and 500 locals. mutual_nn and geometric take all queries, rrt (the embedded
weights, which saw no product) some, evenly spread: a pair at 500 locals takes 80 ms of a core. Each
descriptor is stored and read again as a store does it; the rotation of binary is learnt from 64
gallery images, none of which is left out of the gallery, as `extract --local-dtype binary` does it.

    binary, float16 queries   only the gallery is binary: a store of queries is small
    moved threshold           thresholds of the baselines moved to where the same angle lies after
                              coding: binary makes all similarities smaller (it does not pay:
                              docs/storage.md)

`change` is against float32 on the same queries, with the 95 % interval of a bootstrap over them.
What is scored is kept in DIR/scores.jsonl: a killed run goes on where it was.
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
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality.products_quality import open_products, task_of
from benchmarks.quality.retrieval_tasks import (
    SHORTLIST,
    Task,
    average_precisions,
    bootstrap,
    firsts,
    plain_average_precision,
)
from rrt_core.binary import learn_rotation
from rrt_core.rerankers import Locals, Reranker, create
from schemas.local_descriptors import bytes_a_local, decoded, encoded

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
LOCALS = (128, 500)
SAMPLE = 64  # images that the rotation is learnt from
R1M = 1_001_001  # images of revisitop1m.txt
FORMS = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("int8", "int8"),
    ("binary", "binary"),
    ("binary", "float16"),
)
RRT_FORMS = (FORMS[0], *FORMS[2:])  # float16 moves a logit by 0.003 at most (knobs.py)
THRESHOLD = 0.5  # the cosine that both baselines require of a couple by default


@dataclass
class Row:
    """A line of the table."""

    method: str
    tokens: int
    gallery: str
    query: str
    reranker: Reranker
    moved: bool = False
    logits: list[np.ndarray] = field(default_factory=list)

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
            json.dumps([made_by, self.gallery, self.query], sort_keys=True).encode()
        ).hexdigest()[:16]

    @property
    def form(self) -> str:
        """How the descriptors are kept."""
        name = (
            self.gallery if self.gallery == self.query else f"{self.gallery}, {self.query} queries"
        )
        return f"{name}, moved threshold" if self.moved else name


def rows_of(method: str, budgets: Sequence[int]) -> list[Row]:
    """All lines of a reranker."""
    rows = []
    for tokens in budgets:
        options: dict[str, Any] = {"query_tokens": tokens, "gallery_tokens": tokens}
        for gallery, query in RRT_FORMS if method == "rrt" else FORMS:
            rows.append(Row(method, tokens, gallery, query, create(method, **options)))
            if gallery == "binary" and method != "rrt":
                cosine = moved(THRESHOLD, query)
                threshold = (
                    {"min_similarity": cosine}
                    if method == "mutual_nn"
                    else {"max_distance": (2 - 2 * cosine) ** 0.5}
                )
                rows.append(
                    Row(
                        method, tokens, gallery, query, create(method, **options, **threshold), True
                    )
                )
    return rows


def moved(cosine: float, query: str) -> float:
    """Where a similarity lies after both sides are coded, or the gallery's alone.

    It is the mean over rotations.
    """
    both = 1 - 2 / np.pi * np.arccos(cosine)
    return float(round(both if query == "binary" else np.sqrt(2 / np.pi) * cosine, 3))


def stored(image: Locals, kind: str, rotation: np.ndarray) -> Locals:
    """An image as a store of this dtype gives it back."""
    return dataclasses.replace(
        image, descriptors=decoded(encoded(image.descriptors, kind, rotation), rotation)
    )


def score(rows: Sequence[Row], task: Task, rotation: np.ndarray, kept: Path) -> None:
    """Fill in the logits of rows, query by query; what stands in `kept` is not scored again."""
    known: dict[tuple[str, int], list[float]] = {}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut
        known[entry["row"], entry["query"]] = entry["logits"]
    begun = time.monotonic()
    for number, (query, order) in enumerate(zip(task.queries, task.order, strict=True)):
        galleries: dict[str, list[Locals]] = {}
        for row in rows:
            logits = known.get((row.identity, int(query)))
            if logits is None:
                if row.gallery not in galleries:
                    galleries[row.gallery] = [
                        stored(task.images[i], row.gallery, rotation) for i in order[:SHORTLIST]
                    ]
                image = stored(task.images[query], row.query, rotation)
                logits = [
                    float(value)
                    for value in row.reranker.score_query(image, galleries[row.gallery]).logit
                ]
                with kept.open("a") as file:
                    file.write(
                        "\n"
                        + json.dumps({"row": row.identity, "query": int(query), "logits": logits})
                    )
            row.logits.append(np.array(logits, np.float32))
        if (number + 1) % 10 == 0:
            spent = time.monotonic() - begun
            print(
                f"{rows[0].method}: {number + 1} of {len(task.queries)}, {spent:.0f} s", flush=True
            )


def lines_of(rows: Sequence[Row], task: Task) -> list[dict[str, Any]]:
    """The figures of rows that were scored on the same queries."""
    width = task.images[0].descriptors.shape[1]
    exact: dict[int, np.ndarray] = {}
    lines = []
    for row in rows:
        precisions = average_precisions(task, row.logits, plain_average_precision)
        exact.setdefault(row.tokens, precisions)
        low, high = bootstrap(precisions - exact[row.tokens])
        line = {
            "method": row.method,
            "queries": len(task.queries),
            "locals": row.tokens,
            "stored": row.form,
        }
        line |= {"mAP": precisions.mean(), "recall_1": firsts(task, row.logits).mean()}
        if row.form != "float32":
            line["change"] = (
                f"{(precisions - exact[row.tokens]).mean():+.3f} ({low:+.3f} .. {high:+.3f})"
            )
        line["kB_an_image"] = row.tokens * bytes_a_local(width, row.gallery) / 1e3
        line["GB_R1M"] = R1M * row.tokens * bytes_a_local(width, row.gallery) / 1e9
        lines.append(line)
    return lines


def global_lines(task: Task) -> list[dict[str, Any]]:
    """The global order itself, with globals as they are stored."""
    descriptors = np.stack([image.global_descriptor for image in task.images])
    lines, exact = [], np.zeros(0)
    for kind in ("float32", "float16"):
        kept = descriptors.astype(kind).astype(np.float32)
        precisions = []
        for query, order, relevant in zip(task.queries, task.order, task.relevant, strict=True):
            rank = np.argsort(-(kept[order] @ kept[query]), kind="stable")
            precisions.append(plain_average_precision(relevant[rank]))
        values = np.array(precisions)
        exact = values if kind == "float32" else exact
        line = {"method": "global", "queries": len(values), "stored": kind, "mAP": values.mean()}
        if kind != "float32":
            low, high = bootstrap(values - exact)
            line["change"] = f"{(values - exact).mean():+.4f} ({low:+.4f} .. {high:+.4f})"
        size = descriptors.shape[1] * np.dtype(kind).itemsize
        lines.append({**line, "kB_an_image": size / 1e3, "GB_R1M": R1M * size / 1e9})
    return lines


COLUMNS = (
    "method",
    "queries",
    "locals",
    "stored",
    "mAP",
    "change",
    "recall_1",
    "kB_an_image",
    "GB_R1M",
)
FORMATS = {"mAP": ".3f", "recall_1": ".2f", "kB_an_image": ".1f", "GB_R1M": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--queries", type=int, default=30, metavar="N", help="of rrt (default: 30)")
    parser.add_argument(
        "--locals", nargs="+", type=int, default=LOCALS, metavar="N", help="default: 128 500"
    )
    parser.add_argument(
        "--only", nargs="+", default=["mutual_nn", "geometric", "rrt"], metavar="RERANKER"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)

    products = open_products(arguments.data)
    gallery = np.flatnonzero(~products.query)
    sample = gallery[np.linspace(0, len(gallery) - 1, SAMPLE).round().astype(int)]
    rotation = learn_rotation(np.concatenate([products.images[i].descriptors for i in sample]))
    whole = task_of(products)
    few = whole.only(np.linspace(0, len(whole.queries) - 1, arguments.queries).round().astype(int))
    lines = global_lines(whole)
    for method in arguments.only:
        task = few if method == "rrt" else whole
        rows = rows_of(method, arguments.locals)
        score(rows, task, rotation, arguments.out / "scores.jsonl")
        lines += lines_of(rows, task)

    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for line in lines:
        cells = [
            format(line[name], FORMATS.get(name, "")) if name in line else "" for name in COLUMNS
        ]
        print("| " + " | ".join(cells) + " |")
    with (arguments.out / "storage_dtypes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    print_figures({"rows": lines})


if __name__ == "__main__":
    main()
