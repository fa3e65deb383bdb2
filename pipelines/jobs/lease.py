"""The driver's lease on an output: its heartbeat, and what a second driver is refused by.

A courtesy: safety is in the exclusive creates of markers alone. Where two drivers get through all
the same, both do the same work, and contents are equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from pipelines.jobs.worker_process import WorkerProcess, known_dead, who
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.inside import read_json, read_strictly
from schemas.layout import LEASE_FOLDER, LEASE_NAME

SECONDS_VARIABLE = "RRT_LEASE_SECONDS"
SECONDS = 60.0
MOST_SECONDS = 3600.0  # that another driver's lease is watched for, whatever it says
WRITE_SECONDS = 2.0  # that a renewal under way is waited for
RENEWALS = 6  # in the time of a lease


@dataclass(frozen=True)
class LeaseRecord:
    """What lies in lease/driver.json.

    seconds   it holds for so long after each renewal
    count     of its renewals
    detached  its driver has ended, and the workers go on without it
    """

    run: str
    driver: WorkerProcess
    seconds: float
    count: int = 0
    detached: bool = False

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()

    @property
    def where(self) -> str:
        """Its driver in words."""
        return f"{self.driver.engine}, process {self.driver.pid} at {self.driver.host}"


def read_lease(place: Place) -> LeaseRecord | None:
    """The lease of an output; None where there is none that can be read. Raises Unreachable."""
    with contextlib.suppress(OSError, ValueError):
        return read_strictly(read_json(place.read_record(LEASE_NAME)), LeaseRecord)
    return None


def lease_seconds() -> float:
    """How long a lease holds. Raises UserError for what is no number of seconds."""
    text = os.environ.get(SECONDS_VARIABLE, "")
    with contextlib.suppress(ValueError):
        seconds = float(text) if text else SECONDS
        if 0 < seconds <= MOST_SECONDS:
            return seconds
    raise UserError(
        f"{SECONDS_VARIABLE} is {text!r}; it must be a number of seconds, at most {MOST_SECONDS:g}"
    )


class Lease:
    """A driver's: taken before anything is written, renewed by a thread, removed at the end.

    run  names this work of the driver: in the lease, attempts and markers
    """

    def __init__(self, place: Place, engine: str) -> None:
        self.place, self.engine, self.seconds = place, engine, lease_seconds()
        self.run = secrets.token_hex(8)
        self._record: LeaseRecord | None = None  # as it was last written
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = ""

    def take(self) -> None:
        """Hold the output from now on; the second time nothing happens.

        Local workers of a local folder need no lease, since they die with their driver and a lock
        holds the folder; but another's is respected. One whose driver is dead is taken over: at
        once where it was of this machine, else when it was not renewed for its time.

        Raises UserError where another driver is at work, or workers that were detached.
        """
        if self._record is not None:
            return

        driver = replace(who(), run=self.run, engine=self.engine)
        record = LeaseRecord(self.run, driver, self.seconds)
        if self.engine == "local" and self.place.local:
            if self.place.exists(LEASE_NAME):
                self._wait_for_end()
            self._record = record
            return

        while not self.place.create(LEASE_NAME, record.to_bytes()):
            self._wait_for_end()
        self._record = record
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise UserError where the lease was lost: this process stood still for too long."""
        if self._lost:
            raise UserError(self._lost)

    def detach(self) -> None:
        """Leave the lease behind: workers go on without this driver. `finish` removes it."""
        self._stop()
        if self._thread is not None and self._record is not None:
            left = replace(self._record, detached=True)
            self.place.write(LEASE_NAME, left.to_bytes())
            self._thread = None

    def release(self) -> None:
        """Remove the lease, where it is still this driver's."""
        self._stop()
        if self._thread is None:
            return

        self._thread = None
        with contextlib.suppress(OSError, UserError):  # then it runs out
            lease = read_lease(self.place)
            if lease is not None and lease.run == self.run:
                remove_lease(self.place)

    def _stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(WRITE_SECONDS)

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / RENEWALS):
            with contextlib.suppress(OSError, UserError):
                lease = read_lease(self.place)
                if lease is None or lease.run != self.run:
                    self._lost = self._how_lost(lease)
                    return

                assert self._record is not None
                self._record = replace(self._record, count=self._record.count + 1)
                self.place.write(LEASE_NAME, self._record.to_bytes(), durable=False)

    def _how_lost(self, lease: LeaseRecord | None) -> str:
        url = self.place.url
        if lease is None:
            return (
                f"{url}: the folder, or its {LEASE_NAME}, was removed while the command ran; give "
                f"the command again"
            )
        return (
            f"{url} was taken over by another command ({lease.where}) while this one stood still; "
            f"wait for its end"
        )

    def _wait_for_end(self) -> None:
        """Return when the lease that stands there counts no more, and is removed.

        Raises UserError where its driver lives.
        """
        lease = read_lease(self.place)
        if lease is not None and lease.detached:
            raise UserError(
                f"{self.place.url} is being made by workers that a command with --detach left "
                f"behind ({lease.where}): 'finish {self.place.url}' ends it when they are done; "
                f"where they are no more, remove {LEASE_NAME} there"
            )
        if lease is not None and not known_dead(asdict(lease.driver)):
            seconds = min(lease.seconds, MOST_SECONDS)
            print(
                f"{self.place.url} is held by another command ({lease.where}); waiting up to "
                f"{seconds:g} s to see whether that lives",
                file=sys.stderr,
            )
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(min(1.0, seconds / RENEWALS / 2))
                now = read_lease(self.place)
                if now is None:
                    break
                if now != lease:
                    raise UserError(
                        f"{self.place.url} is being made by another command ({lease.where}); wait "
                        f"for its end, or give another place"
                    )
        remove_lease(self.place)


@contextlib.contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold an output for this process while the block runs: by a lock, elsewhere by a lease.

    Raises UserError where another command holds it.
    """
    with place.alone():
        lease = Lease(place, "local")
        lease.take()
        try:
            yield
        finally:
            lease.release()


def remove_lease(place: Place) -> None:
    """Remove an output's lease."""
    place.remove(LEASE_NAME)
    place.remove_empty_folder(LEASE_FOLDER)
