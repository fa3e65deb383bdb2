"""How fast PairScorer is beside the paper's own MatchERT, on the same weights and pairs.

    python benchmarks/speed/rrt_speed.py --reference DIR
        [--threads 2] [--rounds 5] [--only CASE ...]

DIR is a checkout of uvavision/RerankingTransformer. Its model gets random weights and so does ours
by its state dict. Pairs are those of an evaluation: queries, each with a shortlist of gallery
images of its own.

    full         500 + 500 tokens
    realistic    tokens a side normal, mean 350, sd 150, clipped to 1..500
    128, 64      128 + 128 and 64 + 64 tokens

The reference pads to 500 with masks, as its loader does, and takes as a batch one gallery image for
each query, as its evaluation does (--queries; 70 in Revisited Oxford and Paris). Its tensors are
made before its clock starts; ours starts with the numpy arrays. Each round times one batch of the
reference, as many pairs of PairScorer (all candidates of some queries) and the machine's matrix
rate one after the other, and medians over the rounds are printed, so that a drifting machine treats
all alike. For the short cases the reference, which would pad them to 500 too, only checks 16
logits.

GFLOP/s counts the operations that PairScorer does, multiplication and addition apiece, without
exponentials and norms. The machine's rate is torch's float32 matmul at 2048^3 and at this model's
own shapes, the threads as given.

Memory: the largest PSS of the process tree while 1,000 and 20,000 pairs are scored, each in a
process of its own, 0 to 31 tokens a side. Ends with code 1 if a logit differs by more than 1e-5, or
if memory grows by more than 5%.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.parity.rrt_parity import padded, random_image, reference_model
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.transformer.scorer import PairScorer, TokenSet

CASES = ("full", "realistic", "128", "64")
TOLERANCE = 1e-5
SLOTS = 500
TIMED = ("full", "realistic")
# Rows, inner and columns: the machine's rate, and this model's products at the realistic length of
# a pair.
SHAPES = {
    "2048^3": (2048, 2048, 2048),
    "704x128x384": (704, 128, 384),
    "704x128x1024": (704, 128, 1024),
    "704x1024x128": (704, 1024, 128),
}

Pairs = list[tuple[TokenSet, TokenSet]]


def sample(case: str, queries: int, candidates: int, rng: np.random.Generator) -> Pairs:
    """Pairs, query after query."""

    def image() -> TokenSet:
        if case == "full":
            count = SLOTS
        elif case == "realistic":
            count = int(np.clip(np.round(rng.normal(350, 150)), 1, SLOTS))
        else:
            count = int(case)
        return random_image(rng, count, 2048)

    return [
        (query, image()) for query in [image() for _ in range(queries)] for _ in range(candidates)
    ]


def operations(pairs: Pairs, config: ModelConfig) -> float:
    """Floating-point operations of PairScorer's matrix products.

    What a side needs by itself is counted once an image.
    """
    width, hidden = config.d_model, config.feedforward

    def side(count: int) -> float:
        return 2.0 * count * 3 * width**2 + 4.0 * count**2 * width

    total = 0.0
    for image in {id(image): image for pair in pairs for image in pair}.values():
        total += side(len(image.local) + 2) + 2.0 * config.global_dim * width
    for query, gallery in pairs:
        n, m = len(query.local) + 2, len(gallery.local) + 2
        rows = 2.0 * (n + m) * (width**2 + 2 * width * hidden)
        total += 2 * 4.0 * n * m * width + rows  # first layer: each side's attention to the other
        total += (config.layers - 2) * (side(n + m) + rows)
        total += 4.0 * (n + m) * width * config.heads + 2.0 * (4 * width**2 + 2 * width * hidden)
    return total


def matrix_rate(rows: int, inner: int, columns: int) -> float:
    """GFLOP/s of torch.mm, the median of calls over 0.2 s."""
    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    torch.mm(a, b, out=out)
    times: list[float] = []
    while sum(times) < 0.2 or len(times) < 3:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - started)
    return 2.0 * rows * inner * columns / median(times) / 1e9


def compare(
    case: str, reference: torch.nn.Module, ours: RerankingTransformer, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Time one case and print its rows: the figures of each precision, medians over the rounds."""
    pairs = sample(case, args.queries, args.candidates, np.random.default_rng(args.seed))
    numbers = np.arange(len(pairs))
    scorers = {
        name: PairScorer(ours, "cpu", precision=name) for name in ("float32", *args.precision)
    }
    times: dict[str, list[float]] = {name: [] for name in ("reference", *scorers)}
    rates: dict[str, list[float]] = {name: [] for name in (*scorers, *SHAPES)}
    logits = {name: np.full(len(pairs), np.nan, np.float32) for name in times}
    for number in range(args.rounds):
        turn = number % args.candidates
        # The reference scores one candidate of every query, PairScorer all candidates of some.
        batch = numbers[numbers % args.candidates == turn]
        if case not in TIMED:
            batch = batch[:16]
        times["reference"].append(
            run_reference(reference, [pairs[i] for i in batch], logits["reference"], batch)
        )
        some = numbers[numbers // args.candidates % args.candidates == turn]
        chosen = [pairs[i] for i in some]
        for name, scorer in scorers.items():
            started = time.perf_counter()
            logits[name][some] = scorer.score(chosen)
            spent = time.perf_counter() - started
            times[name].append(spent / len(some))
            rates[name].append(operations(chosen, ours.config) / spent / 1e9)
        for name, shape in SHAPES.items():
            rates[name].append(matrix_rate(*shape))
    differences = {
        name: float(np.nanmax(np.abs(logits[name] - logits["reference"]))) for name in scorers
    }
    figures: dict[str, dict[str, float]] = {}
    for name in scorers:
        a_pair, rate = median(times[name]), median(rates[name])
        figures[name] = {
            "milliseconds_a_pair": 1e3 * a_pair,
            "pairs_a_second": 1 / a_pair,
            "gflops": rate,
            "matmul_gflops": median(rates["2048^3"]),
            "largest_difference": differences[name],
        }
        line = f"{case:>9}  {name:>8}  {1e3 * a_pair:7.2f} ms a pair {1 / a_pair:7.1f} pairs/s"
        line += f"  {rate:6.1f} GFLOP/s = {100 * rate / median(rates['2048^3']):3.0f}% of 2048^3"
        if case in TIMED:
            by_round = [r / o for r, o in zip(times["reference"], times[name], strict=True)]
            figures[name]["reference_milliseconds_a_pair"] = 1e3 * median(times["reference"])
            figures[name]["times_faster_than_reference"] = median(by_round)
            line += (
                f"  reference {1e3 * median(times['reference']):6.1f} ms, {median(by_round):5.2f} "
                f"times"
            )
            line += f" ({min(by_round):.2f}..{max(by_round):.2f})"
        print(f"{line}  |difference| {differences[name]:.1e}", flush=True)
    print(
        " " * 11 + "torch.mm, GFLOP/s: " + ", ".join(f"{n} {median(rates[n]):.0f}" for n in SHAPES),
        flush=True,
    )
    return figures


def run_reference(
    model: torch.nn.Module, pairs: Pairs, logits: np.ndarray, places: np.ndarray
) -> float:
    """Seconds a pair of one batch; its logits go to `places` of `logits`."""
    query, gallery = padded([q for q, _ in pairs]), padded([g for _, g in pairs])
    positions = F.pad(torch.zeros(len(pairs), SLOTS, 1), (0, 1))
    with torch.no_grad():
        started = time.perf_counter()
        logits[places] = model(*query, positions, *gallery, positions).numpy()
        return (time.perf_counter() - started) / len(pairs)


def pss(pid: int) -> int:
    """Bytes of a process and its children that are their own or their share, from /proc."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(pss(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def score_in_calls(count: int, threads: int) -> None:
    """Score `count` pairs in calls of 500, as the rerank stage does.

    The images are made for each call.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    scorer = PairScorer(RerankingTransformer(ModelConfig(layers=2)).eval(), "cpu")
    rng = np.random.default_rng(0)
    for _ in range(count // 500):
        queries = [random_image(rng, int(rng.integers(0, 32)), 2048) for _ in range(5)]
        scorer.score(
            [
                (q, random_image(rng, int(rng.integers(0, 32)), 2048))
                for q in queries
                for _ in range(100)
            ]
        )


def peak_memory(count: int, threads: int) -> int:
    """Largest PSS of the process tree that scores `count` pairs."""
    process = multiprocessing.get_context("spawn").Process(
        target=score_in_calls, args=(count, threads)
    )
    process.start()
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, pss(process.pid or 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.join()
    done.set()
    watcher.join()
    if process.exitcode:
        raise RuntimeError(f"scoring {count} pairs ended with code {process.exitcode}")
    return peak


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference", required=True, help="checkout of uvavision/RerankingTransformer"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=70, help="pairs of a batch of the reference")
    parser.add_argument(
        "--candidates", type=int, default=5, help="gallery images of each query, >= 1"
    )
    parser.add_argument("--only", nargs="*", choices=(*CASES, "memory"), default=(*CASES, "memory"))
    parser.add_argument(
        "--precision", nargs="*", default=["bfloat16"], help="further precisions to time"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = (2048, 128, 1004, 256, 4, 6, 1024, 0.0, "relu", False)
    reference = reference_model(Path(args.reference) / "RRT_GLD", args.seed, *shape)
    ours = RerankingTransformer(ModelConfig()).eval()
    ours.load_state_dict(reference.state_dict())
    print(
        f"{args.threads} threads, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{args.rounds} rounds",
        flush=True,
    )
    cases = {case: compare(case, reference, ours, args) for case in args.only if case != "memory"}
    worst = max((case["float32"]["largest_difference"] for case in cases.values()), default=0.0)

    memory: dict[str, float] = {}
    grown = False
    if "memory" in args.only:
        few, many = peak_memory(1_000, args.threads), peak_memory(20_000, args.threads)
        grown = many > 1.05 * few
        memory = {"1000_pairs": few / 2**20, "20000_pairs": many / 2**20}
        print(
            f"peak PSS: {few / 2**20:.0f} MiB for 1,000 pairs, {many / 2**20:.0f} MiB for 20,000",
            flush=True,
        )
    print(f"largest difference in float32 {worst:.1e}, allowed {TOLERANCE:.0e}")
    print_figures(
        {
            "threads": args.threads,
            "rounds": args.rounds,
            "cases": cases,
            "peak_pss_mib": memory,
            "largest_difference": worst,
            "allowed_difference": TOLERANCE,
        }
    )
    return int(worst > TOLERANCE or grown)


if __name__ == "__main__":
    sys.exit(main())
