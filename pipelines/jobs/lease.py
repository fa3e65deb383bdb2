"""The driver's lease on an output: its heartbeat, by which workers know that it lives.

A courtesy: safety is in the exclusive creates of markers alone. Where two drivers get through all
the same, both do the same work, and contents are equal.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from dataclasses import asdict, dataclass, replace

from pipelines.jobs.worker_process import WorkerProcess, who
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.inside import read_json, read_strictly
from schemas.layout import LEASE_FOLDER, LEASE_NAME

SECONDS_VARIABLE = "RRT_LEASE_SECONDS"
SECONDS = 60.0
RENEWALS = 6  # in the time of a lease


@dataclass(frozen=True)
class LeaseRecord:
    """What lies in lease/driver.json: who, for how long, and a count of its renewals."""

    run: str
    driver: WorkerProcess
    seconds: float
    count: int = 0

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()


def read_lease(place: Place) -> LeaseRecord | None:
    """The lease of an output; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_strictly(read_json(place.read_record(LEASE_NAME)), LeaseRecord)
    return None


def lease_seconds() -> float:
    """How long a lease holds. Raises UserError for what is no number."""
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        seconds = float(text) if text else SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise UserError(f"{SECONDS_VARIABLE} is {text!r}; it must be a number of seconds")
    return seconds


class Lease:
    """Held by a driver; renewed by a thread of its own."""

    def __init__(self, place: Place, engine: str) -> None:
        self.place, self.engine, self.seconds = place, engine, lease_seconds()
        self.run = secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def needed(self) -> bool:
        """Local workers of a local folder need none: they die with their driver, and a lock holds
        the folder.
        """
        return self.engine != "local" or not self.place.local

    def take(self) -> None:
        """Write the lease, and renew it from now on; nothing happens where it is not needed."""
        if not self.needed or self._thread is not None:
            return

        driver = replace(who(), run=self.run, engine=self.engine)
        self.record = LeaseRecord(self.run, driver, self.seconds)
        self.place.write(LEASE_NAME, self.record.to_bytes(), durable=False)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Remove the lease."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self.place.remove(LEASE_NAME)
            self.place.remove_empty_folder(LEASE_FOLDER)

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / RENEWALS):
            self.record = replace(self.record, count=self.record.count + 1)
            with contextlib.suppress(OSError, UserError):
                self.place.write(LEASE_NAME, self.record.to_bytes(), durable=False)
