"""What failures mean: another try, a unit left for the end, or the end of the job."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.engines.assignments import Assignments
from pipelines.engines.counts import Shortfall
from pipelines.engines.engine import Ended
from pipelines.engines.under_way import UnderWay
from pipelines.jobs import attempts
from pipelines.jobs.errors import read_error
from pipelines.storage.tables import read_table
from schemas import failures
from schemas.errors import Damaged, JobFailed, UserError
from schemas.layout import PIECES
from schemas.plan import Unit

MOST_KILLS = 6  # of a unit's workers by the system, each time with fewer inputs in memory at once
MOST_TRIES = 3  # of a unit in one command, and of a start that brings no unit to an end


class Judge:
    """Counts the tries of units, and raises what ends the job: UserError or JobFailed."""

    def __init__(self, assignments: Assignments, totals: Shortfall) -> None:
        self.assignments, self.totals, self.place = assignments, totals, assignments.place
        self.log = ""  # file of the tracebacks, where workers are at work
        self.bad: dict[str, str] = {}  # unit -> what is wrong with its input, for the end
        self._tries: Counter[str] = Counter()  # unit -> tries that failed
        self._kills: Counter[str] = Counter()  # unit -> tries that the system killed
        self._pieces: Counter[str] = Counter()  # unit -> pieces that were seen
        self._fruitless = 0  # shares in a row that ended with nothing learnt

    def share_ended(self, ended: Ended, unfinished: Sequence[Unit]) -> None:
        """Judge the units of an ended share that are not done; they wait again by then."""
        if ended.final:
            raise UserError(ended.problem)
        if ended.excused:
            return
        left = attempts.of_processes(self.place, ended.dead)
        died = {name.partition(".")[0] for name in left}
        for name in left:
            attempts.note(self.place, name, "killed" if ended.killed else "dead")

        learnt = len(unfinished) < len(ended.share)
        for unit in unfinished:
            counted = self._kills if ended.killed else self._tries
            learnt |= self._unit_failed(unit, ended.problem, unit.name in died, counted)

        self._fruitless = 0 if learnt else self._fruitless + 1
        if not learnt:
            self.place.write("errors/probe", bytes(65_536))  # a full disk can hide its own records
            self.place.remove("errors/probe")
            if self._fruitless >= MOST_TRIES:
                raise self._given_up(unfinished[0], ended.problem or "no marker appeared")

    def _unit_failed(self, unit: Unit, problem: str, died: bool, counted: Counter[str]) -> bool:
        """Whether something speaks against the unit: its worker's record, or death at it."""
        record = read_error(self.place, unit.name)
        if record is None and not died:
            return False

        self.place.remove(f"errors/{unit.name}.json")  # a record counts once
        pieces = sum(name.startswith(f"{unit.name}.") for name in self.place.names(PIECES))
        if pieces > self._pieces[unit.name]:  # it got on: what failed lies behind
            self._pieces[unit.name], self._tries[unit.name] = pieces, 0
            self._kills[unit.name] = 0

        tries = self._tries if record else counted
        tries[unit.name] += 1
        sentence = str(record["sentence"]) if record else problem
        if record is not None:
            if record.get("later"):
                self.bad[unit.name] = sentence
                self.assignments.set_aside(unit)
                return True

            if record["final"]:
                raise self._as_raised(record)

            with contextlib.suppress(OSError), open(self.log, "a") as log:
                log.write(str(record["traceback"]))

        if self._tries[unit.name] >= MOST_TRIES or self._kills[unit.name] >= MOST_KILLS:
            raise self._given_up(unit, sentence, tries[unit.name])

        return True

    def end_at_mistakes(self) -> None:
        """A user's mistake ends the job at once, whatever else is under way."""
        for name in self.place.names("errors"):
            record = read_error(self.place, name.removesuffix(".json"))
            if record is not None and record["final"] and not record.get("later"):
                raise self._as_raised(record)

    def end_at_many_failures(self, under_way: Mapping[str, UnderWay]) -> None:
        """Too many failed inputs end the job: something is wrong with all of them."""
        why = self.totals.too_many(under_way)
        if why:
            reason = self.totals.last_reason(under_way) or self._stored_reason()
            last = f"; the last: {reason}" if reason else ""
            stage = self.assignments.job.stage
            raise JobFailed(f"{stage}: {why}{last} ({self.assignments.in_place()})")

    def end_at_bad_inputs(self) -> None:
        """Units whose input is bad end the job when all others are done."""
        if self.bad:
            more = f" (and {len(self.bad) - 1} more alike)" if len(self.bad) > 1 else ""
            first = next(iter(self.bad.values()))
            raise UserError(f"{first}{more}; {self.assignments.in_place()}")

    def _stored_reason(self) -> str:
        """Why an input of a finished unit failed, or ""."""
        for marker in reversed(self.assignments.finished.values()):
            for entry in reversed(marker.files):
                if entry.name.startswith("failures/") and entry.rows:
                    with contextlib.suppress(OSError, Damaged):
                        rows = failures.rows_of(
                            read_table(self.place, entry.name, schema=failures.FAILURES)
                        )
                        return rows[-1].reason

        return ""

    @staticmethod
    def _as_raised(record: Mapping[str, Any]) -> UserError:
        """The mistake, or the damage, that a worker wrote down."""
        return (Damaged if record.get("damaged") else UserError)(str(record["sentence"]))

    def _given_up(self, unit: Unit, why: str, times: int = MOST_TRIES) -> JobFailed:
        return JobFailed(
            f"{self.assignments.job.stage}: {unit.name} failed {times} times: {why} "
            f"({self.assignments.in_place()}; log: {self.log})"
        )
