"""The engine of Apache Spark: all units that wait are one Spark job, a task a unit, RDDs only."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Sequence

from pipelines.engines.engine import Ended, Engine
from pipelines.engines.settings import RunSettings
from pipelines.engines.spark.session import (
    Session,
    close_session,
    is_local,
    open_session,
)
from pipelines.engines.spark.shipping import root_of_packages, write_archive
from pipelines.engines.spark.task import make_task
from pipelines.engines.workers.ticket import Unfit
from pipelines.storage.protocol import Place
from schemas.errors import JobFailed, UserError
from schemas.plan import Job, Unit

SECONDS_VARIABLE = "RRT_EXECUTOR_SECONDS"
SECONDS = 60.0  # without an executor: Spark itself would wait for ever
JOIN_SECONDS = 5.0  # in which a cancelled job must give its thread back
_CAUSE = re.compile(r"^Caused by: (.+)$", re.MULTILINE)
_NO_PYTHON = re.compile(r'Cannot run program "([^"]+)"')
_OTHER_PYTHON = re.compile(
    r"Python in worker has different version \(?(\d+)[., ]+(\d+)\)? than that in driver ([\d.]+)"
)


class SparkEngine(Engine):
    """Units on the executors of a Spark context. Before the first, all free slots prove fit."""

    def __init__(self, job: Job, place: Place, settings: RunSettings) -> None:
        super().__init__(job, place)
        self.settings = settings
        self.session: Session | None = None
        self.group = f"rrt-{job.stage}-{secrets.token_hex(4)}"
        self._share: tuple[Unit, ...] = ()
        self._ends: queue.SimpleQueue[Ended | Exception] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._fit = False
        self._without_since: float | None = None
        text = os.environ.get(SECONDS_VARIABLE, "")
        self._seconds = float(text) if text.replace(".", "", 1).isdecimal() else SECONDS

    def start(self) -> None:
        """Open the session, and ship what executors need."""
        self.session = open_session(self.settings)
        context, master = self.session.context, self.session.master
        self.log = self.session.log
        for path in self.settings.py_files:
            if "://" not in path and not os.path.exists(path):
                raise UserError(f"--py-files: {path} is absent")
            context.addPyFile(path)

        self._archive = ""
        if not is_local(master):
            archive = write_archive(self.session.folder, self.job)
            self._archive = os.path.basename(archive).removesuffix(".zip")
            context.addArchive(f"{archive}#{self._archive}")

    def share_size(self, waiting: int) -> int:
        """All, unless a job is under way."""
        return 0 if self._share else waiting

    def begin(self, share: Sequence[Unit]) -> None:
        """Submit a job from a thread, whose properties of Spark's are its own."""
        from pyspark import InheritableThread

        self._share, self._without_since = tuple(share), None
        self._thread = InheritableThread(target=self._submit, args=(self._share,), daemon=True)
        self._thread.start()

    def _submit(self, share: tuple[Unit, ...]) -> None:
        assert self.session is not None
        context = self.session.context
        order = {
            "application": context.applicationId,
            "header": self.job.to_json(),
            "ticket": self.ticket,
            "threads": self.settings.threads_per_worker,
            "speculation": context.getConf().get("spark.speculation", "false") == "true",
        }
        root = root_of_packages() if is_local(self.session.master) else ""
        task = make_task(root, self._archive, order)
        try:
            context.setJobGroup(self.group, f"{self.job.stage}: {len(share):,} units of work")
            if not self._fit:
                slots = min(len(share), max(1, context.defaultParallelism))
                self._refuse_unfit(context.parallelize([], slots).mapPartitions(task).collect())
                self._fit = True
            records = [json.dumps(unit.record) for unit in share]
            units = context.parallelize(records, len(records))
            self._refuse_unfit(units.mapPartitions(task).collect())
            self._ends.put(Ended(share))
        except Exception as error:  # noqa: BLE001  py4j's, of whatever the JVM raised
            mistake = error if isinstance(error, UserError) else _mistake(str(error))
            self._ends.put(mistake or Ended(share, f"Spark gave the job up: {_words(error)}"))

    def _refuse_unfit(self, reports: list[str]) -> None:
        for report in map(json.loads, reports):
            if "unfit" in report:
                raise Unfit(report["unfit"])

    def under_way(self) -> list[Unit]:
        """Units of the job under way."""
        return list(self._share)

    def wait(self, seconds: float) -> list[Ended]:
        """The job's end. Raises UserError where executors cannot work."""
        try:
            ended = self._ends.get(timeout=seconds)
        except queue.Empty:
            return []
        self._share = ()
        if isinstance(ended, Exception):
            raise ended
        return [ended]

    def look(self) -> None:
        """Raise JobFailed where Spark would wait for ever: no executor, a stopped context."""
        assert self.session is not None
        if not self.session.alive:
            raise JobFailed(
                f"{self.job.stage}: Spark stopped its context ({self.session.master}); the same "
                f"command goes on (log: {self.log})"
            )
        if is_local(self.session.master) or self._executors() > 0:
            self._without_since = None
            return

        now = time.monotonic()
        self._without_since = self._without_since or now
        if now - self._without_since > self._seconds:
            raise JobFailed(
                f"{self.job.stage}: {self.session.master} has had no executor for "
                f"{self._seconds:g} s; look whether its workers live and have the cores and the "
                f"memory that executors want; the same command goes on"
            )

    def _executors(self) -> int:
        """Executors that the driver knows of now."""
        assert self.session is not None
        tracker = self.session.context._jsc.sc().statusTracker()
        return len(tracker.getExecutorInfos()) - 1  # the driver counts as one

    def cancel(self) -> set[int]:
        """Cancel the job; executors end its tasks within seconds."""
        if self.session is not None and self._share:
            self._share = ()
            thread = threading.Thread(target=self._cancel, daemon=True)
            thread.start()
            thread.join(3.0)
        return set()

    def _cancel(self) -> None:
        assert self.session is not None
        try:
            self.session.context.cancelJobGroup(self.group)
        except Exception as error:  # noqa: BLE001  a context that is gone has nothing to cancel
            print(f"Spark: {_words(error)}", file=sys.stderr)

    def rest(self) -> None:
        """The context stays for the next job."""

    def close(self, *, keep_log: bool = False) -> None:
        """Stop a context of ours, after the thread that waits for its job: both need the JVM."""
        end = time.monotonic() + JOIN_SECONDS
        while self._waits() and time.monotonic() < end:
            self._cancel()  # again: its job may have begun after the last time
            assert self._thread is not None
            self._thread.join(0.5)

        before = logging.root.manager.disable
        if self._waits():  # what it says of the JVM that is gone is no news
            logging.disable(logging.CRITICAL)
        try:
            close_session()
            if self._thread is not None:
                self._thread.join(1.0)
        finally:
            logging.disable(before)

    def _waits(self) -> bool:
        """Whether the thread waits for a job of a context that is there."""
        there = self.session is not None and self.session.alive
        return there and self._thread is not None and self._thread.is_alive()

    def remove_leftovers(self) -> None:
        """Spark's own folders go with its JVM, which ends with this process."""


def _mistake(text: str) -> UserError | None:
    """What a user can set right, in an error of Spark's."""
    if found := _OTHER_PYTHON.search(text):
        worker, driver = f"{found[1]}.{found[2]}", found[3].rstrip(".")
        return UserError(
            f"executors have Python {worker}, the driver has {driver}: name one of that version by "
            f"--executor-python"
        )
    if found := _NO_PYTHON.search(text):
        return UserError(
            f"executors have no Python at {found[1]}: name theirs by --executor-python"
        )
    return None


def _words(error: BaseException) -> str:
    """The cause of an error of Spark's, in one line."""
    text = str(error)
    causes = _CAUSE.findall(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = causes[-1] if causes else (lines[0] if lines else type(error).__name__)
    return words[:300]
