"""How to run a job, never what: runner, workers, threads."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.options import Checked, option

if TYPE_CHECKING:
    from schemas.plan import Job

LOCAL = "local"


@dataclass(frozen=True)
class RunSettings(Checked):
    """How to run, never what: none of these changes bytes."""

    runner: str = option("local, or a Beam runner such as SparkRunner or DataflowRunner", LOCAL)
    workers: int = option(
        "worker processes of the local runner; 0: one a core", 0, least=0, most=1_024
    )
    threads_per_worker: int = option(
        "threads that torch, faiss and OpenCV get in a worker", 1, least=1, most=1_024
    )
    overwrite: bool = option(
        "make outputs again that another recipe made; old and new are on the disk until the new "
        "one is whole",
        False,
    )
    stall_minutes: float = option(
        "a local worker that computes nothing for so long is killed and replaced",
        10.0,
        above=0,
        most=525_600,
    )
    dry_run: bool = option("report what it would cost, from a measured probe; make nothing", False)
    on: tuple[int, ...] = option(
        "with --dry-run: worker processes elsewhere to report the time for, such as 8,64",
        (),
        least=1,
        most=1_000_000,
    )
    json: str = option("with --dry-run: a file that the estimate is written to, too", "")
    beam_options: tuple[str, ...] = option("", ())  # set from the flags that are not known here
    plan_only: bool = option("", False)  # set by outputs.next_job: the first unfinished job is
    # planned, then `Planned` is raised
    work_bytes: int = option("", 0)  # set by a stage: about what a worker's data take in memory

    @property
    def worker_count(self) -> int:
        """Worker processes of the local runner."""
        if self.workers > 0:
            return self.workers

        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Planned(Exception):
    """A job that is not finished has its plan, and no more was requested."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.output)
        self.job = job
