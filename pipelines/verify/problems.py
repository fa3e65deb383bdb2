"""What `verify` finds in an output folder: problems, each with its fix, and leftovers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from schemas.errors import Damaged
from schemas.manifest import Counts
from schemas.openers import parquet

REDO = "redo"  # the unit is done again
FINISH = "finish"  # the command goes on, or repair does
REWRITE = "rewrite"  # manifest and parts table are written again from the markers
COMMAND = "command"  # the plan is damaged: only the command that made the output can write it again
UNLINK = "unlink"  # a folder of the output is a link: only its owner can put the folder there
FIXES = {
    REDO: "redo {unit}",
    FINISH: "finish it",
    REWRITE: "write the manifest again",
    COMMAND: "give its command again",
    UNLINK: "put the folder itself in its place",
}
MOST_ROWS = 5  # rows of a file that are named for one kind of problem

# What reading or using a damaged file raises; a place that does not answer raises UserError.
UNREADABLE = (*parquet.UNREADABLE, Damaged)


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file (below the output's folder), in which row, and its fix."""

    file: str
    what: str
    unit: str = ""
    row: int | None = None
    fix: str = REDO

    def line(self, folder: str = "") -> str:
        """One line for a person; `folder` is the output's, below the one that was named."""
        name = f"{folder}/{self.file}" if folder else self.file
        where = name if self.row is None else f"{name}, row {self.row}"
        return f"{where}: {self.what}; {FIXES[self.fix].format(unit=self.unit)}"


@dataclass(frozen=True)
class Leftover:
    """A file that nothing names.

    `ours`: it lies where only this software writes; age in seconds, None unknown.
    """

    file: str
    bytes: int
    age: float | None
    ours: bool


@dataclass
class Report:
    """Collects problems: of one unit's files where `unit` is given."""

    unit: str = ""
    problems: list[Problem] = field(default_factory=list)

    def add(
        self, file: str, what: str, row: int | None = None, *, unit: str = "", fix: str = REDO
    ) -> None:
        """A problem of a file, or of one of its rows."""
        self.problems.append(Problem(file, what, unit or self.unit, row, fix))

    def rows(
        self, file: str, rows: Sequence[int] | np.ndarray, what: str | Callable[[int], str]
    ) -> None:
        """The same problem of many rows: the first are named, the others counted.

        `what` may be made for each row.
        """
        for row in map(int, rows[:MOST_ROWS]):
            self.add(file, what if isinstance(what, str) else what(row), row)
        if len(rows) > MOST_ROWS:
            more = len(rows) - MOST_ROWS
            self.add(file, f"{more:,} rows more have the same problem as the one before")

    @contextlib.contextmanager
    def reading(self, file: str, *, unit: str = "", fix: str = REDO) -> Iterator[None]:
        """The gate of all that is read: what the block cannot use is a problem of the file."""
        try:
            yield
        except FileNotFoundError:
            self.add(file, "it is missing", unit=unit, fix=fix)
        except UNREADABLE as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            first = (why.splitlines() or [repr(error)])[0]
            self.add(file, f"it cannot be read: {first}", unit=unit, fix=fix)


@dataclass
class Findings:
    """What was found in one output folder.

    `folder` is its place below the one that was named, "" for itself.
    """

    folder: str
    url: str
    stage: str = ""
    finished: bool = False
    units: int = 0
    missing: int = 0  # units that are not done yet, of an output that is not finished
    files: int = 0
    bytes: int = 0
    counts: Counts | None = None
    problems: list[Problem] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    processors: dict[str, int] = field(default_factory=dict)  # vector units: parts made by them

    @property
    def damaged_units(self) -> list[str]:
        """Units to be done again, sorted."""
        return sorted({problem.unit for problem in self.problems if problem.fix == REDO})

    def to_json(self) -> dict[str, Any]:
        """JSON values; a problem's fix is called "mend" there."""
        record = {**asdict(self), "damaged_units": self.damaged_units}
        for problem in record["problems"]:
            problem["mend"] = problem.pop("fix")
        return record


def words(counts: Counts) -> str:
    """Counts in words."""
    return f"{counts.inputs:,} inputs = {counts.succeeded:,} succeeded + {counts.failed:,} failed"
