"""What `verify` finds in an output folder: problems, each with what mends it, and leftovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.manifest import Counts

REDO = "redo"  # the unit is done again
FINISH = "finish"  # the command goes on, or repair does
REWRITE = "rewrite"  # manifest and parts table are written again from the markers
COMMAND = "command"  # the plan is damaged: only the command that made the output can write it again
MOST_ROWS = 5  # rows of a file that are named for one kind of problem


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file (below the output's folder), in which row, and what mends
    it.
    """

    file: str
    what: str
    unit: str = ""
    row: int | None = None
    mend: str = REDO

    def line(self, folder: str = "") -> str:
        """One line for a person; `folder` is the output's, below the one that was asked for."""
        name = f"{folder}/{self.file}" if folder else self.file
        where = name if self.row is None else f"{name}, row {self.row}"
        do = {
            REDO: f"redo {self.unit}",
            FINISH: "finish it",
            REWRITE: "write the manifest again",
            COMMAND: "give its command again",
        }
        return f"{where}: {self.what}; {do[self.mend]}"


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
    """Collects the problems of one unit's files."""

    unit: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, file: str, what: str, row: int | None = None) -> None:
        """A problem of a file, or of one of its rows."""
        self.problems.append(Problem(file, what, self.unit, row))

    def rows(self, file: str, rows: Sequence[int], what: str | Callable[[int], str]) -> None:
        """The same problem of many rows: the first are named, the others counted. `what` may be
        made for each row.
        """
        for row in rows[:MOST_ROWS]:
            self.add(file, what if isinstance(what, str) else what(int(row)), int(row))
        if len(rows) > MOST_ROWS:
            self.add(
                file, f"{len(rows) - MOST_ROWS:,} rows more have the same problem as the one before"
            )


@dataclass
class Findings:
    """What was found in one output folder.

    `folder` is its place below the one that was asked for, "" for itself.
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

    @property
    def damaged_units(self) -> list[str]:
        """Units to be done again, sorted."""
        return sorted({problem.unit for problem in self.problems if problem.mend == REDO})

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "damaged_units": self.damaged_units}
