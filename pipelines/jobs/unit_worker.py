"""The contract of unit workers, and making the one that a job names."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pipelines.jobs.worker_process import who
from pipelines.stages import worker_class
from schemas.errors import UserError
from schemas.manifest import Counts
from schemas.plan import Job, Unit

if TYPE_CHECKING:
    from pipelines.jobs.attempt import Attempt


class UnitWorker(ABC):
    """Does units of a job, one at a time. One lives in a process."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Do the unit: hand finished files to `attempt.add` and give the counts."""


def refuse_other_weights(job: Job, what: str, weights_sha256: str | None) -> None:
    """Raise UserError where this worker's extractor or reranker has other weights than the job's.

    Options name a file by its path, and another machine may have another one there.
    """
    planned = job.recipe.get(what, {}).get("weights_sha256")
    if planned and planned != weights_sha256:
        own = (weights_sha256 or "none")[:12]
        raise UserError(
            f"{who().host} has other weights of the {what} (SHA-256 {own}) than "
            f"the driver ({planned[:12]}); put the same file at the same path there"
        )


def make_worker(job: Job) -> UnitWorker:
    """The worker that the job names. Raises UserError for a name that is in no registry."""
    module, _, name = worker_class(job.worker).partition(":")
    worker: UnitWorker = getattr(importlib.import_module(module), name)(job)
    return worker
