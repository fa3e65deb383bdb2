"""Commands whose units are done by processes of a cluster: what they get, what they started."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import psutil

from pipelines.engines.beam.prism import VARIABLE
from tests.support.watching import EXTRACTOR, Running, words

PRISM = shutil.which(os.environ.get(VARIABLE) or "prism")


def extract(images: Path, out: Path, *more: object, seconds: float = 0.05) -> list[object]:
    """Arguments of a command with ten units of three images, each of which takes some time."""
    slow = ("--extractor", EXTRACTOR, "--extractor-option", f"seconds={seconds}")
    return ["extract", "--images", images, "--out", out, "--rows-per-part", "3", *slow, *more]


def on_prism(*more: object) -> tuple[object, ...]:
    """Two shares at a time."""
    return ("--runner", "PrismRunner", "--workers", "2", *more)


def content(out: Path) -> str:
    """The content of a finished output."""
    content: str = json.loads((out / "manifest.json").read_bytes())["content"]
    return content


def workers_of(out: Path) -> set[tuple[str, str]]:
    """Engine and process of each worker that a marker names."""
    markers = [json.loads(path.read_bytes()) for path in (out / "done").iterdir()]
    return {(marker["worker"]["engine"], marker["worker"]["pid"]) for marker in markers}


def done(out: Path) -> int:
    """How many units have their marker."""
    return len(list((out / "done").glob("*.json")))


def running_module(running: Running, module: str) -> list[psutil.Process]:
    """Processes of a command that are started as ``python -m MODULE``."""
    return [process for process in running.tree() if words(process)[1:3] == ["-m", module]]


def pools(running: Running) -> list[psutil.Process]:
    """The worker pools of a command on Prism."""
    return running_module(running, "pipelines.engines.beam.worker_pool")


def submitters(running: Running) -> list[psutil.Process]:
    """The processes that submit a command's shares."""
    return running_module(running, "pipelines.engines.beam.submitter")


def prisms(running: Running) -> list[psutil.Process]:
    """The Prism of a command."""
    return [process for process in running.tree() if words(process)[:1] == [PRISM]]
