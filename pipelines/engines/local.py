"""The local engine: a share of units in a plain loop, in a worker process of the driver."""

from __future__ import annotations

from pipelines.engines.unit_runner import UnitRunner
from schemas.plan import Job


def run_share(job: Job, threads: int) -> None:
    """Do the job's units (those of the share) in turn; returns when all are committed."""
    runner = UnitRunner(job, threads)
    for unit in job.units:
        runner.do(unit)

    runner.finish()
