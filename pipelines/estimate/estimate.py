"""estimate, and --dry-run of a stage: what it would take in time, memory and on disk. Nothing is
made.

What is told rests on a probe: the stage's own job over a small sample, with as many worker
    processes as the run would
have, in a temporary folder (docs/estimating.md).
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
from pipelines.stages import COMMANDS, PROBED, load, refuse_without_estimate
from schemas.errors import UserError


def run(name: str, options: Any, settings: RunSettings) -> list[Estimate]:
    """Estimate a stage and print it. Raises UserError and driver.JobFailed."""
    from pipelines.estimate.table import table

    if settings.json:
        _check_file(settings.json)
    command = COMMANDS[name]
    if command.estimate_text:
        print(f"{name}: {command.estimate_text}; no probe is made.")
        return _written([], settings)
    if name == "estimate":
        raise UserError(
            f"estimate: name a stage first ({', '.join(PROBED)}), and then its own options"
        )
    refuse_without_estimate(name)
    before = _age()
    estimates: list[Estimate] = load(command.estimate)(options, settings, before)
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
    """Seconds that this process took so far, where it is a command that just began: the run's
    imports take as long.
    """
    with contextlib.suppress(psutil.Error):
        age = time.time() - psutil.Process().create_time()
        if (
            age < 60
            and sys.argv
            and sys.argv[0].endswith(("pipelines/__main__.py", "rrt-pipelines"))
        ):
            return age
    return 0.0
