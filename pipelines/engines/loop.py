"""The work of one job: assigns unfinished units to workers until all are done."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipelines.engines import signals as stopping
from pipelines.engines.counts import Shortfall, UnderWay
from pipelines.engines.pool import Ended, Pool, close_pool, shared_pool
from pipelines.engines.progress import Progress
from pipelines.engines.settings import LOCAL, JobFailed, RunSettings
from pipelines.jobs.markers import marker_name, read_marker
from pipelines.storage.place import Place
from pipelines.storage.retries import Unreachable
from schemas import failures
from schemas.errors import UserError
from schemas.layout import PIECES
from schemas.manifest import Marker
from schemas.plan import Job, Unit

MOST_TRIES = 3  # of a unit in one command, and of a start that brings no unit to an end
# what is left is dealt in so many shares a worker: ever smaller ones, so that all end together
SHARES_A_WORKER = 2
MOST_A_SHARE = 128


class Loop:
    """The work of one job, until each unit has its marker."""

    def __init__(self, job: Job, place: Place, settings: RunSettings, title: str) -> None:
        self.job, self.place, self.settings, self.title = job, place, settings, title
        self.units = {unit.name: unit for unit in job.units}
        self.shortfall = Shortfall(job)
        self.local = settings.runner == LOCAL
        self.pause = 0.5 if place.local else 3.0
        self.markers: dict[str, Marker] = {}
        self.waiting: deque[Unit] = deque()
        self.last: list[Unit] = []  # units that wait for all others
        self.pieces: Counter[str] = Counter()  # unit -> pieces that were seen
        self.failed: Counter[str] = Counter()  # unit -> tries that failed
        self.ended: dict[str, UnderWay] = {}  # units of shares under way that have their marker
        self.broken: dict[
            str, str
        ] = {}  # unit -> what is wrong with its input; the others are done first
        self.fruitless = 0  # shares in a row that ended with nothing learnt
        self.pool: Pool | None = None

    def run(self) -> list[Marker]:
        """Work until nothing is missing; gives the markers in the order of the units. Raises
        UserError or JobFailed.
        """
        try:
            self._collect(self.job.units)
            first = self.shortfall.done + self._in_pieces()
            progress = Progress(self.title, self.shortfall.total, self.job.noun, first)
            if self.waiting or self.last:
                for name in self.place.names("errors"):
                    self.place.remove(f"errors/{name}")
                self.pool = shared_pool(self.settings.threads_per_worker)
                self._work(self.pool, progress)
                self.pool.retire_large()
            self._end_at_many_failures(progress, {})
            failed = self.shortfall.counts.failed
            progress.finish(self.shortfall.done, f", {failed:,} failed" if failed else "")
        except BaseException as error:
            killed = close_pool(keep_log=isinstance(error, JobFailed))
            if not isinstance(error, Unreachable):  # else it would be waited for once more
                self._forget(killed)
            raise
        return [self.markers[unit.name] for unit in self.job.units]

    def _work(self, pool: Pool, progress: Progress) -> None:
        looked = 0.0
        while len(self.markers) + len(self.broken) < len(self.job.units):
            if self.broken and len(self.markers) + len(self.broken) + len(self.last) == len(
                self.job.units
            ):
                break
            self._deal(pool)
            for ended in pool.wait(self.pause):
                if ended.share:
                    self._settle(pool, ended)
            if time.monotonic() - looked >= self.pause:
                under_way = self._under_way(pool)
                progress.show(*self.shortfall.progress(under_way))
                self._end_at_final_error(progress)
                self._end_at_many_failures(progress, under_way)
                if self.local:
                    pool.kill_stalled(60 * self.settings.stall_minutes)
                looked = time.monotonic()
        progress.clear()
        if self.broken:
            self._end_at_many_failures(progress, {})
            more = f" (and {len(self.broken) - 1} more alike)" if len(self.broken) > 1 else ""
            raise UserError(
                f"{next(iter(self.broken.values()))}{more}; {self._in_place(len(self.markers))}"
            )

    def _collect(self, units: Iterable[Unit]) -> list[Unit]:
        """Take over the valid markers of units; the others wait for a worker, and are given
        back.
        """
        missing = []
        there = set(self.place.names("done"))
        for unit in units:
            name = marker_name(unit)
            marker = None
            if name.rpartition("/")[2] in there:
                marker = read_marker(self.place, self.job, unit)
                if marker is None:
                    self.place.remove(
                        name
                    )  # one that is not valid would hide that the unit is missing
            if marker is None:
                missing.append(unit)
            else:
                self.markers[unit.name] = marker
                self.shortfall.add(unit, marker)
        self.waiting.extend(unit for unit in missing if not unit.payload.get("last"))
        self.last.extend(unit for unit in missing if unit.payload.get("last"))
        return missing

    def _in_pieces(self) -> int:
        """Inputs that earlier commands did of units which are not done yet, rather more than less:
        this one's rate is without them.
        """
        pieces = Counter(name.partition(".")[0] for name in self.place.names(PIECES))
        waiting = [
            unit
            for unit in self.waiting
            if unit.payload.get("open") and not unit.payload.get("again")
        ]
        return sum(pieces[unit.name] * int(unit.payload.get("rows", 0)) for unit in waiting)

    def _deal(self, pool: Pool) -> None:
        """Give each idle worker a share of what waits; start workers while there is more than they
        can take.
        """
        wished = self.settings.worker_count if self.local else 1
        if not self.waiting and len(self.markers) + len(self.last) == len(self.job.units):
            self.waiting.extend(self.last)
            self.last.clear()
        while self.waiting:
            if sum(bool(member.share) for member in pool.members) >= wished:
                return
            stopping.pass_or_wait()
            idle = pool.idle()
            member = idle[0] if idle else pool.start()
            left = len(self.waiting)
            size = min(MOST_A_SHARE, -(-left // (wished * SHARES_A_WORKER))) if self.local else left
            units = [self.waiting.popleft() for _ in range(size)]
            share = {
                "job": self.job.to_json(units),
                "runner": self.settings.runner,
                "threads": self.settings.threads_per_worker,
                "beam_options": list(self.settings.beam_options),
            }
            pool.give(member, units, share)

    def _settle(self, pool: Pool, ended: Ended) -> None:
        """A share ended: its finished units are taken over, the others wait again, unless they
        failed too often.
        """
        missing = self._collect(ended.share)
        killed = (
            {name.partition(".")[0] for name in self._attempts({ended.member.pid})}
            if ended.died
            else set()
        )
        learnt = len(missing) < len(ended.share)
        for unit in missing:
            record = self._error(unit.name)
            if record is None and unit.name not in killed:
                continue
            learnt = True
            pieces = sum(name.startswith(f"{unit.name}.") for name in self.place.names(PIECES))
            if pieces > self.pieces[unit.name]:  # it got on: what failed lies behind
                self.pieces[unit.name], self.failed[unit.name] = pieces, 0
            self.failed[unit.name] += 1
            if record is not None and record.get("later"):
                self.broken[unit.name] = str(record["sentence"])
                self.waiting = deque(other for other in self.waiting if other.name != unit.name)
                continue
            if record is not None and record["final"]:
                raise UserError(str(record["sentence"]))
            if record is not None:
                self._note(pool, str(record["traceback"]))
            if self.failed[unit.name] >= MOST_TRIES:
                raise self._failure(
                    pool, unit, str(record["sentence"]) if record else ended.problem
                )
        self.fruitless = 0 if learnt or not missing else self.fruitless + 1
        if missing and not learnt:
            self.place.write(
                "errors/probe", bytes(65_536)
            )  # a full disk can hide its own error records
            self.place.remove("errors/probe")
            if self.fruitless >= MOST_TRIES:
                raise self._failure(pool, missing[0], ended.problem or "no marker appeared")

    def _error(self, unit: str) -> dict[str, object] | None:
        """What a unit's worker wrote down of an exception; it is read once."""
        name = f"errors/{unit}.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            record: dict[str, object] = json.loads(self.place.read(name))
            self.place.remove(name)
            return record
        return None

    def _end_at_final_error(self, progress: Progress) -> None:
        """A user's mistake ends the job at once, whatever else is under way."""
        for name in self.place.names("errors"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                record = json.loads(self.place.read(f"errors/{name}"))
                if record["final"] and not record.get("later"):
                    progress.clear()
                    raise UserError(str(record["sentence"]))

    def _end_at_many_failures(self, progress: Progress, under_way: Mapping[str, UnderWay]) -> None:
        """Give up where more inputs failed than the job allows: something is wrong with all of
        them.
        """
        why = self.shortfall.too_many(under_way)
        if why:
            progress.clear()
            reason = self.shortfall.last_reason(under_way) or self._reason_on_disk()
            last = f"; the last: {reason}" if reason else ""
            raise JobFailed(f"{self.job.stage}: {why}{last} ({self._in_place(len(self.markers))})")

    def _reason_on_disk(self) -> str:
        """Why an input of a finished unit failed, or ""."""
        for marker in reversed(self.shortfall.finished.values()):
            for entry in reversed(marker.files):
                if entry.name.startswith("failures/") and entry.rows:
                    with contextlib.suppress(OSError, pa.ArrowInvalid):
                        return failures.read_part(io.BytesIO(self.place.read(entry.name)))[
                            -1
                        ].reason
        return ""

    def _under_way(self, pool: Pool) -> dict[str, UnderWay]:
        """How far the units of the shares under way are: by markers, and as attempts tell (local
        places only).
        """
        units = {unit.name for member in pool.members for unit in member.share}
        there = {name.removesuffix(".json") for name in self.place.names("done")} & units
        for name in there - self.ended.keys():
            with contextlib.suppress(OSError):
                marker = Marker.from_bytes(self.place.read(marker_name(self.units[name])))
                if marker is not None:
                    self.ended[name] = UnderWay(marker.counts.inputs, marker.counts.failed, 1.0, "")
        told = {name: self.ended[name] for name in there & self.ended.keys()}
        if self.place.local:
            for name in self.place.names("attempts"):
                unit = name.partition(".")[0]
                if name.endswith(".progress") and unit in units - there:
                    with contextlib.suppress(OSError, ValueError, TypeError):
                        state = UnderWay(**json.loads(self.place.read(f"attempts/{name}")))
                        if unit not in told or state.done > told[unit].done:
                            told[unit] = state
        return told

    def _attempts(self, pids: set[int]) -> list[str]:
        """Names of the attempts that processes of this machine left behind."""
        found = []
        for name in self.place.names("attempts") if pids else ():
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                about = (
                    json.loads(self.place.read(f"attempts/{name}"))
                    if name.endswith(".json")
                    else {}
                )
                if about.get("pid") in pids and about.get("host") == socket.gethostname():
                    found.append(name)
        return found

    def _forget(self, killed: set[int]) -> None:
        """Forget the attempts of workers that we killed: nothing speaks against their units."""
        for name in self._attempts(killed):
            with contextlib.suppress(OSError):
                self.place.remove(f"attempts/{name}")
                self.place.remove(f"attempts/{name}.progress")

    def stop(self) -> str:
        """For a signal, in a thread of its own: kill the workers, say what is in place."""
        pool = self.pool
        if pool is not None:
            self._forget(pool.signal_all())
            pool.remove_folder()
        there = {name.removesuffix(".json") for name in self.place.names("done")} & set(self.units)
        return f"{self._in_place(len(there))}; the same command goes on from there"

    def _in_place(self, done: int) -> str:
        return f"{done:,} of {len(self.job.units):,} parts of {self.place.url} are in place"

    def _failure(self, pool: Pool, unit: Unit, why: str) -> JobFailed:
        return JobFailed(
            f"{self.job.stage}: {unit.name} failed {MOST_TRIES} times: {why} "
            f"({self._in_place(len(self.markers))}; log: {pool.log})"
        )

    @staticmethod
    def _note(pool: Pool, text: str) -> None:
        with contextlib.suppress(OSError), open(pool.log, "a") as log:
            log.write(text)
