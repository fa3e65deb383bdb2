"""The face of an engine: it gets shares of units that are not done, and reports their ends.

At least once, somewhere, is all that an engine owes; markers make it once. An engine knows units'
names and ends, never what a unit computes. The driver's loop (loop.py) is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.storage.protocol import Place
from schemas.plan import Job, Unit


@dataclass(frozen=True)
class Ended:
    """A share that came to its end.

    problem  empty where all went well, else what happened, in words
    dead     processes of this machine that ended before the share did
    killed   by a SIGKILL that was not ours, most likely the system's for want of memory
    stalled  by ours, since it computed nothing for long
    final    the problem is a mistake of the user's, which no other try fixes
    excused  a server of the engine's ended, which speaks against neither units nor workers
    """

    share: tuple[Unit, ...]
    problem: str = ""
    dead: frozenset[int] = frozenset()
    killed: bool = False
    stalled: bool = False
    final: bool = False
    excused: bool = False


class Engine(ABC):
    """Where units are done. One lives as long as the work at one job.

    log     file of what workers print; "" where there is none
    ticket  what each worker process gives `be_fit` (workers/fitness.py); the loop sets it first
    """

    log: str = ""
    ticket: str = ""

    def __init__(self, job: Job, place: Place) -> None:
        """Raises UserError for settings that cannot be, before anything is written or started."""
        self.job, self.place = job, place

    @abstractmethod
    def start(self) -> None:
        """Make ready, before the first share.

        Raises UserError, within a minute, where the engine cannot work as it was asked for.
        """

    @abstractmethod
    def share_size(self, waiting: int) -> int:
        """How many of so many waiting units the next share takes; 0 while all workers have one."""

    @abstractmethod
    def begin(self, share: Sequence[Unit]) -> None:
        """Begin a share; returns at once."""

    @abstractmethod
    def under_way(self) -> list[Unit]:
        """Units of the shares whose end was not reported yet."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """The shares that came to an end, at the latest after this time."""

    @abstractmethod
    def look(self) -> None:
        """Look after what is under way, now and then.

        Raises UserError or JobFailed where it can never end.
        """

    @abstractmethod
    def cancel(self) -> set[int]:
        """End what is under way at once, from any thread.

        Gives the process ids of this machine that were ended by it: nothing speaks against the
        units that these were at.
        """

    @abstractmethod
    def rest(self) -> None:
        """The work at the job went well: keep what the command's next job can use."""

    @abstractmethod
    def close(self, *, keep_log: bool = False) -> None:
        """Give back all that the engine holds, after `cancel`: the work at the job failed."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Remove what it holds in temporary folders, after `cancel`, from any thread."""
