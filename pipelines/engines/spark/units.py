"""In an executor's Python: the units of a task. Arrays are read and written here, never travel."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from pyspark import TaskContext

from pipelines.engines.unit_runner import UnitRunner
from pipelines.engines.workers.fitness import be_fit
from pipelines.engines.workers.ticket import Unfit
from pipelines.jobs.worker_process import at_task
from schemas.inside import read_json
from schemas.plan import Job, Unit

GPU = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class TaskOrder:
    """What a task is handed beside its units.

    application  Spark's name of it
    header       the job without its units, as JSON
    ticket       of the driver, for `be_fit`
    threads      of torch, faiss and OpenCV
    speculation  whether Spark may have two attempts at one task under way
    """

    application: str
    header: str
    ticket: str
    threads: int
    speculation: bool


def run(order: TaskOrder, records: Iterable[str]) -> Iterator[str]:
    """Do the units whose records (JSON) are given; gives a small report (JSON) of each.

    {"unit", "done"}, or {"unfit": sentence} where this process cannot do any. It never raises for a
    unit: that would fail the task, and Spark would do it again at once.
    """
    context = TaskContext.get()
    if context is not None:
        take_gpu([str(one) for gpu in _gpus(context) for one in gpu])
    try:
        be_fit(
            order.ticket,
            worker=f"{order.application}/{executor_name(order.application)}",
            host=host_name(),
        )
    except Unfit as error:
        yield json.dumps({"unfit": str(error)})
        return

    if context is not None and not order.speculation:
        task = f"{order.application}/{context.stageId()}/{context.partitionId()}"
        at_task(task, context.attemptNumber())
    runner = UnitRunner(_job(order.header), order.threads)
    for record in records:
        outcomes = (runner.do(Unit.from_record(read_json(record))), runner.finish())
        for outcome in filter(None, outcomes):
            yield json.dumps({"unit": outcome.unit.name, "done": outcome.done})


def executor_name(application: str) -> str:
    """The executor as its working folder is called: its number, or that of a YARN container."""
    return "driver" if application.startswith("local-") else os.path.basename(os.getcwd())


def host_name() -> str:
    """The machine as Spark calls it, where that is known."""
    return os.environ.get("SPARK_LOCAL_HOSTNAME") or socket.gethostname()


def take_gpu(addresses: list[str]) -> None:
    """Let this process see the GPUs that Spark assigned to the task, and no others.

    CUDA reads the variable once: a process that has begun with others keeps them.
    """
    if addresses:
        os.environ.setdefault(GPU, ",".join(addresses))


def _gpus(context: TaskContext) -> Iterator[list[str]]:
    resources = context.resources()
    if "gpu" in resources:
        yield resources["gpu"].addresses


@cache
def _job(header: str) -> Job:
    return Job.from_json(header)
