"""Kills the worker that started it when that computes nothing at a unit for long (Linux).

A process of its own, started as a file by ``python -I -S``: a worker that is stopped, or that holds
Python's lock in a call that never ends, cannot look after itself. It reads lines: "begin" and "end"
of a unit, and "spent SECONDS" of processor time that is no sign of life. It ends with its worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

SIGN_OF_LIFE = 0.2  # seconds of processor time
LOOK_SECONDS = 5.0  # between two looks, at most


def process_of(pid: int) -> tuple[int, float, str] | None:
    """(parent, seconds of processor time, time of its start) of a process; None where it is gone.

    With the time of those of its children that have ended.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if state in (b"Z", b"X"):
        return None
    ticks = sum(map(int, fields[10:14]))
    return int(fields[0]), ticks / os.sysconf("SC_CLK_TCK"), fields[18].decode()


def family(pid: int) -> dict[int, float]:
    """A process and all below it: id -> seconds of processor time. This process is left out."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    all_of_them = {number: about for number in numbers if (about := process_of(number))}
    members = {pid: all_of_them[pid][1]} if pid in all_of_them else {}
    while more := {
        number: seconds
        for number, (parent, seconds, _) in all_of_them.items()
        if parent in members and number not in members and number != os.getpid()
    }:
        members.update(more)
    return members


def kill(pid: int, folder: str) -> None:
    """Leave a note of it, then SIGKILL to the worker, all below it, and its group."""
    with contextlib.suppress(OSError):
        open(f"{folder}/rrt-stalled-{pid}", "wb").close()
    for number in family(pid):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)

    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def watch(pid: int, seconds: float, folder: str) -> None:
    """Until the worker ends; `folder`: where a note is left of its being killed."""
    worker = process_of(pid)
    begun, received = 0, b""  # units under way; of a line that is not complete yet
    computed, active_at = 0.0, time.monotonic()
    while worker is not None and (now := process_of(pid)) is not None and now[2] == worker[2]:
        pause = min(LOOK_SECONDS, seconds / 10) if begun else LOOK_SECONDS
        if select.select([0], [], [], pause)[0]:
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                word, _, value = line.partition(b" ")
                if word == b"spent":
                    computed += float(value)
                elif word == b"begin":
                    begun, active_at = begun + 1, time.monotonic()
                else:
                    begun, active_at = begun - 1, time.monotonic()

        if begun:
            total = sum(family(pid).values())
            computed = min(computed, total + SIGN_OF_LIFE)  # the time of a lost child is lost
            if total - computed > SIGN_OF_LIFE:
                computed, active_at = total, time.monotonic()
            elif time.monotonic() - active_at > seconds:
                kill(pid, folder)
                return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
