"""A probe: the real job over a small sample, by the driver's own worker processes, into a folder
that is removed.

Two rounds by the same workers. In the first, of little work, they start: what that takes is kept
apart. The second is measured, with all workers busy at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.engines import signals as stopping
from pipelines.engines.driver import run_job
from pipelines.engines.local.pool import FOLDER, LARGE
from pipelines.engines.settings import LOCAL, RunSettings
from pipelines.estimate.memory import MemoryWatch, Peaks
from pipelines.estimate.schedule import busy_seconds, wall_seconds
from pipelines.jobs.markers import marker_name, read_marker
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.layout import PLAN_NAME
from schemas.manifest import MANIFEST_NAME, Counts, FileEntry, Marker
from schemas.plan import Job, Unit

SEED = 0  # of what is sampled
ROUNDS = 3  # units a worker in the measured round
WANTED = 10.0  # seconds of it
LONG = 30.0  # where the least that can be measured takes longer, it is one unit a worker
REPORTED = ("inputs", "seconds_an_input", "spread", "start_seconds", "workers", "seconds")

Round = tuple[Sequence[Unit], Mapping[str, bytes]]  # units, and the plan's files that they read


@dataclass(frozen=True)
class Done:
    """A unit of a probe, its marker, and when it began and ended (seconds since the epoch)."""

    unit: Unit
    marker: Marker
    begin: float
    end: float


@dataclass(frozen=True)
class Probe:
    """What an estimate rests on.

    place              where its output is, until the probe's folder is removed
    first, measured    the units of the two rounds
    inputs             those of the measured units
    seconds_an_input   of one worker, with all workers busy
    spread             standard deviation of the units' seconds an input, as a share of their mean
    start_seconds      until a worker is ready for a share of units, with what only its first unit
                       takes
    share              seconds that a share of units costs beside them
    seconds            that the probe itself took
    """

    place: Place
    first: list[Done]
    measured: list[Done]
    inputs: int
    seconds_an_input: float
    spread: float
    start_seconds: float
    share: float
    workers: int
    peaks: Peaks
    seconds: float

    @property
    def units(self) -> list[Done]:
        """The units of both rounds."""
        return [*self.first, *self.measured]

    @property
    def counts(self) -> Counts:
        """What became of the inputs of both rounds."""
        return sum((one.marker.counts for one in self.units), Counts(0, 0))

    @property
    def largest(self) -> int:
        """Inputs of the largest unit."""
        return max(one.marker.counts.inputs for one in self.units)

    def files(self, folder: str = "") -> list[FileEntry]:
        """The files that it wrote, those below a folder."""
        entries = [entry for one in self.units for entry in one.marker.files]
        return [entry for entry in entries if entry.name.startswith(folder)]

    def wall(self, lengths: Sequence[float], workers: int) -> float:
        """Seconds that so many workers take for units of these lengths, their start included."""
        return wall_seconds(lengths, workers, self.start_seconds, self.share)

    def to_json(self) -> dict[str, Any]:
        """What is reported of it."""
        return {name: getattr(self, name) for name in REPORTED}


@contextlib.contextmanager
def probe_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end: also at Ctrl-C and SIGTERM, and a day after a SIGKILL
    (pool.py).
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-estimate-"))

    def remove() -> str:
        for _ in range(10):  # what is being killed may write a last file
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)
        return "the estimate was not finished; nothing was made"

    stopping.at_the_end(remove)
    try:
        yield folder
    finally:
        stopping.at_the_end(None)
        shutil.rmtree(folder, ignore_errors=True)


def local(settings: RunSettings, workers: int) -> RunSettings:
    """Settings by which a probe runs: so many workers, on this machine."""
    return replace(
        settings, workers=workers, overwrite=False, dry_run=False, runner=LOCAL, beam_options=()
    )


def valid_markers(job: Job, settings: RunSettings) -> dict[str, Marker]:
    """The markers of the job's finished units, by the units' names; none with --overwrite."""
    place = open_place(job.output)
    names = set() if settings.overwrite else set(place.names("done"))
    read = {u.name: read_marker(place, job, u) for u in job.units if f"{u.name}.json" in names}
    return {name: marker for name, marker in read.items() if marker is not None}


def unfinished(job: Job, settings: RunSettings) -> list[Unit]:
    """The job's units that have no valid marker."""
    done = valid_markers(job, settings)
    return [unit for unit in job.units if unit.name not in done]


def sized(
    units: Callable[[int, int], Round], workers: int, batch: int, most: int, left: float
) -> tuple[Round, Callable[[float], Round]]:
    """The two rounds of a probe: a batch of inputs a worker, then what takes some ten seconds.

    units  makes a number of units of a number of inputs each;  most  inputs of a unit, where a
           batch is not more;  left  inputs that the whole job has left
    """

    def second(taken: float) -> Round:
        many = ROUNDS if ROUNDS * taken <= LONG else 1
        size = batch * round(WANTED / many / max(1e-6, taken))
        size = min(size, most, round(left / workers / many))
        return units(workers * many, max(batch, size))

    return units(workers, batch), second


def probe(
    job: Job,
    settings: RunSettings,
    folder: Path,
    workers: int,
    first: Round,
    second: Callable[[float], Round],
    count: Callable[[Marker], int] = lambda marker: marker.counts.inputs,
) -> Probe:
    """Run a job's worker over samples, two rounds, into FOLDER/probe.

    `second` gets the seconds that the longest unit of the first took; `count` gives a unit's
    inputs. Raises what the job's own run would raise.
    """
    settings, begun = local(settings, workers), time.time()
    output = str(folder / "probe")
    job = replace(job, stage="probe", output=output, most_failed="", units=tuple(first[0]))
    place = open_place(output)
    with MemoryWatch() as watch:
        run_job(job, settings, first[1])
        warm = _done(place, job)
        units, files = second(max(one.marker.seconds for one in warm))
        for name in (MANIFEST_NAME, PLAN_NAME):
            place.remove(name)  # the workers stay: the job is the same but for its units
        job = replace(job, units=tuple(units))
        ordered = time.time()
        run_job(job, settings, files)
        over = time.time()

    measured = sorted(_done(place, job), key=lambda one: one.begin)
    waited = max(0.0, measured[0].begin - ordered)  # from an order until its first unit begins
    busy = busy_seconds([one.begin for one in measured], [one.end for one in measured], workers)
    share = waited + max(0.0, over - max(one.end for one in measured))
    if watch.peaks.worker > LARGE:  # the pool ended them after the first round: others started
        share, waited = share - waited + 0.1, 0.1
        if len(measured) > workers:
            measured = measured[workers:]
            busy = sum(one.marker.seconds for one in measured)

    inputs = sum(count(one.marker) for one in measured)
    each = busy / max(1, inputs)
    rates = [one.marker.seconds / max(1, count(one.marker)) for one in measured]
    extra = mean(max(0.0, one.marker.seconds - each * count(one.marker)) for one in warm)
    start = max(0.0, mean(one.begin for one in warm) - begun - waited)
    return Probe(
        place=place,
        first=warm,
        measured=measured,
        inputs=inputs,
        seconds_an_input=each,
        spread=stdev(rates) / mean(rates) if len(rates) > 1 and any(rates) else 0.0,
        start_seconds=start + extra,
        share=share,
        workers=workers,
        peaks=watch.peaks,
        seconds=time.time() - begun,
    )


def _done(place: Place, job: Job) -> list[Done]:
    """The job's units, which all have their markers."""
    read = [(unit, read_marker(place, job, unit)) for unit in job.units]
    ends = [os.stat(place.path(marker_name(unit))).st_mtime for unit in job.units]
    return [
        Done(unit, marker, end - marker.seconds, end)
        for (unit, marker), end in zip(read, ends, strict=True)
        if marker is not None
    ]
