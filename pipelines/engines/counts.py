"""How much of a job is done, how much is left, and when too much failed to go on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.engines.under_way import UnderWay
from schemas.errors import UserError
from schemas.manifest import Counts, Marker
from schemas.plan import Job, Unit

SURE_SHARE = 0.01  # of the bytes of archives, before their images are estimated
SURE_FROM = 100  # inputs done before a share of a total that is not known is judged


class Shortfall:
    """The sums of a job. Units whose inputs are not known before count by their bytes.

    Inputs that are done again count where they failed, until it is known that they succeed.
    """

    def __init__(self, job: Job) -> None:
        self.limit, self.per_cent = _limit(job.most_failed)
        self.text = job.most_failed
        self.noun = job.noun
        self.closed = sum(unit.inputs for unit in job.units if not unit.work.again)
        self.again = {unit.name for unit in job.units if unit.work.again}
        self.open_bytes = {
            unit.name: max(1, unit.work.size)
            for unit in job.units
            if unit.work.open and unit.name not in self.again
        }
        # where lists say what archives hold
        self.planned = int(job.facts.get("images_planned") or 0)
        self.finished: dict[str, Marker] = {}
        self.counts = Counts(0, 0, 0)

    def add(self, unit: Unit, marker: Marker) -> None:
        """A unit is done."""
        if unit.name not in self.finished:
            self.finished[unit.name] = marker
            self.counts += unit.adds(marker.counts)

    @property
    def done(self) -> int:
        """Inputs of finished units."""
        return self.counts.inputs

    @property
    def total(self) -> int:
        """Inputs of all units; an estimate where some are not known."""
        return self.progress({})[1]

    def progress(self, under_way: Mapping[str, UnderWay]) -> tuple[int, int]:
        """Inputs done, and inputs in all: where not known estimated by the bytes that were read, 0
        while too few were.
        """
        running = self._running(under_way)
        done = self.done + sum(state.done for state in running.values())
        if not self.open_bytes:
            return done, self.closed

        inputs, read = 0.0, 0.0
        for name, size in self.open_bytes.items():
            if name in self.finished:
                inputs, read = inputs + self.finished[name].counts.inputs, read + size
            elif name in running:
                inputs, read = inputs + running[name].done, read + size * running[name].share

        whole = sum(self.open_bytes.values())
        if self.planned:
            return done, max(done, self.planned)

        if read < SURE_SHARE * whole:
            return done, 0

        return done, max(done, self.closed + round(inputs * whole / read))

    def _running(self, under_way: Mapping[str, UnderWay]) -> dict[str, UnderWay]:
        return {
            name: state
            for name, state in under_way.items()
            if name not in self.finished and name not in self.again
        }

    def too_many(self, under_way: Mapping[str, UnderWay]) -> str:
        """Why the job is given up, or "" while no more failed than is allowed."""
        if self.limit is None:
            return ""

        if self.again - self.finished.keys():
            return ""  # what they fix is not known yet

        running = list(self._running(under_way).values())
        failed = self.counts.failed + sum(state.failed for state in running)
        done, total = self.progress(under_way)
        if self.per_cent and not total:
            return ""

        most = self.limit * total / 100 if self.per_cent else self.limit
        if failed <= most or (
            self.per_cent
            and self.open_bytes
            and len(self.finished) < len(self.open_bytes)
            and done < SURE_FROM
        ):
            return ""

        return (
            f"{failed:,} of {done:,} {self.noun} failed, more than --max-failures {self.text} "
            f"allows"
        )

    def last_reason(self, under_way: Mapping[str, UnderWay]) -> str:
        """Why an input failed that is not of a finished unit, or ""."""
        return next(
            (state.reason for state in self._running(under_way).values() if state.reason), ""
        )


def _limit(text: str) -> tuple[float | None, bool]:
    """(limit, whether it is per cent). Raises UserError."""
    if not text:
        return None, False

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if not match or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
        raise UserError(f"--max-failures is {text!r}; it must be a number, or per cent such as 5%")

    return float(match[1]), bool(match[2])
