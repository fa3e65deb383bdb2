"""A job's units as a Beam transform, and the pipeline of it that a Beam runner gets.

Elements are names of units; arrays are read and written inside the DoFn, and never travel. Markers,
not the runner, say what is done, so that a runner owes no more than at least once.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton, PBegin, PCollection, TaggedOutput
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.engines.outputs import finish
from pipelines.engines.unit_runner import Outcome, UnitRunner
from pipelines.engines.workers.fitness import be_fit
from pipelines.engines.workers.ticket import Unfit
from pipelines.jobs.errors import read_error
from pipelines.jobs.markers import read_marker
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.manifest import Counts, FileEntry
from schemas.plan import Job

NAMESPACE = "rrt_pipelines"  # of the metrics
DONE, FAILED = "done", "failed"  # the transform's outputs
# A sentence of a worker on its way through the runner's own words for what failed.
UNFIT = re.compile(r"rrt-unfit:([A-Za-z0-9_=-]+):")


class UnitResult(NamedTuple):
    """A unit whose marker stands: its counts of inputs, and its files."""

    unit: str
    counts: Counts
    files: tuple[FileEntry, ...]


class UnitFailure(NamedTuple):
    """A unit that is not done: why, and whether it is a mistake that no retry fixes."""

    unit: str
    sentence: str
    final: bool


class Outcomes(NamedTuple):
    """What `RunUnits` gives: PCollections of UnitResult and of UnitFailure."""

    done: PCollection
    failed: PCollection


class RunUnits(beam.PTransform):
    """Do a job's units: all unfinished ones from `PBegin`, or those that a PCollection names (str).

    Gives `Outcomes`: results, each emitted after its unit's marker stands, and failures. The job's
    plan must be written (`outputs.next_job`). A unit that waits for all others begins when they
    have ended. `threads` for torch, faiss and OpenCV; 0: the recipe's. `ticket`: what workers must
    have in common with a driver (`Engine.ticket`); where it is given they end with that driver.
    """

    def __init__(self, job: Job, threads: int = 0, ticket: str = "") -> None:
        super().__init__()
        self.job, self.ticket = job, ticket
        self.threads = threads or int(job.recipe.get("threads", 1))

    def expand(self, begin: PBegin | PCollection) -> Outcomes:
        """The graph: names, spread over the workers, then one DoFn around the unit function."""
        header = self.job.to_json(self.job.units)
        doing = _DoUnits(header, self.threads, self.ticket)
        do_units = beam.ParDo(doing).with_outputs(FAILED, main=DONE)
        if isinstance(begin, PBegin):
            begin = begin | beam.Create([header]) | beam.FlatMap(_unfinished)

        label = self.job.stage.capitalize()
        spread = "Spread" >> beam.Reshuffle()  # fused with nothing before, so that all can work
        last = {unit.name for unit in self.job.units if unit.work.last}
        if not last:
            return Outcomes(*(begin | spread | label >> do_units))

        first = begin | "All but the last" >> beam.Filter(lambda name: name not in last)
        done, failed = first | spread | label >> do_units
        ended = (done, failed) | "Ended" >> beam.Flatten() | _count()
        waiting = begin | "The last" >> beam.Filter(lambda name: name in last)
        more_done, more_failed = (
            waiting
            | beam.WindowInto(GlobalWindows())
            | "After the others" >> beam.Map(lambda name, _: name, AsSingleton(ended))
            | f"{label}, the last" >> do_units
        )
        return Outcomes(
            (done, more_done) | "All done" >> beam.Flatten(),
            (failed, more_failed) | "All failed" >> beam.Flatten(),
        )


class Finish(beam.PTransform):
    """Write an output's manifest when the results of `RunUnits` are complete; gives the Manifest.

    Where units are not done then, the pipeline fails with JobFailed and its sentence.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.begun = url, time.time()

    def expand(self, results: PCollection) -> Any:
        """The results are counted, which waits for all, and nothing else of them is used."""
        begun = self.begun
        return (
            results.pipeline
            | "Output" >> beam.Create([self.url])
            | "Manifest"
            >> beam.Map(
                lambda url, _: finish(url, time.time() - begun), AsSingleton(results | _count())
            )
        )


class _DoUnits(beam.DoFn):
    """The one DoFn around the one unit function. Bundles end when their units are committed."""

    def __init__(self, job_json: str, threads: int, ticket: str = "") -> None:
        self.job_json, self.threads, self.ticket = job_json, threads, ticket
        self.inputs, self.succeeded, self.failed, self.failed_units = (
            Metrics.counter(NAMESPACE, name)
            for name in ("inputs", "succeeded", "failed", "failed_units")
        )
        self.milliseconds = Metrics.distribution(NAMESPACE, "unit_milliseconds")  # whole numbers

    def setup(self) -> None:
        if self.ticket:
            self._be_fit()
        self.job = Job.from_json(self.job_json)
        self.units = {unit.name: unit for unit in self.job.units}
        self.place = open_place(self.job.output)
        self.runner = UnitRunner(self.job, self.threads)
        self.window: tuple[Any, Any] | None = None  # timestamp and window of the unit under way

    def process(
        self,
        name: str,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[Any]:
        """Do a unit; gives the result of the one before, in its own window."""
        if name not in self.units:
            raise UserError(f"the job of {self.place.url} has no unit {name!r}")

        unit = self.units[name]
        missing = self._missing_others() if unit.work.last else 0
        if missing:
            why = f"it waits for {missing:,} other units that are not done"
            yield TaggedOutput(FAILED, UnitFailure(name, why, False))
            return

        before = self.runner.do(unit)
        yield from self._results(before)
        self.window = timestamp, window

    def finish_bundle(self) -> Iterable[Any]:
        """The last unit's result."""
        yield from self._results(self.runner.finish())

    def _be_fit(self) -> None:
        """Raises RuntimeError, which fails the pipeline at once, with a sentence for its driver."""
        try:
            be_fit(self.ticket, worker=os.environ.get("WORKER_ID", ""))
        except Unfit as error:
            mark = base64.urlsafe_b64encode(str(error).encode()).decode()
            raise RuntimeError(f"{error} (rrt-unfit:{mark}:)") from error

    def _missing_others(self) -> int:
        others = (unit for unit in self.units.values() if not unit.work.last)
        return sum(read_marker(self.place, self.job, unit) is None for unit in others)

    def _results(self, outcome: Outcome | None) -> Iterator[Any]:
        """An outcome as a value in the window of its unit's name."""
        if outcome is None or self.window is None:
            return

        timestamp, window = self.window
        result = self._result(outcome)
        if isinstance(result, TaggedOutput):
            value = WindowedValue(result.value, timestamp, (window,))
            yield TaggedOutput(result.tag, value)
        else:
            yield WindowedValue(result, timestamp, (window,))

    def _result(self, outcome: Outcome) -> Any:
        unit, done = outcome
        marker = read_marker(self.place, self.job, unit) if done else None
        if marker is None:
            self.failed_units.inc()
            record = read_error(self.place, unit.name) or {}
            why = str(record.get("sentence") or "no valid marker appeared")
            return TaggedOutput(FAILED, UnitFailure(unit.name, why, bool(record.get("final"))))

        self.inputs.inc(marker.counts.inputs)
        self.succeeded.inc(marker.counts.succeeded)
        self.failed.inc(marker.counts.failed)
        self.milliseconds.update(round(1000 * marker.seconds))
        return UnitResult(unit.name, marker.counts, marker.files)


def unfit_sentence(text: str) -> str:
    """The sentence of a worker that was not fit, within a runner's words for it; or ""."""
    marked = UNFIT.search(text)
    return base64.urlsafe_b64decode(marked[1]).decode() if marked else ""


def _unfinished(job_json: str) -> Iterator[str]:
    """Names of the units that have no valid marker."""
    job = Job.from_json(job_json)
    place = open_place(job.output)
    for unit in job.units:
        if read_marker(place, job, unit) is None:
            yield unit.name


def _count() -> Any:
    """How many elements there are, known when all have come."""
    return "Count" >> (beam.WindowInto(GlobalWindows()) | beam.combiners.Count.Globally())
