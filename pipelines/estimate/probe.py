"""A probe: the real job over a small sample, by the driver's own worker processes, into a folder
that is removed.

Two rounds by the same workers. In the first, of little work, they start: what that takes is told
    apart. The second is
measured, with all workers busy at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.engines import signals as stopping
from pipelines.engines.driver import run_job
from pipelines.engines.pool import FOLDER, LARGE
from pipelines.engines.settings import LOCAL, RunSettings
from pipelines.estimate.memory import MemoryWatch, Peaks
from pipelines.jobs.markers import marker_name, read_marker
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.layout import PLAN_NAME
from schemas.manifest import MANIFEST_NAME, Marker
from schemas.plan import Job, Unit

ROUNDS = 3  # units a worker in the measured round
WISHED = 10.0  # seconds of it
# where so many seconds are exceeded by the least that can be measured, it is one unit a worker
LONG = 30.0

Round = tuple[
    Sequence[Unit], Mapping[str, bytes]
]  # units, and the files of the plan that they read


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    place    where its output lies, while the probe's folder stands
    start    seconds until a worker is ready for a share of units, what only its first unit takes
             included
    share    seconds that a share costs beside its units
    first    units of the first round with their markers;  measured  those of the second
    busy     seconds that the workers spent on the measured units, summed
    peaks    memory
    """

    place: Place
    start: float
    share: float
    first: list[tuple[Unit, Marker]]
    measured: list[tuple[Unit, Marker]]
    busy: float
    peaks: Peaks

    @property
    def inputs(self) -> int:
        """Inputs of the measured units."""
        return sum(marker.counts.inputs for _, marker in self.measured)

    @property
    def each(self) -> float:
        """Seconds of a worker for one input, with all workers busy."""
        return self.busy / max(1, self.inputs)

    def each_of(self, units: Sequence[tuple[Unit, Marker]]) -> float:
        """The same of some of the measured units; of all where there are none."""
        inputs = sum(marker.counts.inputs for _, marker in units)
        worked = sum(marker.seconds for _, marker in self.measured)
        share = sum(marker.seconds for _, marker in units) / worked if worked > 0 else 0.0
        return self.busy * share / inputs if inputs else self.each

    @property
    def units(self) -> list[tuple[Unit, Marker]]:
        """All units."""
        return [*self.first, *self.measured]


@contextlib.contextmanager
def probe_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end: also at Ctrl-C and SIGTERM, and a day after a SIGKILL
    (pool.py).
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-estimate-"))

    def remove() -> str:
        gone = 0
        for _ in range(40):  # what is being killed may write a last file
            gone = 0 if folder.exists() else gone + 1
            if gone > 2:
                break
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)
        return "the estimate was not finished; nothing was made"

    stopping.at_the_end(remove)
    try:
        yield folder
    finally:
        stopping.at_the_end(None)
        shutil.rmtree(folder, ignore_errors=True)


def probe(
    job: Job,
    settings: RunSettings,
    folder: Path,
    workers: int,
    first: Round,
    second: Callable[[float], Round],
) -> Probed:
    """Run a job's worker over samples, two rounds. `second` gets the seconds that a unit of the
    first took.

    Raises what the job's own run would raise.
    """
    settings = replace(
        settings, workers=workers, overwrite=False, dry_run=False, runner=LOCAL, beam_options=()
    )
    job = replace(job, stage="probe", output=str(folder), most_failed="", units=tuple(first[0]))
    place = open_place(job.output)
    begun = time.time()
    with MemoryWatch() as watch:
        run_job(job, settings, first[1])
        started, _, warm = _read(place, job)
        taken = max(marker.seconds for _, marker in warm)
        units, files = second(taken)
        for name in (
            MANIFEST_NAME,
            PLAN_NAME,
        ):  # the workers stay: the job is the same but for its units
            place.remove(name)
        job = replace(job, units=tuple(units))
        ordered = time.time()
        run_job(job, settings, files)
        over = time.time()
    begins, ends, measured = _read(place, job)
    busy = busy_seconds(begins, ends, workers)
    retired = (
        watch.peaks.worker > LARGE
    )  # the pool ended them after the first round: others started
    if retired and len(measured) > workers:
        by_begin = sorted(range(len(measured)), key=begins.__getitem__)
        measured = [measured[index] for index in sorted(by_begin[workers:])]
        busy = sum(marker.seconds for _, marker in measured)
    until = (
        0.1 if retired else max(0.0, min(begins) - ordered)
    )  # from an order until its first unit begins
    share = until + max(0.0, over - max(ends))
    each = busy / max(1, sum(marker.counts.inputs for _, marker in measured))
    extra = statistics.mean(
        max(0.0, marker.seconds - each * marker.counts.inputs) for _, marker in warm
    )
    start = max(0.0, statistics.mean(started) - begun - until) + extra
    return Probed(place, start, share, warm, measured, busy, watch.peaks)


def rounds(least: float) -> int:
    """Units a worker in the measured round, where the smallest that can be measured takes so many
    seconds.
    """
    return ROUNDS if ROUNDS * least <= LONG else 1


def busy_seconds(begins: Sequence[float], ends: Sequence[float], workers: int) -> float:
    """Seconds of workers between the begins and ends of units.

    A unit is committed while the worker is at the next: where more are under way than there are
        workers, those that
    are only being committed do not count.
    """
    turns = sorted([*((time, 1) for time in begins), *((time, -1) for time in ends)])
    active, busy, before = 0, 0.0, turns[0][0] if turns else 0.0
    for moment, change in turns:
        busy += min(active, workers) * (moment - before)
        active, before = active + change, moment
    return busy


def spread(measured: Sequence[tuple[Unit, Marker]]) -> float:
    """Standard deviation of the units' seconds an input, as a share of their mean; 0 for a single
    unit.
    """
    each = [marker.seconds / max(1, marker.counts.inputs) for _, marker in measured]
    return (
        statistics.stdev(each) / statistics.mean(each)
        if len(each) > 1 and statistics.mean(each) > 0
        else 0.0
    )


def _read(place: Place, job: Job) -> tuple[list[float], list[float], list[tuple[Unit, Marker]]]:
    """When each unit began and ended (seconds since the epoch), and the markers."""
    begins, ends, found = [], [], []
    for unit in job.units:
        marker = read_marker(place, job, unit)
        assert marker is not None  # run_job ends only when all units have theirs
        end = os.stat(place.path(marker_name(unit))).st_mtime
        begins.append(end - marker.seconds)
        ends.append(end)
        found.append((unit, marker))
    return begins, ends, found


SEED = 0
