"""A worker that stands still at a unit ends by the process beside it, whatever it hangs in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.engines.workers.stall_watch import stood_still
from tests.support.watching import ROOT, wait_for

WORKER = """
import ctypes, os, signal, subprocess, sys, threading, time
from pipelines.engines.workers.stall_watch import at_work, say, watch_stalls
watch_stalls(SECONDS)
print("begun", flush=True)
with at_work():
    DEED
print("through", flush=True)
IDLE
"""
HANGS = {
    "sleeps": "time.sleep(60)",
    "holds Python's lock": "ctypes.PyDLL(None).sleep(60)",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "waits for a child": "subprocess.run(['sleep', '60'])",
    "reads its lease alone": "[(say('spent .1'), time.sleep(.2), sum(range(2 * 10**6))) for _ in '.' * 300]",  # noqa: E501
}
LIVES = {
    "computes": "end = time.time() + 3\n    while time.time() < end: pass",
    "has a child that computes": (
        "subprocess.run([sys.executable, '-c', "
        "'import time; end = time.time() + 3\\nwhile time.time() < end: pass'])"
    ),
    "is done with its unit": "pass",
}


def started(folder: Path, deed: str, seconds: float, idle: str = "") -> subprocess.Popen[str]:
    text = WORKER.replace("SECONDS", str(seconds)).replace("DEED", deed).replace("IDLE", idle)
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("deed", HANGS.values(), ids=HANGS)
def test_who_stands_still_is_killed(deed: str, tmp_path: Path) -> None:
    worker = started(tmp_path, deed, 1.0)
    begun = time.monotonic()
    tree = wait_for(lambda: psutil.Process(worker.pid).children(), "the watchdog")
    said, _ = worker.communicate(timeout=40)
    assert worker.returncode == -signal.SIGKILL and said == "begun\n"
    assert time.monotonic() - begun < 30
    assert stood_still(str(tmp_path), worker.pid) and not stood_still(str(tmp_path), worker.pid)
    wait_for(lambda: not any(child.is_running() for child in tree), "the end of its children", 10)


@pytest.mark.parametrize("deed", LIVES.values(), ids=LIVES)
def test_who_computes_or_waits_for_a_unit_is_left_alone(deed: str, tmp_path: Path) -> None:
    worker = started(tmp_path, deed, 1.0, "time.sleep(2.5)")
    said, _ = worker.communicate(timeout=60)
    assert (worker.returncode, said) == (0, "begun\nthrough\n")
    assert not stood_still(str(tmp_path), worker.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_the_watchdog_ends_with_its_worker_and_is_replaced(tmp_path: Path) -> None:
    deed = "time.sleep(2)\n    say('spent 0')\n    time.sleep(60)"
    worker = started(tmp_path, deed, 4.0)
    watchdog = wait_for(lambda: psutil.Process(worker.pid).children(), "the watchdog")[0]
    watchdog.kill()
    assert worker.wait(60) == -signal.SIGKILL, "the second one did it"

    worker = started(tmp_path, "time.sleep(60)", 30.0)
    watchdog = wait_for(lambda: psutil.Process(worker.pid).children(), "the watchdog")[0]
    worker.kill()
    worker.wait()
    wait_for(lambda: not watchdog.is_running(), "its end", 10)
