"""How to run a job, never what: runner, workers, threads."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.options import Checked, option, shown
from schemas.errors import UserError

if TYPE_CHECKING:
    from schemas.plan import Job

LOCAL = "local"

# Those that Beam knows by a name: spelled out, since Beam takes seconds to import.
BEAM_RUNNERS = (
    "BundleBasedDirectRunner",
    "DataflowRunner",
    "DirectRunner",
    "FlinkRunner",
    "FnApiRunner",
    "InteractiveRunner",
    "KafkaStreamsRunner",
    "PortableRunner",
    "PrismRunner",
    "PythonRPCDirectRunner",
    "SparkRunner",
    "SwitchingDirectRunner",
    "TestDataflowRunner",
    "TestDirectRunner",
)


@dataclass(frozen=True)
class RunSettings(Checked):
    """How to run, never what: none of these changes bytes."""

    engine: str = option(
        "where units are done: local (worker processes of this machine), spark or beam (any runner "
        "of Apache Beam, which --runner names)",
        "",
        (LOCAL, "spark", "beam"),
    )
    runner: str = option(
        "local, or a Beam runner such as PrismRunner or DataflowRunner, which means --engine beam",
        LOCAL,
    )
    master: str = option(
        "of Spark: local[N], spark://HOST:7077, yarn, k8s://...; by default that of spark-submit, "
        "or local[*]",
        "",
        needs=("engine",),
    )
    spark_conf: dict[str, Any] = option(
        "a setting of Spark, such as spark.executor.memory=8g; may be given several times",
        {},
        needs=("engine",),
    )
    executor_python: str = option(
        "the Python of Spark's executors, with this software's dependencies", "", needs=("engine",)
    )
    py_files: tuple[str, ...] = option(
        "of Spark: Python modules and archives of yours that executors need", (), needs=("engine",)
    )
    detach: bool = option(
        "workers on a cluster go on without this command when it ends; `finish DIR` then writes "
        "the manifest",
        False,
        needs=("engine", "runner"),
    )
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
        "a worker that computes nothing for so long at a unit is killed and replaced",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.runner.lower().removesuffix("runner") + "runner"
        known = name in map(str.lower, BEAM_RUNNERS) or "." in self.runner  # a class of the user's
        if self.runner != LOCAL and not known:
            raise UserError(
                f"--runner is {shown(self.runner)}; it must be {LOCAL}, one of "
                f"{', '.join(BEAM_RUNNERS)}, or module.Class of a Beam runner"
            )
        if self.engine == "beam" and self.runner == LOCAL:
            raise UserError("--engine beam needs a runner of Beam: give --runner PrismRunner")
        if self.engine not in ("", "beam") and self.runner != LOCAL:
            raise UserError(
                f"--engine {self.engine} and --runner {shown(self.runner)} exclude each other: a "
                f"runner is Beam's; leave out one of them"
            )
        if self.engine != "spark":
            for flag in ("master", "spark_conf", "executor_python", "py_files"):
                if getattr(self, flag):
                    called = f"--{flag.replace('_', '-')}"
                    raise UserError(f"{called} is Spark's; leave it out, or give --engine spark")
        if self.engine_name != "beam" and self.detach:
            raise UserError(
                f"--detach is of Beam's runners on clusters: workers of the {self.engine_name} "
                f"engine end with their command; leave it out"
            )
        if self.runner == LOCAL and self.beam_options:
            flag = self.beam_options[0].partition("=")[0]
            raise UserError(
                f"{flag} is an option of Beam, and the {self.engine_name} runner has none of "
                "these; leave it out, or give --runner"
            )

    @property
    def engine_name(self) -> str:
        """The engine: one of choice.ENGINES."""
        return self.engine or (LOCAL if self.runner == LOCAL else "beam")

    @property
    def where(self) -> str:
        """The engine in words."""
        return self.runner if self.engine_name == "beam" else self.engine_name

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


class HandedOver(Exception):
    """A job that goes on without this command; the sentence says how it is finished."""
