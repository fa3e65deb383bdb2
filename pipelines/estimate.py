"""estimate, and --dry-run of a stage: what it would take in time, memory and on disk. Nothing is made.

What is told rests on a probe: the stage's own job over a small sample, with as many worker processes as the run would
have, in a temporary folder (docs/estimating.md).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipelines.driver import RunSettings
from pipelines.options import option
from pipelines.storage import Place
from schemas.errors import UserError

PROBED = {
    "extract": "pipelines.estimate_extract",
    "index": "pipelines.estimate_index",
    "search": "pipelines.estimate_search",
    "rerank": "pipelines.estimate_rerank",
    "run": "pipelines.estimate_run",
}
PLAIN = {
    "demo": "the demo takes a few minutes and about 0.5 GB",
    "evaluate": "evaluating takes seconds, and a few kilobytes on disk",
    "report": "the report takes seconds, and some megabytes on disk for its pictures",
    "tune": "tuning replays stored scores: seconds to a minute, and a few kilobytes on disk",
}
OWN = ("train",)  # stages whose own --dry-run mines and tells


@dataclass(frozen=True)
class Options:
    """Options of `estimate`: a stage and its own options."""

    stage: str = option("extract, index, search, rerank or run, followed by its own options", "", positional=True)


@dataclass
class Probe:
    """What an estimate rests on."""

    inputs: int
    seconds_an_input: float  # of one worker, with all workers busy
    spread: float  # standard deviation of the units' seconds an input, as a share of their mean
    start_seconds: float
    workers: int
    seconds: float  # that the probe itself took


@dataclass
class Estimate:
    """What a stage would take. Bytes and seconds; `known` says how the number of inputs is known."""

    stage: str
    place: str
    noun: str
    inputs: int
    known: str
    done: int = 0
    disk: dict[str, int] = field(default_factory=dict)
    disk_there: int = 0  # of it, what is there already
    free: int | None = None  # on the place's disk; None where it is not a local one
    memory_worker: int = 0
    memory_total: int = 0
    workers: int = 0
    seconds: float = 0.0
    elsewhere: dict[int, float] = field(default_factory=dict)
    probe: Probe | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def disk_total(self) -> int:
        """Bytes of the finished output."""
        return sum(self.disk.values())

    def to_json(self) -> dict[str, Any]:
        """All of it, with the sums."""
        return {**asdict(self), "disk_total": self.disk_total}


def refuse_unknown(name: str) -> None:
    """Raise UserError for a command that has no estimate."""
    if name not in (*PROBED, *PLAIN, *OWN):
        raise UserError(f"{name} has no estimate; there is one of {', '.join((*PROBED, *PLAIN, *OWN))}")


def run(name: str, options: Any, settings: RunSettings) -> list[Estimate]:
    """Estimate a stage and print it. Raises UserError and driver.JobFailed."""
    from pipelines.estimate_table import table

    if settings.json:
        _check_file(settings.json)
    if name in PLAIN:
        print(f"{name}: {PLAIN[name]}; no probe is made.")
        return _written([], settings)
    if name == "estimate":
        raise UserError(f"estimate: name a stage first ({', '.join(PROBED)}), and then its own options")
    refuse_unknown(name)
    if settings.on and min(settings.on) < 1:
        raise UserError(f"--on is {','.join(map(str, settings.on))}; it takes numbers of workers, 1 or more")
    module = importlib.import_module(PROBED[name])
    before = _age()
    estimates: list[Estimate] = module.estimate(options, settings, before)
    for estimate in estimates:
        print(f"\n{table(estimate)}")
    print("\nNothing was made.")
    return _written(estimates, settings)


def _written(estimates: list[Estimate], settings: RunSettings) -> list[Estimate]:
    """The estimates, in the file that --json names, too."""
    if settings.json:
        content = json.dumps([estimate.to_json() for estimate in estimates], indent=1) + "\n"
        Path(settings.json).write_text(content)
    return estimates


def _check_file(path: str) -> None:
    """Raise UserError where the file cannot be written: before minutes of probing."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--json: there is no folder {folder}")
    if Path(path).is_dir():
        raise UserError(f"--json: {path} is a folder; give a file")


def _age() -> float:
    """Seconds that this process took so far, where it is a command that just began: the run's imports take as long."""
    with contextlib.suppress(psutil.Error):
        age = time.time() - psutil.Process().create_time()
        if age < 60 and sys.argv and sys.argv[0].endswith(("pipelines/__main__.py", "rrt-pipelines")):
            return age
    return 0.0


def free_bytes(url: str) -> int | None:
    """Free bytes on the disk of a local place, which need not be there yet."""
    place = Place(url)
    if not place.local:
        return None
    folder = Path(place.root)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def elsewhere(settings: RunSettings, seconds: Callable[[int], float]) -> dict[int, float]:
    """Seconds with each number of workers that --on names."""
    return {count: seconds(count) for count in settings.on}
