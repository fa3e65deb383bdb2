"""What tries at units leave in `attempts/` and `scratch/`: which of them count, and which may go.

A try counts against its unit only where it is known to have ended: it failed, or its process is
dead and was not cancelled. Of several that are under way at once none counts against another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.jobs.worker_process import WorkerProcess, known_alive, known_dead, who
from pipelines.storage.protocol import Place
from schemas.inside import read_json

FOLDER, SCRATCH = "attempts", "scratch"
OLD_SECONDS = 24 * 3600.0  # what nobody can know of goes after a day
SCRATCH_PREFIX = "rrt-attempt-"  # in temporary folders, where the place is no local disk
_ATTEMPT = re.compile(r"(.+\.[0-9a-f]{12})\.json", re.DOTALL)
_REPORT = re.compile(r"(.+\.[0-9a-f]{12})\.json\.progress(?:\.tmp)?", re.DOTALL)
_SCRATCH = re.compile(r".+\.[0-9a-f]{12}", re.DOTALL)


def records(place: Place, unit: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(name below `attempts/`, what lies there) of the tries at a unit; "": at all units.

    An empty record stands for one that cannot be read.
    """
    for name in () if place.is_link(FOLDER) else place.names(FOLDER):
        if _ATTEMPT.fullmatch(name) and name.startswith(f"{unit}." if unit else ""):
            about: Any = None
            with contextlib.suppress(ValueError):
                try:
                    about = read_json(place.read_record(f"{FOLDER}/{name}"))
                except OSError:  # it has ended meanwhile
                    continue
            yield name, about if isinstance(about, dict) else {}


def has_ended(about: dict[str, Any], now: WorkerProcess) -> bool:
    """Whether a try is known to have ended otherwise than well or by being cancelled."""
    if any(about.get(word) is True for word in ("failed", "dead", "killed")):
        return True
    if "run" not in about:  # of an older version, whose workers ended with their driver
        return True

    mine = about.get("run") == now.run
    if about.get("engine") == "local" and not mine:
        return not known_alive(about)  # its driver held the folder alone, and is no more
    if mine and now.task and about.get("task") == now.task:
        return _number(about.get("task_attempt")) < now.task_attempt

    # of another run on a cluster: cancelled with its driver, as far as anybody can know
    return (mine or about.get("engine") == "local") and known_dead(about)


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else float("inf")


def of_processes(place: Place, pids: Set[int]) -> list[str]:
    """Names of the tries that processes of this machine left behind."""
    host = who().host
    return [
        name
        for name, about in (records(place) if pids else ())
        if about.get("pid") in pids and about.get("host") == host
    ]


def note(place: Place, name: str, word: str) -> None:
    """Write down of a try that it "failed", is "dead", or was "killed" by the system."""
    with contextlib.suppress(OSError, ValueError):
        about = json.loads(place.read(f"{FOLDER}/{name}"))
        data = json.dumps({**about, word: True}).encode()
        place.write(f"{FOLDER}/{name}", data, durable=False)


def forget(place: Place, run: str, killed: Set[int]) -> None:
    """Remove a run's tries that were cancelled: nothing speaks against their units.

    Those of local processes that were killed, and all of other engines' that were under way.
    """
    host = who().host
    for name, about in records(place):
        local = about.get("engine", "local") == "local"
        own = about.get("pid") in killed and about.get("host") == host
        if own or (not local and about.get("run") == run and not about.get("failed")):
            with contextlib.suppress(OSError):
                _remove(place, name)


def forget_processes(place: Place, pids: Set[int]) -> None:
    """Remove the tries of processes of this machine that ended by no fault of their units."""
    for name in of_processes(place, pids):
        with contextlib.suppress(OSError):
            _remove(place, name)


def _remove(place: Place, name: str) -> None:
    place.remove(f"{FOLDER}/{name}")
    if place.local:
        place.remove(f"{FOLDER}/{name}.progress")


def sweep_attempts(place: Place, run: str) -> None:
    """Remove what tries left behind: those of this run, those that have ended, those of a day ago.

    Others may be under way, for another driver or for none.
    """
    # Of local places alone. A try makes its file before its folder and its reports: these are
    # listed first, and without that file they are left over.
    linked = place.is_link(FOLDER) or place.is_link(SCRATCH) or not place.local
    reports = [] if linked else [name for name in place.names(FOLDER) if ".json." in name]
    folders = [] if linked else place.folders(SCRATCH)
    now, kept = who(), set[str]()
    for name, about in records(place):
        at = about.get("at")
        old = isinstance(at, int | float) and time.time() - at > OLD_SECONDS
        if old or about.get("run") == run or has_ended(about, now):
            _remove(place, name)
        else:
            kept.add(name.removesuffix(".json"))

    for name in reports:
        match = _REPORT.fullmatch(name)
        if match and match[1] not in kept:
            place.remove(f"{FOLDER}/{name}")
    for name in folders:
        if _SCRATCH.fullmatch(name) and name not in kept:
            place.remove_folder(f"{SCRATCH}/{name}")
    place.remove_empty_folder(SCRATCH)
    place.remove_empty_folder(FOLDER)


def temporary_scratch() -> str:
    """A new scratch folder in the temporary folder, which names this process."""
    _remove_old_scratch(os.getpid())
    me = who()
    return tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{me.pid}-{me.began.replace('/', '-')}-")


@cache
def _remove_old_scratch(_pid: int) -> None:
    """Once a process: remove the scratch folders of processes of this machine that are no more."""
    host = who().host
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, *began, _ = path.name.removeprefix(SCRATCH_PREFIX).split("-")
            *boot, space, ticks = began
            about = {"host": host, "pid": int(pid), "began": f"{'-'.join(boot)}/{space}/{ticks}"}
            if known_dead(about) and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
