"""What --dry-run predicts beside what the run then takes, on real photographs.

    python benchmarks/speed/estimate_accuracy.py
        [--archives DIR] [--only NAME,...] [--queries 40] [--keep DIR]

Each block of the table is one command, first with --dry-run, then for good, both as processes of
their own, one right after the other, since a machine's speed drifts. Photographs are those of
$RRT_TEST_DATA/photos; --archives names a folder of benchmarks/making/make_archives.py, of which two
archives are taken. Time is the wall time of the whole command, disk the sum of its files' sizes,
memory the largest PSS of its process tree. The bars: time within 30 %, disk within 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from pipelines.estimate.memory import MemoryWatch, Peaks

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
SMALL = ("--extractor-option", "sizes=[224]", "--extractor-option", "max_locals=64")
HEADER = f"{'':<34}{'what':<10}{'predicted':>12}{'measured':>12}{'ratio':>8}"


@dataclass(frozen=True)
class Case:
    """A command: its arguments, and the folders whose files it makes."""

    name: str
    arguments: tuple[str, ...]
    made: tuple[Path, ...]


def cases(scratch: Path, archives: Path | None, queries: int) -> list[Case]:
    """The commands, in an order in which each finds what it needs."""
    photos = DATA / "photos"
    listed = scratch / "queries.txt"
    names = sorted(os.path.relpath(path, photos) for path in photos.rglob("*.jpg"))
    step = max(1, len(names) // queries)
    listed.write_text("".join(f"{name}\n" for name in names[::step][:queries]))
    out = {
        name: scratch / name for name in ("defaults", "small", "packed", "queries", "index", "run")
    }
    listed_only = ("--images", str(photos), "--list", str(listed), "--out", str(out["queries"]))
    plain = ("extract", "--images", str(photos), "--out")
    commands = [
        Case("extract, defaults", (*plain, str(out["defaults"])), (out["defaults"],)),
        Case("extract, 224, 64 locals", (*plain, str(out["small"]), *SMALL), (out["small"],)),
        Case(
            "extract queries, 224, 64 locals",
            ("extract", *listed_only, *SMALL),
            (out["queries"],),
        ),
        Case(
            "index",
            ("index", "--stores", str(out["small"]), "--out", str(out["index"])),
            (out["index"],),
        ),
        Case(
            "search",
            (
                "search",
                "--queries",
                str(out["queries"]),
                "--index",
                str(out["index"]),
                "--out",
                str(out["run"]),
            ),
            (out["run"] / "shortlist",),
        ),
        Case(
            f"rerank, rrt, {queries} x 100",
            ("rerank", "--queries", str(out["queries"]), "--out", str(out["run"])),
            (out["run"] / "scores", out["run"] / "ranking"),
        ),
    ]
    if archives is not None:
        packed = str(archives / "images.{1..2}.tar.gz")
        arguments = ("extract", "--images", packed, "--out", str(out["packed"]), *SMALL)
        commands.insert(2, Case("extract 2 archives, 224, 64 locals", arguments, (out["packed"],)))
    return commands


def run(arguments: tuple[str, ...], *, watched: bool) -> tuple[float, Peaks]:
    """Run a command: (seconds, its memory where it is watched: a probe watches itself)."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    watch = MemoryWatch(process.pid)
    with watch if watched else contextlib.nullcontext():
        _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} ended with {process.returncode}:\n{errors.decode()}"
        )
    return time.monotonic() - begun, watch.peaks


def main() -> None:
    """Estimate, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archives", type=Path)
    parser.add_argument(
        "--only", default="", help="words; a case whose name holds one of them is run"
    )
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="a folder for the outputs, which stay")
    options = parser.parse_args()
    words = [word for word in options.only.split(",") if word]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.keep or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        print(HEADER, flush=True)
        archives = options.archives and options.archives.resolve()
        figures = {
            case.name: compare(case, scratch)
            for case in cases(scratch, archives, options.queries)
            if not words or any(word in case.name for word in words)
        }

    seconds = time.monotonic() - begun
    print(f"{seconds:.0f} s in all, load {os.getloadavg()[0]:.1f}")
    print_figures({"cases": figures, "seconds": seconds})


def compare(case: Case, scratch: Path) -> dict[str, dict[str, float | None]]:
    """A dry run, the run, and their lines of the table, which are also returned."""
    file = scratch / "estimate.json"
    probing, _ = run((*case.arguments, "--dry-run", "--json", str(file)), watched=False)
    estimate = json.loads(file.read_text())[0]
    seconds, peaks = run(case.arguments, watched=True)
    files = [path for folder in case.made for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    rows = [
        ("time, s", "seconds", estimate["seconds"], seconds, 1.0),
        ("disk, MB", "disk_mb", estimate["disk_total"], size, 1e6),
        ("worker, MB", "worker_memory_mb", estimate["memory_worker"], peaks.worker, 1e6),
        ("memory, MB", "memory_mb", estimate["memory_total"], peaks.total, 1e6),
        ("dry run, s", "dry_run_seconds", None, probing, 1.0),
    ]
    figures: dict[str, dict[str, float | None]] = {}
    for number, (what, key, predicted, measured, unit) in enumerate(rows):
        figures[key] = {
            "predicted": None if predicted is None else predicted / unit,
            "measured": measured / unit,
        }
        line = f"{'' if number else case.name:<34}{what:<10}"
        if predicted is None:
            line += f"{'':>12}{measured / unit:>12,.2f}"
        else:
            line += (
                f"{predicted / unit:>12,.2f}{measured / unit:>12,.2f}{predicted / measured:>8.3f}"
            )
        print(line, flush=True)
    return figures


if __name__ == "__main__":
    main()
