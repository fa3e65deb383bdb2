"""How far mAP over a gallery of a million rows is from revisitop's own compute_map, at most.

    python benchmarks/parity/million_gallery.py --reference CHECKOUT --ground-truth FILE
        --work DIR [--rows 1007323] [--dimension 64] [--kept 1000]

Descriptors are drawn here, float16: a centre for each landmark, its queries and labelled images
about it, the others anywhere, so that many labelled images stand far beyond the kept places. The
stages are the project's own, each a process: import, index (IVF), search, evaluate. What they give
is compared with compute_map over the order of all rows, which numpy makes of the stored float16
numbers by itself.

    whole      the project's evaluate on that very order
    exact      search as it is by default (for 70 queries all globals are scored), and evaluate:
               lists of --kept places, continued with labelled/
    index      the same with --no-exact: what the index misses comes after its list
    cut        the lists of `exact` alone, as other tools evaluate them
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.parity.revisitop_parity import reference
from rrt_core.metrics import revisited as metrics
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, load_ground_truth

AT_ONCE = 65_536  # rows
COSINES = {"easy": (0.5, 0.95), "hard": (0.1, 0.6), "junk": (0.2, 0.8)}  # to the landmark's centre


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def beside(centre: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """A vector of length 1 at an angle of a centre."""
    away = rng.normal(size=centre.shape)
    away = unit(away - (away @ centre) * centre)
    return cosine * centre + np.sqrt(1 - cosine**2) * away


def draw(
    truth: GroundTruth, rows: int, dimension: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gallery float16 [rows, D], position in the truth's gallery of each row or -1, queries."""
    rng = np.random.default_rng(seed)
    gallery = np.zeros((rows, dimension), np.float16)
    for first in range(0, rows, AT_ONCE):
        some = rng.normal(size=(min(AT_ONCE, rows - first), dimension)).astype(np.float32)
        gallery[first : first + AT_ONCE] = unit(some)

    place_of = rng.permutation(rows)[: len(truth.gallery)]  # they lie all over the gallery
    positions = np.full(rows, -1)
    positions[place_of] = np.arange(len(truth.gallery))

    centres: dict[tuple[int, ...], np.ndarray] = {}  # the queries of a landmark share their lists
    queries, drawn = np.zeros((len(truth.queries), dimension), np.float16), set[int]()
    for number, query in enumerate(truth.queries):
        key = tuple(sorted((*query.easy, *query.hard)))
        centre = centres.setdefault(key, unit(rng.normal(size=dimension)))
        queries[number] = beside(centre, rng.uniform(0.7, 0.95), rng)
        for label, (least, most) in COSINES.items():
            for position in set(getattr(query, label)) - drawn:
                drawn.add(position)
                gallery[place_of[position]] = beside(centre, rng.uniform(least, most), rng)
    return gallery, positions, queries


def whole_order(
    gallery: np.ndarray, names: list[str], positions: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """Positions int32 [rows, queries] in the order of score, then record id; a row without a
    position has a number of its own beyond the truth's gallery.
    """
    scores = np.zeros((len(queries), len(gallery)), np.float32)
    for first in range(0, len(gallery), AT_ONCE):
        some = gallery[first : first + AT_ONCE].astype(np.float64)
        scores[:, first : first + AT_ONCE] = queries.astype(np.float64) @ some.T
    by_name = np.argsort(np.array([name.encode() for name in names]), kind="stable")
    numbers = np.where(positions < 0, np.arange(len(gallery)) + 10_000_000, positions)
    ranks = np.zeros((len(gallery), len(queries)), np.int32, order="F")
    for number, each in enumerate(scores):
        order = by_name[np.argsort(-each[by_name], kind="stable")]
        ranks[:, number] = numbers[order]
    return ranks


def run(*arguments: object) -> float:
    """Run a command of the project; seconds."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - begun, 1)


def evaluated(folder: Path) -> dict[str, dict[str, float]]:
    record = json.loads((folder / "evaluation/metrics.json").read_text())
    return dict(record["rankings"]["global"])


def lists_of(folder: Path, truth: GroundTruth) -> list[np.ndarray]:
    """The positions of a run's lists alone, -1 for distractors."""
    import pyarrow.parquet as pq

    positions = {f"g/{name}.jpg": number for number, name in enumerate(truth.gallery)}
    (file,) = (folder / "shortlist").glob("part-00000.*.parquet")
    rows = pq.read_table(file, columns=["query_id", "record_id"]).to_pydict()
    lists: dict[str, list[int]] = {}
    for query, record in zip(rows["query_id"], rows["record_id"], strict=True):
        lists.setdefault(query, []).append(positions.get(record, -1))
    known = truth.query_positions(lists)
    return [np.array(lists[name]) for name in sorted(known, key=known.__getitem__)]


def largest(
    ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Of mAP, and of mP@k, the largest difference in any protocol."""
    differences = {"mAP": 0.0, "mP@k": 0.0}
    for protocol, values in theirs.items():
        for name, value in values.items():
            what = name if name == "mAP" else "mP@k"
            differences[what] = max(differences[what], abs(ours[protocol][name] - value))
    return differences


def without_boxes(truth: GroundTruth) -> GroundTruth:
    """The same truth: descriptors that are drawn have no boxes."""
    queries = (
        QueryTruth(query.name, None, query.easy, query.hard, query.junk) for query in truth.queries
    )
    return GroundTruth(truth.name, truth.gallery, tuple(queries))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--ground-truth", required=True, metavar="FILE")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rows", type=int, default=1_007_323)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--kept", type=int, default=1_000)
    options = parser.parse_args()

    compute_map = reference(options.reference).compute_map
    truth = without_boxes(load_ground_truth(options.ground_truth))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    gallery, positions, queries = draw(truth, options.rows, options.dimension)
    names = [
        f"{truth.gallery[position]}.jpg" if position >= 0 else f"r1m/{row:07}.jpg"
        for row, position in enumerate(positions)
    ]

    seconds: dict[str, float] = {}
    asked = [f"{query.name}.jpg" for query in truth.queries]
    for name, rows, listed in (("g", gallery, names), ("q", queries, asked)):
        np.save(work / f"{name}.npy", rows)
        (work / f"{name}.txt").write_text("".join(f"{one}\n" for one in listed))
        of = ("npy", work / f"{name}.npy", "--list", work / f"{name}.txt", "--source", name)
        store = ("--out", work / name, "--global-dtype", "float16")
        seconds[f"import {name}"] = run("import", *of, *store)
        os.remove(work / f"{name}.npy")
    of = ("--stores", work / "g", "--out", work / "index")
    seconds["index"] = run("index", *of, "--key", "IVF1024,SQ8")

    given = ("--ground-truth", options.ground_truth)
    for name, how in (("exact", ()), ("index", ("--no-exact",))):
        of = ("--queries", work / "q", "--index", work / "index", "--out", work / name)
        seconds[f"search {name}"] = run("search", *of, *given, "--k", options.kept, *how)
        seconds[f"evaluate {name}"] = run("evaluate", "--out", work / name, *given)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6

    ranks = whole_order(gallery, [f"g/{name}" for name in names], positions, queries)
    theirs, whole, cut = {}, {}, {}
    beyond = {}
    for protocol, rule in metrics.PROTOCOLS.items():
        lists = [
            [metrics.positions_of(query, names) for names in (rule.positive, rule.junk)]
            for query in truth.queries
        ]
        gnd = [{"ok": positive, "junk": junk} for positive, junk in lists]
        value, _, precisions, _ = compute_map(ranks, gnd, list(metrics.KAPPAS))
        kappas = (f"mP@{kappa}" for kappa in metrics.KAPPAS)
        theirs[protocol] = {"mAP": value, **dict(zip(kappas, precisions, strict=True))}
        whole[protocol] = metrics.evaluate(list(ranks.T), truth.queries, protocol).means
        found = metrics.evaluate(lists_of(work / "exact", truth), truth.queries, protocol)
        cut[protocol] = found.means
        beyond[protocol] = int((found.positives - found.retrieved).sum())

    differences = {
        "whole": largest(whole, theirs),
        "exact": largest(evaluated(work / "exact"), theirs),
        "index": largest(evaluated(work / "index"), theirs),
        "cut": largest(cut, theirs),
    }
    print_figures(
        {
            "rows": options.rows,
            "dimension": options.dimension,
            "kept": options.kept,
            "mAP": {protocol: values["mAP"] for protocol, values in theirs.items()},
            "positives_beyond_the_lists": beyond,
            "largest_difference": differences,
            "seconds": seconds,
            "largest_process_gb": peak,
        }
    )


if __name__ == "__main__":
    main()
