"""What `extract --locals-for` and `extract --retry-failed` would take."""

from __future__ import annotations

from pathlib import Path

from pipelines import extract
from pipelines.commit import Job
from pipelines.driver import RunSettings
from pipelines.estimate import Estimate
from schemas.errors import UserError


def estimate(folder: Path, options: extract.Options, settings: RunSettings, before: float) -> Estimate:
    raise UserError("not yet")


def of_retry(job: Job, settings: RunSettings) -> Estimate:
    raise UserError("not yet")
