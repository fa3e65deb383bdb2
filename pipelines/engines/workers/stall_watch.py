"""A worker's own stall watch: who stands still at a unit is killed by a small process beside it.

Python's own library alone is imported, so that it can be started before anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import resources

NOTE = "rrt-stalled-{}"  # in the worker's temporary folder: the process of this id was killed
SIGN_OF_LIFE = 0.2  # seconds of processor time; as in watchdog.py


CHANGES = {"begin": 1, "end": -1}  # of the units under way

_units = 0  # under way in this process


class StallWatch:
    """Told when units begin and end; kills this process where it computes nothing meanwhile."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.pid = seconds, os.getpid()
        self.spent_elsewhere, self.begun, self.begun_at = 0.0, 0, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            self._start()
        else:
            threading.Thread(target=self._look, daemon=True).start()

    def say(self, line: str) -> None:
        """Pass a line on to the watchdog; one that was killed is started again."""
        if line in CHANGES:
            self.begun, self.begun_at = self.begun + CHANGES[line], time.monotonic()
        else:
            self.spent_elsewhere += float(line.partition(" ")[2])
        if self._process is None or self._process.stdin is None:
            return

        try:
            self._process.stdin.write(f"{line}\n".encode())
        except BrokenPipeError:
            self._process.wait()
            self._start()

    def _start(self) -> None:
        source = resources.files(__package__) / "watchdog.py"
        program = [str(source)] if os.path.isfile(str(source)) else ["-c", source.read_text()]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", *program),
                *(str(self.pid), str(self.seconds), tempfile.gettempdir()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            bufsize=0,
        )
        for _ in range(self.begun):
            self._process.stdin.write(b"begin\n")  # type: ignore[union-attr]

    def _look(self) -> None:
        """Elsewhere than on Linux: a thread does it, which a held lock of Python's holds up."""
        computed, active_at = 0.0, 0.0
        while True:
            time.sleep(min(5.0, self.seconds / 10))
            times = os.times()
            total = sum(times[:4]) - self.spent_elsewhere
            if not self.begun or total - computed > SIGN_OF_LIFE:
                computed, active_at = total, time.monotonic()
            elif time.monotonic() - max(active_at, self.begun_at) > self.seconds:
                with contextlib.suppress(OSError):
                    open(os.path.join(tempfile.gettempdir(), NOTE.format(self.pid)), "wb").close()
                os.kill(self.pid, signal.SIGKILL)


_watch: StallWatch | None = None
_lock = threading.Lock()


def watch_stalls(seconds: float) -> None:
    """Watch this process from now on; 0: do not."""
    global _watch
    with _lock:
        if _watch is None or (_watch.seconds, _watch.pid) != (seconds, os.getpid()):
            _watch = StallWatch(seconds) if seconds else None


def say(line: str) -> None:
    """ "begin" or "end" of a unit, or "spent SECONDS" of processor time that is no sign of life."""
    global _units
    with _lock:
        _units += CHANGES.get(line, 0)
        if _watch is not None and _watch.pid == os.getpid():
            _watch.say(line)


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """While the block runs, a unit is under way."""
    say("begin")
    try:
        yield
    finally:
        say("end")


def at_unit() -> bool:
    """Whether a unit is under way."""
    return _units > 0


def stood_still(folder: str, pid: int) -> bool:
    """Whether a process with this temporary folder was killed since it stood still; said once."""
    try:
        os.remove(os.path.join(folder, NOTE.format(pid)))
    except OSError:
        return False
    return True
