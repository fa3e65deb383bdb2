"""The engine of Beam's runners: pipelines of a job's units, submitted by processes of ours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
from apache_beam.options.pipeline_options import PortableOptions, PrismRunnerOptions

from pipelines.engines import signals as stopping
from pipelines.engines.beam.dataflow import job_file, only_writes
from pipelines.engines.beam.prism import Prism, find_prism
from pipelines.engines.beam.runners import parse, refuse_impossible, short_name
from pipelines.engines.engine import Ended
from pipelines.engines.local.engine import LocalEngine
from pipelines.engines.local.pool import Member, shared_pool
from pipelines.engines.settings import HandedOver, RunSettings
from pipelines.jobs.attempts import forget_processes
from pipelines.storage.protocol import Place
from schemas.plan import Job, Unit

SUBMITTER = "pipelines.engines.beam.submitter"
CANCEL_SECONDS = 4.0  # that a runner has to take back what it got


class BeamEngine(LocalEngine):
    """Shares as pipelines: one with all that waits, or on Prism as many at a time as `--workers`.

    Prism has one SDK worker for a job, and runs its units in turn; so each share there is a job,
    with a worker pool of its own. The processes that submit, and what they or we start, end with
    the driver.
    """

    def __init__(self, job: Job, place: Place, settings: RunSettings) -> None:
        super().__init__(job, place, settings)
        refuse_impossible(settings, place)
        self.options = parse(settings)
        self.on_prism = short_name(settings.runner) == "prism"
        self.only_writes = only_writes(self.options)
        self.prism: Prism | None = None
        self._prism_of: dict[tuple[Unit, ...], int] = {}  # share -> which start of Prism it is on

    def start(self) -> None:
        """Take the process's pool, of submitting processes; start Prism where it is ours."""
        self._pool = shared_pool(self.settings.threads_per_worker, SUBMITTER)
        self.log = self._pool.log
        if self.on_prism and not self.options.view_as(PortableOptions).job_endpoint:
            location = self.options.view_as(PrismRunnerOptions).prism_location
            program = find_prism(location or "")
            self.prism = Prism(program, self.log, self._pool.environment)
            self.prism.endpoint()

    def share_size(self, waiting: int) -> int:
        """All, unless a pipeline is under way; on Prism as worker processes would get them."""
        if self.on_prism:
            return super().share_size(waiting)
        return 0 if self.pool.busy() else waiting

    def begin(self, share: Sequence[Unit]) -> None:
        """Have it submitted."""
        super().begin(share)
        if self.prism is not None:
            self._prism_of[tuple(share)] = self.prism.starts

    def described(self, share: Sequence[Unit]) -> dict[str, Any]:
        """A share with the runner and its options."""
        options = [*self.settings.beam_options, f"--runner={self.settings.runner}"]
        if self.prism is not None:
            options.append(f"--job_endpoint={self.prism.endpoint()}")

        portable = self.options.view_as(PortableOptions)
        kind, config = portable.environment_type, portable.environment_config
        if self.on_prism and kind == "PROCESS" and not config:
            command = {"command": self._process_command()}
            options.append(f"--environment_config={json.dumps(command)}")

        return {
            **super().described(share),
            "options": options,
            "own_workers": self.on_prism and kind in (None, "", "EXTERNAL") and not config,
            "ticket": "" if self.only_writes else self.ticket,
        }

    def wait(self, seconds: float) -> list[Ended]:
        """The shares that came to an end. Raises HandedOver where a job was only written."""
        ended = [self._with_excuse(one) for one in super().wait(seconds)]
        stopping.pass_or_wait()  # a signal's own end makes shares end, too
        if self.only_writes and ended and not ended[0].problem:
            file = job_file(self.options)
            where = f"is written to {file}" if file else "can be made; --dataflow_job_file keeps it"
            raise HandedOver(
                f"the Dataflow job of {len(ended[0].share):,} parts {where}; when it has run, "
                f"`finish {self.place.url}` writes the manifest"
            )
        return ended

    def look(self) -> None:
        """Where Prism has ended, end what was submitted to it, which may wait for ever."""
        lost = [member for member in self.pool.busy() if not self._served(member.share)]
        if lost:
            killed = self._processes_below(lost)
            for member in lost:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, signal.SIGKILL)

            forget_processes(self.place, killed)

    def cancel(self) -> set[int]:
        """Have clusters take back what they got, unless they are to go on; then end all."""
        if self._pool is not None and not self.on_prism and not self.settings.detach:
            self._ask_to_cancel()

        below = self._processes_below(self._pool.members if self._pool else ())
        killed = super().cancel() | below
        if self.prism is not None:
            self.prism.stop()
        return killed

    def rest(self) -> None:
        """Prism ends; the submitting processes stay, with their worker pools."""
        super().rest()
        if self.prism is not None:
            self.prism.stop()

    def _with_excuse(self, ended: Ended) -> Ended:
        """A share's end, which says so where Prism ended under it."""
        served = self._served(ended.share)
        self._prism_of.pop(ended.share, 0)
        if served or not ended.problem or ended.final:
            return ended
        return replace(ended, problem="Prism ended", dead=frozenset(), killed=False, excused=True)

    def _served(self, share: tuple[Unit, ...]) -> bool:
        """Whether the Prism that got a share lives, where it is ours."""
        prism = self.prism
        return prism is None or (prism.alive and prism.starts == self._prism_of.get(share))

    def _ask_to_cancel(self) -> None:
        members = [member.process for member in self.pool.busy()]
        for process in members:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGTERM)

        until = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < until and any(process.poll() is None for process in members):
            time.sleep(0.05)

    @staticmethod
    def _processes_below(members: Sequence[Member]) -> set[int]:
        """Ids of what submitting processes have started: worker pools, workers, job servers."""
        below: set[int] = set()
        for member in list(members):
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(member.pid).children(recursive=True)
                below |= {child.pid for child in children}

        return below

    def _process_command(self) -> str:
        """The program of a PROCESS environment on this machine: this Python, with these modules."""
        path = os.path.join(self.pool.folder, "beam-worker")
        environment = self.pool.environment
        python = f"exec '{sys.executable}' -m pipelines.engines.beam.process_worker"
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\nPYTHONPATH='{environment['PYTHONPATH']}' {python} \"$@\"\n")
        os.chmod(path, stat.S_IRWXU)
        return path
