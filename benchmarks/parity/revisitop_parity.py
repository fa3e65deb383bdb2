"""How far `rrt_core.metrics` is from revisitop's own evaluate.py, at most, over many trials.

    python benchmarks/parity/revisitop_parity.py --reference CHECKOUT
        [--ground-truth FILE ...] [--trials 200]

A trial evaluates a random ranking of each query of a ground-truth file under Easy, Medium and Hard;
every other trial is adversarial: junk first, positives last, or both mixed in front. Without
ground-truth files a synthetic one of 5,000 images is used.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.metrics import revisited as metrics
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, load_ground_truth


def reference(checkout: Path) -> ModuleType:
    """The module python/evaluate.py of a revisitop checkout."""
    path = checkout / "python" / "evaluate.py"
    if not path.exists():
        raise SystemExit(
            f"{path} does not exist: name a checkout of filipradenovic/revisitop with --reference."
        )
    if not hasattr(np, "in1d"):  # the name that it uses is gone since NumPy 2.4
        setattr(np, "in1d", np.isin)  # noqa: B010
    spec = importlib.util.spec_from_file_location("revisitop_evaluate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def synthetic(rng: np.random.Generator, images: int = 5000, queries: int = 70) -> GroundTruth:
    truths = []
    for row in range(queries):
        cuts = np.sort(rng.integers(0, 400, 3))
        order = rng.permutation(images).tolist()
        easy, hard, junk = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] : cuts[2]]
        truths.append(QueryTruth(f"q{row}", None, tuple(easy), tuple(hard), tuple(junk)))
    return GroundTruth("synthetic", tuple(f"i{image}" for image in range(images)), tuple(truths))


def ranking(
    kind: str, images: int, positive: np.ndarray, junk: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    order = rng.permutation(images)
    front = {
        "random": [],
        "junk first": junk,
        "positives last": [],
        "mixed": np.concatenate([positive, junk]),
    }[kind]
    back = positive if kind == "positives last" else []
    middle = order[~np.isin(order, np.concatenate([front, back]))]
    return np.concatenate([rng.permutation(front), middle, rng.permutation(back)]).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--ground-truth", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()

    evaluate = reference(options.reference)
    rng = np.random.default_rng(0)
    truths = [load_ground_truth(path) for path in options.ground_truth] or [synthetic(rng)]
    largest = {"mAP": 0.0, "AP": 0.0, "mP@k": 0.0, "P@k": 0.0}  # in the order of compute_map
    for trial in range(options.trials):
        truth = truths[trial % len(truths)]
        kind = (
            "random"
            if trial % 2 == 0
            else ("junk first", "positives last", "mixed")[trial // 2 % 3]
        )
        for protocol, rule in metrics.PROTOCOLS.items():
            lists = [
                [metrics.positions_of(query, names) for names in (rule.positive, rule.junk)]
                for query in truth.queries
            ]
            rankings = [ranking(kind, len(truth.gallery), *each, rng) for each in lists]
            gnd = [{"ok": positive, "junk": junk} for positive, junk in lists]
            theirs = evaluate.compute_map(np.stack(rankings, axis=1), gnd, list(metrics.KAPPAS))
            ours = metrics.evaluate(rankings, truth.queries, protocol)
            means = np.array([ours.means[f"mP@{kappa}"] for kappa in metrics.KAPPAS])
            pairs = [ours.means["mAP"], ours.average_precision, means, ours.precision]
            for name, mine, other in zip(largest, pairs, theirs, strict=True):
                if not np.array_equal(np.isnan(mine), np.isnan(other)):
                    raise SystemExit(
                        f"{truth.name}, {protocol}: another set of queries is left out."
                    )
                largest[name] = max(largest[name], float(np.nanmax(np.abs(mine - other))))
    count = sum(len(truths[trial % len(truths)].queries) for trial in range(options.trials)) * len(
        metrics.PROTOCOLS
    )
    sets = [truth.name for truth in truths]
    print_figures(
        {
            "sets": sets,
            "trials": options.trials,
            "rankings": count,
            "largest_difference": largest,
        }
    )


if __name__ == "__main__":
    main()
