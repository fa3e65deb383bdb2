"""Units done in this process: one worker (one model), each commit beside the next unit's work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipelines.engines.processes import limit_threads
from pipelines.engines.workers.stall_watch import at_work
from pipelines.jobs.do_unit import begin_unit
from pipelines.jobs.errors import write_error
from pipelines.jobs.unit_worker import UnitWorker, make_worker
from pipelines.storage.place import open_place
from schemas.plan import Job, Unit

_lock = threading.Lock()  # a runner may call from several threads: one model, one unit at a time
_workers: dict[str, UnitWorker] = {}  # of the job at hand, by the job's header
_committer = ThreadPoolExecutor(1, "commit")


class Outcome(NamedTuple):
    """A unit that came to its end, and whether its marker was dropped."""

    unit: Unit
    done: bool


class UnitRunner:
    """Does a job's units one after the other: what every engine calls.

    A commit waits for the disk, so that it runs in a thread while the next unit is under way: `do`
    gives the outcome of the unit before, `finish` that of the last. Exceptions of a unit are
    written to `errors/`, never raised.
    """

    def __init__(self, job: Job, threads: int) -> None:
        self.header, self.output, self.threads = job.to_json(), job.output, threads
        self._committing: tuple[Unit, Future[bool]] | None = None

    def do(self, unit: Unit) -> Outcome | None:
        """Do a unit up to its commit; gives the outcome of the one before, if there was one."""
        with _lock, at_work():
            commit = self._begin(unit)

        before = self.finish()  # so one unit at most waits for its commit
        self._committing = unit, _committer.submit(commit)
        return before

    def finish(self) -> Outcome | None:
        """Wait for the commit under way; gives its outcome, if there was one."""
        committing, self._committing = self._committing, None
        with at_work():
            return Outcome(committing[0], committing[1].result()) if committing else None

    def _begin(self, unit: Unit) -> Callable[[], bool]:
        try:
            worker = self._worker()
        except Exception as error:  # noqa: BLE001  the driver judges it
            write_error(open_place(self.output), unit.name, error)
            return lambda: False

        return begin_unit(worker, unit)

    def _worker(self) -> UnitWorker:
        if self.header not in _workers:
            limit_threads(self.threads)
            _workers.clear()
            _workers[self.header] = make_worker(Job.from_json(self.header))
            limit_threads(self.threads)  # for the libraries that the worker loaded

        return _workers[self.header]


def run_share(job: Job, threads: int) -> None:
    """The local engine's plain loop over the job's units; returns when all are committed."""
    runner = UnitRunner(job, threads)
    for unit in job.units:
        runner.do(unit)

    runner.finish()
