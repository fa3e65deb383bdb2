"""Checks the files of an output: presence, size and SHA-256, and what is in those of a store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np

from pipelines.storage.place import Place, open_place
from pipelines.stores.store import part_number
from pipelines.verify.bookkeeping import FULL, PIECE_BYTES, UNREADABLE, Output, pieces_of
from pipelines.verify.problems import Problem, Report
from pipelines.verify.rows import (
    PartRows,
    StoreShape,
    check_failures,
    check_globals,
    check_locals,
    read_rows,
    repeated_rows,
)
from schemas.layout import LAYERS
from schemas.manifest import FileEntry, sha256_text
from schemas.plan import ListedImages


@contextmanager
def _opened(place: Place, name: str) -> Iterator[IO[bytes]]:
    """A file to read in any order; remote ones (256 MB at most are written) are fetched whole."""
    if not place.local:
        yield io.BytesIO(place.read(name))
        return
    with open(place.path(name), "rb") as file:
        yield file


Group = list[tuple[str, FileEntry]]  # files that are checked together, with their units


def groups_of(output: Output) -> list[Group]:
    """The files of a store by part, those of other outputs alone."""
    groups: dict[str, Group] = {}
    for name, (unit, entry) in output.expected.items():
        part = part_number(name)
        groups.setdefault(name if part is None else f"{unit} {part}", []).append((unit, entry))
    return list(groups.values())


@dataclass
class GroupFindings:
    """What came of a group: problems, and of a store's part the ids of its ok rows."""

    problems: list[Problem]
    files: int
    bytes: int
    name: str = ""  # of the globals
    unit: str = ""
    digests: np.ndarray | None = None  # uint64 [n, 2]
    rows: np.ndarray | None = None  # uint16 [n]


class FileChecks:
    """Checks groups of files of one output: presence and size, SHA-256, and what is in a store's
    files.
    """

    def __init__(
        self, output: Output, quick: bool, parents: Callable[[int], FileEntry | None] | None
    ) -> None:
        self.output, self.quick = output, quick
        self.parents = parents  # of a layer: the store's globals by part number
        self.shape = StoreShape.of(output.manifest) if output.manifest is not None else None

    def check(self, group: Group) -> GroupFindings:
        """All checks of a group. Damaged files are not looked into."""
        reports = {unit: Report(unit) for unit, _ in group}
        result = GroupFindings([], len(group), sum(entry.bytes for _, entry in group))
        for unit, entry in group:
            listed = self.output.listing.get(entry.name)
            if listed is None:
                reports[unit].add(entry.name, "the file is missing")
            elif listed.bytes != entry.bytes:
                reports[unit].add(entry.name, f"it has {listed.bytes:,} bytes, not {entry.bytes:,}")
        if not self.quick:
            whole = {problem.file for report in reports.values() for problem in report.problems}
            self._look(
                self.output.place,
                [(u, e) for u, e in group if e.name not in whole],
                reports,
                result,
            )
        result.problems = [problem for report in reports.values() for problem in report.problems]
        return result

    def _look(
        self, place: Place, group: Group, reports: dict[str, Report], result: GroupFindings
    ) -> None:
        kinds = {"global": 0, "failures": 1}
        rows: PartRows | None = None
        there = ""
        for unit, entry in sorted(
            group, key=lambda item: kinds.get(item[1].name.partition("/")[0], 2)
        ):
            kind, report = entry.name.partition("/")[0], reports[unit]
            inside = self.shape is not None and kind in ("global", "failures", "local")
            try:
                if not inside:
                    self._hashed(pieces_of(place, entry.name, entry.bytes), entry, report)
                    continue
                with _opened(place, entry.name) as file:
                    if not self._hashed(iter(partial(file.read, PIECE_BYTES), b""), entry, report):
                        continue
                    file.seek(0)
                    if kind == "global":
                        rows, there = self._globals(file, unit, entry, report), entry.name
                        if rows is not None:
                            result.name, result.unit, result.digests = (
                                entry.name,
                                unit,
                                rows.digests,
                            )
                            result.rows = np.flatnonzero(rows.ok).astype(np.uint16)
                    elif kind == "failures":
                        check_failures(file, entry, rows, there, report)
                    elif self.shape is not None:
                        of = (
                            rows
                            if rows is not None or self.parents is None
                            else self._parent_rows(entry)
                        )
                        check_locals(
                            file, entry, of, entry.name.startswith(FULL), self.shape, report
                        )
            except FileNotFoundError:
                report.add(entry.name, "the file is missing")
            except UNREADABLE as error:
                report.add(
                    entry.name,
                    f"it cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
                )
        failed = rows is not None and not rows.ok.all()
        if failed and not any(entry.name.startswith("failures/") for _, entry in group):
            named = [entry.name for _, entry in group if entry.name.startswith("global/")]
            unit = next(unit for unit, entry in group if entry.name in named)
            if not reports[unit].problems:
                reports[unit].add(named[0], "rows failed, but the unit has no failures file")

    @staticmethod
    def _hashed(pieces: Iterable[bytes], entry: FileEntry, report: Report) -> bool:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        if digest.hexdigest() == entry.sha256:
            return True
        report.add(
            entry.name, f"its SHA-256 is {digest.hexdigest()[:12]}..., not {entry.sha256[:12]}..."
        )
        return False

    def _globals(
        self, file: IO[bytes], unit: str, entry: FileEntry, report: Report
    ) -> PartRows | None:
        assert self.shape is not None
        rows = check_globals(file, entry, self.shape, report)
        planned = self.output.units.get(unit)
        told = planned.work.ids if planned and isinstance(planned.work, ListedImages) else None
        if rows is not None and told is not None and sha256_text("\n".join(rows.ids)) != told:
            report.add(entry.name, "its record ids are not those of its slice of the plan")
        return rows

    def _parent_rows(self, entry: FileEntry) -> PartRows | None:
        part = part_number(entry.name)
        parent = self.parents(part) if part is not None and self.parents else None
        if parent is None:
            return None  # the store's part is another one now: its readers leave out this file
        above = open_place(self.output.place.url.rstrip("/").rpartition(f"/{LAYERS}/")[0])
        data = above.read(parent.name)
        if hashlib.sha256(data).hexdigest() != parent.sha256:
            return None  # the store's damage, not the layer's
        return read_rows(io.BytesIO(data))


def repeated(results: list[GroupFindings]) -> list[Problem]:
    """Record ids that two ok rows of the store have: a problem of the later one."""
    parts = sorted((one for one in results if one.digests is not None), key=lambda one: one.name)
    found = []
    digests = [one.digests for one in parts if one.digests is not None]
    for part, place, first_part, first_place in repeated_rows(digests):
        later, first = parts[part], parts[first_part]
        assert later.rows is not None and first.rows is not None
        what = f"its record id is also that of {first.name}, row {first.rows[first_place]}"
        found.append(Problem(later.name, what, later.unit, int(later.rows[place])))
    return found
