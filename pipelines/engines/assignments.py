"""Which units of a job are done, wait for a worker, or wait until all others are done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from pipelines.jobs.markers import marker_name, read_marker
from pipelines.storage.protocol import Place
from schemas.layout import PIECES
from schemas.manifest import Marker
from schemas.plan import Job, Unit

# What waits is assigned in so many shares a worker: ever smaller ones, so that all end together.
SHARES_A_WORKER = 2
MOST_A_SHARE = 128


def share_size(waiting: int, workers: int) -> int:
    """How many of the waiting units the next idle one of so many workers gets."""
    return min(MOST_A_SHARE, -(-waiting // (workers * SHARES_A_WORKER)))


class Assignments:
    """A job's units by what their markers say. Each is finished, waiting, last or in a share."""

    def __init__(self, place: Place, job: Job) -> None:
        self.place, self.job = place, job
        self.finished: dict[str, Marker] = {}  # unit -> its valid marker
        self.waiting: deque[Unit] = deque()
        self.last: list[Unit] = []  # they wait for all others

    def collect(self, units: Iterable[Unit]) -> list[Unit]:
        """Take over the valid markers of units; the others wait for a worker, and are returned."""
        unfinished = []
        present = set(self.place.names("done"))
        for unit in units:
            name = marker_name(unit)
            marker = None
            if name.rpartition("/")[2] in present:
                marker = read_marker(self.place, self.job, unit)
                if marker is None:  # it would hide that the unit is unfinished
                    self.place.remove(name)

            if marker is None:
                unfinished.append(unit)
            else:
                self.finished[unit.name] = marker

        self.waiting.extend(unit for unit in unfinished if not unit.work.last)
        self.last.extend(unit for unit in unfinished if unit.work.last)
        return unfinished

    def next_share(self, size: int) -> list[Unit]:
        """So many of the units that wait."""
        return [self.waiting.popleft() for _ in range(size)]

    def release_last(self) -> None:
        """Let the last units wait for a worker, where all others are done."""
        if not self.waiting and len(self.finished) + len(self.last) == len(self.job.units):
            self.waiting.extend(self.last)
            self.last.clear()

    def set_aside(self, unit: Unit) -> None:
        """Assign a unit no more in this command."""
        self.waiting = deque(other for other in self.waiting if other.name != unit.name)
        self.last = [other for other in self.last if other.name != unit.name]

    def done_in_pieces(self) -> int:
        """Inputs that earlier commands did of unfinished units, rather more than less."""
        pieces = Counter(name.partition(".")[0] for name in self.place.names(PIECES))
        return sum(
            pieces[unit.name] * unit.work.rows_a_piece
            for unit in self.waiting
            if unit.work.open and not unit.work.again
        )

    def in_place(self, done: int | None = None) -> str:
        """How many parts are in place, in words."""
        done = len(self.finished) if done is None else done
        return f"{done:,} of {len(self.job.units):,} parts of {self.place.url} are in place"
