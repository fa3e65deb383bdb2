"""Where units run: the Beam pipeline of a share of units, on the local runner or on a named one.

Units enter as (bucket, unit) -> GroupByKey, fused with nothing, so that a runner can spread them.
Locally each worker process of the driver runs the pipeline over its own shares, in memory: Beam's
multi-processing runner hangs after a killed worker and divides all work beforehand. The runner is
named explicitly (FnApiRunner): Beam's default would first try to download another engine.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.engines.processes import limit_threads
from pipelines.jobs.do_unit import begin_unit, write_error
from pipelines.jobs.unit_worker import UnitWorker, make_worker
from pipelines.storage.place import Place
from schemas.plan import Job, Unit

LOCAL = "local"
MOST_BUCKETS = 10_000

_shared: dict[str, UnitWorker] = {}  # one worker (one model) a process
_lock = threading.Lock()
_committer = ThreadPoolExecutor(1)
_committing: list[
    Future[bool]
] = []  # one at most: what waits for its commit lies on the disk, not in memory


def _wait() -> None:
    while _committing:
        _committing.pop().result()


class DoUnits(beam.DoFn):
    """Does the units of a bucket one after the other; arrays are read and written in here alone."""

    def __init__(self, job_json: str, threads: int) -> None:
        self.job_json, self.threads = job_json, threads

    def process(self, element: tuple[int, Iterable[str]]) -> None:
        """(bucket, units as JSON): a unit is committed, which waits for the disk, while the next is
        under way.
        """
        for text in sorted(element[1]):
            unit = Unit(**json.loads(text))
            with _lock:
                worker = self._worker(unit)
                commit = begin_unit(worker, unit) if worker is not None else None
                _wait()
                if commit is not None:
                    _committing.append(_committer.submit(commit))

    def finish_bundle(self) -> None:
        """No bundle ends before its units are committed."""
        with _lock:
            _wait()

    def _worker(self, unit: Unit) -> UnitWorker | None:
        if self.job_json not in _shared:
            job = Job.from_json(self.job_json)
            try:
                limit_threads(self.threads)
                _shared.clear()
                _shared[self.job_json] = make_worker(job)
                limit_threads(self.threads)  # for the libraries that the worker loaded
            except Exception as error:  # noqa: BLE001  the driver judges it
                write_error(Place(job.output), unit.name, error)
                return None
        return _shared[self.job_json]


def run_share(job: Job, runner: str, threads: int, beam_options: list[str]) -> None:
    """Run the job's units (those of the share) once through Beam; returns when the pipeline
    ends.
    """
    logging.getLogger().setLevel(logging.WARNING)
    header = job.to_json()
    units = [json.dumps(unit.__dict__) for unit in job.units]
    if runner == LOCAL:
        options = PipelineOptions(
            [*beam_options, "--direct_num_workers=1", "--direct_running_mode=in_memory"]
        )
        engine: Any = FnApiRunner()
    else:
        options = PipelineOptions([*beam_options, f"--runner={runner}"])
        engine = None
    with beam.Pipeline(runner=engine, options=options) as pipeline:
        _ = (
            pipeline
            | "Units"
            >> beam.Create([(index % MOST_BUCKETS, unit) for index, unit in enumerate(units)])
            | "Spread" >> beam.GroupByKey()
            | job.stage.capitalize() >> beam.ParDo(DoUnits(header, threads))
        )
