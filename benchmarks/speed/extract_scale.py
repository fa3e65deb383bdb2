"""Extraction from many archives: memory against the number of images, kills, equal contents.

    python benchmarks/making/make_archives.py --out DIR/archives
        --images 20000 --archives 20 --longest 320
    python benchmarks/speed/extract_scale.py --archives DIR/archives --work DIR/work
        [--only locals globals default]

For each setting: the first two archives undisturbed, all undisturbed, and all killed by SIGKILL
(the whole process tree) three times at random moments and started again. Printed are images,
seconds, images a second, the peak of PSS summed over the process tree (sampled five times a second)
in each quarter of the time, bytes on disk, what `verify` reports, and whether the contents are
equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures

SMALL = ("--extractor-option", "sizes=[224]", "--extractor-option", "max_locals=64")
# name -> (flags, archives of the long run; 0: all)
SETTINGS: dict[str, tuple[tuple[str, ...], int]] = {
    "locals": (SMALL, 0),
    "globals": ((*SMALL, "--locals", "none"), 0),
    "default": ((), 2),
}


@dataclass
class Run:
    """What was measured of one command."""

    seconds: float
    memory: list[int]  # bytes, samples at equal steps of time
    killed: bool

    @property
    def peaks(self) -> list[float]:
        """The peak of each quarter of the time in MB: what grows with the images shows here."""
        quarters = [
            self.memory[i * len(self.memory) // 4 : (i + 1) * len(self.memory) // 4]
            for i in range(4)
        ]
        return [max(quarter, default=0) / 1e6 for quarter in quarters]


def run(arguments: list[str], kill_when: Callable[[float], bool] | None = None) -> Run:
    """Run a command of the pipelines.

    kill_when: seconds since the start -> whether to send SIGKILL to its whole tree now.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    memory: list[int] = []
    while process.poll() is None:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        if kill_when is not None and kill_when(time.monotonic() - started):
            for member in tree:
                with contextlib.suppress(psutil.Error):
                    member.send_signal(signal.SIGKILL)
            process.wait()
            return Run(time.monotonic() - started, memory, True)
        total = 0
        for member in tree:
            with contextlib.suppress(psutil.Error, AttributeError):
                total += member.memory_full_info().pss
        memory.append(total)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return Run(time.monotonic() - started, memory, False)


def content(store: Path) -> tuple[str, dict[str, int], int]:
    """The content hash, counts and bytes that a store's manifest names."""
    manifest = json.loads((store / "manifest.json").read_text())
    return manifest["content"], manifest["counts"], manifest["parts"]["bytes"]


def measure(
    name: str, archives: Path, work: Path, kills: int, chance: random.Random
) -> dict[str, Any]:
    """All runs of a setting: their figures, and whether the contents are equal."""
    flags, most = SETTINGS[name]
    count = len(list(archives.glob("images.*.tar.gz")))
    sizes = [2] if most == 2 else [2, count]
    undisturbed = ""
    runs: dict[str, dict[str, Any]] = {}
    for size in sizes:
        store = work / f"{name}-{size}"
        shutil.rmtree(store, ignore_errors=True)
        ended = run(command(archives, size, store, flags))
        undisturbed, counts, disk = content(store)
        what = f"{size} archives"
        runs[what] = report(name, what, ended, counts, disk)

    store = work / f"{name}-killed"
    shutil.rmtree(store, ignore_errors=True)
    whole = len(list((work / f"{name}-{sizes[-1]}" / "pieces").glob("*.json")))
    for kill in range(kills):
        share, later = (kill + chance.random()) / (kills + 1), chance.uniform(0, 10)
        reached: list[float] = []

        def kill_when(
            now: float, share: float = share, later: float = later, reached: list[float] = reached
        ) -> bool:
            if pieces(store) >= share * whole:
                reached.append(now)
            return bool(reached) and now >= reached[0] + later

        ended = run(command(archives, sizes[-1], store, flags), kill_when)
        print(
            f"{name:<8}  kill {kill + 1} after {ended.seconds:.0f} s: {pieces(store)} of {whole} "
            f"pieces",
            flush=True,
        )
        if not ended.killed:
            break

    ended = run(command(archives, sizes[-1], store, flags))
    digest, counts, disk = content(store)
    runs["the rest"] = report(name, "the rest", ended, counts, disk)
    same = "equal" if digest == undisturbed else "NOT EQUAL"
    verified = subprocess.run(
        [sys.executable, "-m", "pipelines", "verify", str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (verified.stdout + verified.stderr).strip().splitlines()[-1:]
    print(
        f"{name:<8}  killed and undisturbed: contents {same}; verify: exit {verified.returncode}, "
        f"{last}",
        flush=True,
    )
    equal = digest == undisturbed
    return {"runs": runs, "contents_equal": equal, "verify_exit_code": verified.returncode}


def pieces(store: Path) -> int:
    """How many pieces of archives are committed."""
    return len(list((store / "pieces").glob("*.json")))


def command(archives: Path, count: int, store: Path, flags: tuple[str, ...]) -> list[str]:
    """The command that describes the first archives."""
    pattern = f"{archives}/images.{{1..{count}}}.tar.gz"
    return ["extract", "--images", pattern, "--out", str(store), *flags]


def report(name: str, what: str, ended: Run, counts: dict[str, int], disk: int) -> dict[str, Any]:
    """Print a line of figures, and return them."""
    images = counts["inputs"]
    peaks = " / ".join(f"{peak:.0f}" for peak in ended.peaks)
    print(
        f"{name:<8}  {what:<12}  {images:,} = {counts['succeeded']:,} + {counts['failed']:,} "
        f"failed  {ended.seconds:.0f} s  {images / ended.seconds:.1f}/s  "
        f"peak PSS by quarters {peaks} MB  {disk / 1e6:.0f} MB on disk",
        flush=True,
    )
    return {
        "images": images,
        "failed": counts["failed"],
        "seconds": ended.seconds,
        "images_a_second": images / ended.seconds,
        "peak_pss_mb_by_quarter": ended.peaks,
        "disk_mb": disk / 1e6,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archives", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # The commands run in the project's folder, not in this one.
    archives, work = arguments.archives.resolve(), arguments.work.resolve()
    chance = random.Random(arguments.seed)
    settings = {
        name: measure(name, archives, work, arguments.kills, chance) for name in arguments.only
    }
    print_figures({"settings": settings})


if __name__ == "__main__":
    main()
