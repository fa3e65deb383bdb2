"""The command line as a subprocess: started, watched with its process tree, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
EXTRACTOR = "tests.tiny_extractor:TinyExtractor"  # starts at once
LONG = 120.0  # generous: the machine may be busy


def wait_for(condition: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    """Poll until the condition gives something true; fail with `what` after the limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


class Running:
    """A started command and all processes that were ever seen below it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        # A shell's background job ignores Ctrl-C, and so would the command: ignored signals are
        # inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )
        signal.signal(signal.SIGINT, before)
        self.seen: dict[int, psutil.Process] = {}

    def tree(self) -> list[psutil.Process]:
        """The processes below the command that live now."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.seen.update({child.pid: child for child in children})
        return [child for child in children if alive(child)]

    def workers(self) -> list[psutil.Process]:
        """Worker processes of the driver."""
        return [
            process for process in self.tree() if "pipelines.engines.local.worker" in words(process)
        ]

    def orphans(self) -> list[psutil.Process]:
        """Processes that were seen below the command and live on."""
        return [process for process in self.seen.values() if alive(process)]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for the condition while the command runs."""
        found = wait_for(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None or found is not True, (
            f"it ended before: {what}\n{self.text}"
        )
        return found

    def kill_all(self) -> None:
        """SIGKILL to the whole tree, the driver first."""
        tree = self.tree()
        self.process.kill()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        wait_for(lambda: not self.orphans(), "the end of all that was killed")

    def end(self, seconds: float = LONG) -> int:
        """Wait for its end; gives the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"it did not end within {seconds:g} s:\n{self.text}") from None

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")


def alive(process: psutil.Process) -> bool:
    """Whether the process lives: a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def words(process: psutil.Process) -> list[str]:
    """The command line of a process; empty where it is gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
