"""The driver's worker processes: started when needed, given shares of units, watched, killed.

A process group a worker. A worker's end is seen at once as the end of its answers. Workers stay for
the next job of the same command, since their imports take longer than many a job.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import pipelines
from pipelines.engines.engine import Ended
from pipelines.engines.processes import PARENT_VARIABLE, thread_environment
from pipelines.engines.workers.stall_watch import stood_still
from schemas.plan import Unit

WORKER = "pipelines.engines.local.worker"  # the module of a worker process
FOLDER = "rrt-workers-"
KEPT_SECONDS = 24 * 3600  # for what a killed driver left behind, and the logs of failed jobs
LARGE = 1_500_000_000  # bytes: an idle worker that holds more is not kept for the next job


@dataclass(eq=False)
class Member:
    """A worker process and the units it is at."""

    process: subprocess.Popen[bytes]
    share: tuple[Unit, ...] = ()
    received: bytes = b""  # of its answers, a line that is not complete yet

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@dataclass
class Pool:
    """Worker processes that run `module`, and compute with `threads` threads each."""

    threads: int
    environment: dict[str, str]
    module: str = WORKER
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        _remove_old_folders()
        self.folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
        self.log = os.path.join(self.folder, "workers.log")
        self.selector = selectors.DefaultSelector()
        self.shares = 0

    def start(self) -> Member:
        """A further worker."""
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
                env={**self.environment, "TMPDIR": self.folder},  # goes with what is left there
            )

        member = Member(process)
        self.members.append(member)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, member)
        return member

    def give(self, member: Member, units: Sequence[Unit], share: dict[str, Any]) -> None:
        """Give a worker its next share."""
        self.shares += 1
        # A long run may outlive a sweep of the temporary folder.
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, f"share-{self.shares}.json")
        Path(path).write_text(json.dumps(share))
        member.share = tuple(units)
        assert member.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: `wait` reports it
            member.process.stdin.write(f"{path}\n".encode())

    def wait(self, seconds: float) -> list[Ended]:
        """The shares that came to an end, at the latest after this time."""
        ended = []
        for key, _ in self.selector.select(seconds):
            member: Member = key.data
            data = os.read(key.fd, 65_536)
            if not data:
                code = self._part_with(member)
                stalled = stood_still(self.folder, member.pid)
                killed = code == -signal.SIGKILL and not stalled
                problem = (
                    "a worker process stood still"
                    if stalled
                    else f"a worker process ended with {exit_words(code)}"
                )
                if member.share:
                    pids = frozenset([member.pid])
                    ended.append(Ended(member.share, problem, pids, killed, stalled))
                continue

            *lines, member.received = (member.received + data).split(b"\n")
            for line in lines:
                ended.append(_ended(member, json.loads(line)))
                member.share = ()

        return ended

    def kill(self) -> set[int]:
        """Kill all workers with their groups; gives the process ids of those that lived."""
        killed = self.signal_all()
        for member in list(self.members):
            self._part_with(member)

        return killed

    def _part_with(self, member: Member) -> int:
        """Take out a worker that ended or was killed; gives its exit code."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(member.process.stdout)  # type: ignore[arg-type]

        self.members.remove(member)
        code = member.process.wait()
        _close(member)
        return code

    def signal_all(self) -> set[int]:
        """SIGKILL to all groups, without waiting: fit for another thread than the pool's own."""
        killed = set()
        for member in list(self.members):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(member.pid, signal.SIGKILL)
                killed.add(member.pid)

        return killed

    def retire_large(self) -> None:
        """End idle workers that hold much memory."""
        for member in self.idle():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if psutil.Process(member.pid).memory_info().rss > LARGE:
                    os.killpg(member.pid, signal.SIGKILL)
                    self._part_with(member)

    def busy(self) -> list[Member]:
        """Workers with a share, also one that died until `wait` reports it."""
        return [member for member in self.members if member.share]

    def idle(self) -> list[Member]:
        """Living workers without a share."""
        return [
            member for member in self.members if not member.share and member.process.poll() is None
        ]

    def remove_folder(self) -> None:
        """Remove the log and what workers left in their temporary folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


_pool: Pool | None = None


def shared_pool(threads: int, module: str = WORKER) -> Pool:
    """The process's pool; another one where module, threads, environment or working folder have
    changed.
    """
    global _pool
    root = os.path.dirname(os.path.abspath(pipelines.__path__[0]))
    environment = {
        **os.environ,
        **thread_environment(threads),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        PARENT_VARIABLE: str(os.getpid()),
        "PWD": os.path.abspath(os.curdir),  # workers read and write below it as this process does
    }
    environment.pop("PYTEST_CURRENT_TEST", None)  # another one in each test
    wanted = threads, environment, module
    if _pool is not None and (_pool.threads, _pool.environment, _pool.module) != wanted:
        close_pool()

    if _pool is None:
        _pool = Pool(threads, environment, module)

    return _pool


def close_pool(*, keep_log: bool = False) -> set[int]:
    """Kill the pool's workers; gives the process ids of those that lived."""
    global _pool
    if _pool is None:
        return set()

    closed, _pool = _pool, None
    killed = closed.kill()
    if not keep_log:
        closed.remove_folder()

    return killed


atexit.register(close_pool)


def _remove_old_folders() -> None:
    """Remove the folders of drivers that were killed, or failed, a day ago and are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        with contextlib.suppress(OSError, ValueError):
            about = path.stat()
            gone = not psutil.pid_exists(int(path.name.removeprefix(FOLDER).partition("-")[0]))
            if gone and about.st_uid == os.getuid() and time.time() - about.st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _ended(member: Member, answer: dict[str, Any]) -> Ended:
    """A share's end as its worker answered it."""
    return Ended(member.share, **{**answer, "dead": frozenset(answer.get("dead", ()))})


def _close(member: Member) -> None:
    for pipe in (member.process.stdin, member.process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def exit_words(code: int) -> str:
    """A process's exit code in words."""
    words = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    why = ", most likely the system's for want of memory: give fewer --workers"
    return words + why if code == -signal.SIGKILL else words
