"""estimate, and --dry-run of a stage: what it would take in time, memory and on disk. Nothing is
made.

It rests on a probe: the stage's own job over a small sample, with as many worker processes as the
run would have, in a temporary folder (docs/estimating.md).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pipelines.engines.settings import RunSettings
from pipelines.estimate.model import Estimate
from pipelines.estimate.options import Options as Options
from pipelines.estimate.probe import probe_folder
from pipelines.estimate.table import table
from pipelines.stages import COMMANDS, PROBED, load, refuse_without_estimate
from schemas.errors import UserError

PROGRAMS = ("pipelines/__main__.py", "rrt-pipelines")


def run(name: str, options: Any, settings: RunSettings) -> list[Estimate]:
    """Estimate a stage and print it. Raises UserError and driver.JobFailed."""
    if settings.json:
        _check_file(settings.json)
    estimates: list[Estimate] = []
    if text := COMMANDS[name].estimate_text:
        print(f"{name}: {text}; no probe is made.")
    else:
        estimates = _estimates(name, options, settings)
        for estimate in estimates:
            print(f"\n{table(estimate)}")
        print("\nNothing was made.")

    if settings.json:
        content = json.dumps([estimate.to_json() for estimate in estimates], indent=1) + "\n"
        Path(settings.json).write_text(content)
    return estimates


def _estimates(name: str, options: Any, settings: RunSettings) -> list[Estimate]:
    """What the stage's own module says: one estimate, or of `run` one for each of its stages."""
    if name == "estimate":
        raise UserError(
            f"estimate: name a stage first ({', '.join(PROBED)}), and then its own options"
        )
    refuse_without_estimate(name)
    begun = time.monotonic() - _age()
    with probe_folder() as folder:
        made = load(COMMANDS[name].estimate)(folder, options, settings, begun)
    return made if isinstance(made, list) else [made]


def _check_file(path: str) -> None:
    """Raise UserError where the file cannot be written: before minutes of probing."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--json: there is no folder {folder}")
    if Path(path).is_dir():
        raise UserError(f"--json: {path} is a folder; give a file")


def _age() -> float:
    """Seconds that this process took so far, where it is a command that just began: the run's
    imports take as long.
    """
    with contextlib.suppress(psutil.Error):
        begun = psutil.Process().create_time()
        age = time.time() - begun
        if hasattr(time, "CLOCK_BOOTTIME"):  # Linux gives the time of its start in whole seconds
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - (begun - psutil.boot_time())
        if age < 60 and sys.argv and sys.argv[0].endswith(PROGRAMS):
            return age
    return 0.0
