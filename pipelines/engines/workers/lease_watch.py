"""A worker's watch over its driver's lease: where that is silent, the worker ends itself."""

from __future__ import annotations

import os
import signal
import threading
import time

from pipelines.engines.workers.stall_watch import at_unit, say
from pipelines.jobs.lease import LeaseRecord, read_lease
from pipelines.storage.place import open_place
from schemas.errors import UserError

LOOKS = 12  # in the time of a lease


class LeaseWatch:
    """A thread that ends this process by SIGKILL when the lease was not renewed for its time.

    By this machine's own clock. A lease that was removed, or is another driver's by now, ends a
    process that is at a unit; an idle one may get work of its engine's next job.
    """

    def __init__(self, url: str, run: str, seconds: float) -> None:
        self.url, self.run, self.seconds = url, run, seconds
        self.ended = threading.Event()
        threading.Thread(target=self._look, name="lease", daemon=True).start()

    def _look(self) -> None:
        place = open_place(self.url)
        seen: LeaseRecord | None = None
        changed_at = time.monotonic()
        while not self.ended.wait(self.seconds / LOOKS):
            computed = time.process_time()
            try:
                lease = read_lease(place)
            except (OSError, UserError):  # nothing is known: the place does not answer
                changed_at = time.monotonic()
                continue
            finally:
                say(f"spent {time.process_time() - computed:.6f}")  # it is no sign of life

            mine = lease is not None and lease.run == self.run
            if (mine and lease != seen) or not (mine or at_unit()):
                seen, changed_at = lease, time.monotonic()
            elif time.monotonic() - changed_at > self.seconds:
                os.kill(os.getpid(), signal.SIGKILL)


_watch: LeaseWatch | None = None


def watch_lease(url: str, run: str, seconds: float) -> None:
    """Watch this lease from now on, and no other; "": none."""
    global _watch
    if _watch is not None:
        _watch.ended.set()
    _watch = LeaseWatch(url, run, seconds) if url and seconds else None
