"""Processes end with those that need them, and their threads do not spin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipelines.engines.processes import thread_environment
from tests.support.command_line import command
from tests.support.watching import EXTRACTOR, Running, alive, wait_for, words

LEADER = """
import subprocess, time
from pipelines.engines.processes import kill_group_at_end
kill_group_at_end()
print(subprocess.Popen(["sleep", "300"]).pid, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(300)", "", "raise SystemExit(3)"])
def test_what_a_process_started_ends_with_it_in_whatever_way_that_ends(then: str) -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER.format(then=then)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    if "sleep" in then:
        os.kill(leader.pid, signal.SIGKILL)
    assert leader.wait() == {"": 0, "raise SystemExit(3)": 3}.get(then, -signal.SIGKILL)
    wait_for(lambda: not alive(child), "the end of the child")


@pytest.mark.skipif(
    " " in sys.executable, reason="Beam starts its workers by a shell and an unquoted path"
)
def test_processes_of_a_beam_runner_end_with_a_killed_driver(
    start: partial[Running], photographs: Path, tmp_path: Path
) -> None:
    slow = ("--extractor", EXTRACTOR, "--extractor-option", "seconds=0.5")
    beam = ("--runner", "FnApiRunner", "--direct_running_mode=multi_processing")
    more = ("--direct_num_workers=2", "--rows-per-part", 5)
    running = start(
        "extract", "--images", photographs, "--out", tmp_path / "out", *slow, *beam, *more
    )

    def sdk_workers() -> list[psutil.Process]:
        return [one for one in running.tree() if any("sdk_worker" in word for word in words(one))]

    running.until(sdk_workers, "Beam's own worker processes")
    running.process.kill()
    running.process.wait()
    wait_for(lambda: not running.orphans(), "the end of Beam's processes")


def test_threads_that_wait_do_not_spin_unless_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert thread_environment(2)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert thread_environment(2)["OMP_WAIT_POLICY"] == "ACTIVE"


def test_workers_follow_to_another_working_folder(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        given = ("extract", "--images", photographs, "--extractor", EXTRACTOR, "--workers", 1)
        assert command(*given, "--out", "store").code == 0
        assert (tmp_path / name / "store/manifest.json").exists()
