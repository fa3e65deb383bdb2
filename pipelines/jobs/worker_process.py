"""What a worker process is: its run, engine, host and start, and when one is known to be dead.

An attempt and a marker name it. Nothing of it changes bytes, or counts in any identity.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import psutil


@dataclass(frozen=True)
class WorkerProcess:
    """A process that does units.

    run      of the driver that it works for; "" where nobody said
    engine   local, spark, beam
    host     the machine's name, or what the engine calls it
    worker   the engine's own name of it, such as a Spark application and executor; may be ""
    pid      process id, of its own name space
    began    boot, name space of process ids, and start of the process: see `process_start`
    task     of Spark, where no two attempts at one task are under way at once: application, stage
             and partition; "" elsewhere
    task_attempt  number of the attempt at that task
    """

    run: str = ""
    engine: str = "local"
    host: str = ""
    worker: str = ""
    pid: int = 0
    began: str = ""
    task: str = ""
    task_attempt: int = 0

    def to_record(self) -> dict[str, Any]:
        """As it lies in `attempts/`."""
        return asdict(self)

    def to_fact(self) -> dict[str, str]:
        """As it lies in a marker, beside the host."""
        fact = {"run": self.run, "engine": self.engine, "worker": self.worker, "pid": str(self.pid)}
        return {name: value for name, value in fact.items() if value}


_worker = WorkerProcess()


def work_as(*, run: str, engine: str, worker: str = "", host: str = "") -> None:
    """Say what this process is, from now on. `host` where the engine has a name of its own."""
    global _worker
    _worker = WorkerProcess(run=run, engine=engine, worker=worker, host=host)


def at_task(task: str, attempt: int) -> None:
    """Say at which of the engine's tasks this process is now (application, stage and partition).

    To be called only where a lower attempt at the same task has ended for sure: no speculation.
    """
    global _worker
    _worker = replace(_worker, task=task, task_attempt=attempt)


def who() -> WorkerProcess:
    """What this process is."""
    pid = os.getpid()
    host = _worker.host or socket.gethostname()
    return replace(_worker, host=host, pid=pid, began=process_start(pid) or "")


def process_start(pid: int) -> str | None:
    """What no other process of any time shares with this one, beside its id; None where it is gone.

    On Linux "BOOT/NAMESPACE/TICKS": two containers may share a host's name and have processes of
    the same id. A zombie is gone.
    """
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, *fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if state in (b"Z", b"X") else f"{_name_space()}/{int(fields[18])}"

    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else f"//{process.create_time():.2f}"
    except psutil.Error:
        return None


def known_dead(about: Mapping[str, Any]) -> bool:
    """Whether the process that a record names is no more, as far as this machine can know."""
    pid, began = about.get("pid"), about.get("began") or ""
    if not isinstance(pid, int) or not isinstance(began, str) or not _is_here(about):
        return False
    now = process_start(pid)
    if not began:  # a record of an older version
        return now is None
    return began.rpartition("/")[0] == _name_space() and now != began


def known_alive(about: Mapping[str, Any]) -> bool:
    """Whether the process that a record names is there, as far as this machine can know."""
    pid, began = about.get("pid"), about.get("began")
    return isinstance(pid, int) and bool(began) and _is_here(about) and process_start(pid) == began


def _is_here(about: Mapping[str, Any]) -> bool:
    """Whether a record's process was of this machine."""
    return about.get("host") in (socket.gethostname(), who().host)


@cache
def _name_space() -> str:
    """This boot of the machine, and the name space that process ids are of."""
    if sys.platform != "linux":
        return "/"
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "/"
