"""One pipeline on a Beam runner: submitted, waited for, cancelled; what its errors mean."""

from __future__ import annotations

import logging
import re
import signal
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.engines.beam.dataflow import only_writes, write_job
from pipelines.engines.beam.transform import RunUnits, unfit_sentence
from schemas.plan import Job

NO_MODULE = re.compile(r"No module named '(pipelines|rrt_core|schemas|tests)\b")


class Cancelled(BaseException):
    """SIGTERM came: the driver ends, and wants what it submitted to end as well."""


def run_share(job: Job, threads: int, options: list[str], ticket: str = "") -> None:
    """Run the job's units once as a pipeline; returns when that ends, or when its file is written.

    options  Beam's own flags, with the runner and its environment
    ticket   what workers must have in common with the driver (workers/ticket.py)

    At SIGTERM the runner is asked to cancel. Raises what Beam raises.
    """
    logging.getLogger().setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _cancel)
    parsed = PipelineOptions(options)
    pipeline = beam.Pipeline(options=parsed)
    _ = pipeline | RunUnits(job, threads, ticket)

    result = pipeline.run()
    if only_writes(parsed):
        write_job(result, parsed)
        return

    try:
        result.wait_until_finish()
    except Cancelled:
        result.cancel()
        raise


def explained(error: Exception) -> dict[str, Any]:
    """What the driver reads (`Ended`) of a pipeline that failed."""
    text = str(error)
    if unfit := unfit_sentence(text):
        return {"problem": unfit, "final": True}

    if missing := NO_MODULE.search(text):
        problem = (
            f"the runner's workers have no package {missing[1]}: give an image that has this "
            f"software (--sdk_container_image, --environment_config), or --setup_file"
        )
        return {"problem": problem, "final": True}

    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return {"problem": f"the Beam job failed: {lines[-1].strip()[:500]}"}


def _cancel(_number: int, _frame: FrameType | None) -> None:
    raise Cancelled
