"""Checks the files of an output: presence, size and SHA-256, and what is in those of a store."""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.storage.blocks import BlockFile
from pipelines.storage.byte_sources import open_bytes
from pipelines.storage.place import open_place
from pipelines.storage.tables import parse_table
from pipelines.stores.image_plan import read_slice
from pipelines.stores.store import part_number
from pipelines.verify.outputs import Output
from pipelines.verify.part_rows import (
    PartRows,
    StoreShape,
    check_globals,
    check_locals,
    repeated_rows,
)
from pipelines.verify.problems import Problem, Report
from schemas.errors import UserError
from schemas.inside import check_inside
from schemas.layout import LAYERS
from schemas.manifest import FileEntry, sha256_text
from schemas.plan import ListedImages, Unit

PIECE_BYTES = 8_000_000  # read at a time of what is in no store


@dataclass
class Group:
    """Files of a unit that are checked together, those of a part of a store or one, and what
    came of it.
    """

    unit: str
    files: list[FileEntry] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    name: str = ""  # of the globals that could be read
    ok: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))  # uint16 [n], rows
    digests: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.uint64))  # [n, 2]


def groups_of(output: Output) -> list[Group]:
    """The files of a store by part, globals before locals; those of other outputs alone."""
    groups: dict[tuple[str, object], Group] = {}
    for name, (unit, entry) in sorted(output.expected.items()):
        part = part_number(name)
        new = Group(unit, report=Report(unit))
        groups.setdefault((unit, name if part is None else part), new).files.append(entry)
    return list(groups.values())


class FileChecks:
    """Checks groups of files of one output."""

    def __init__(self, output: Output, quick: bool) -> None:
        self.output, self.quick = output, quick
        self.shape = StoreShape.of(output.recipe)

    def check(self, group: Group) -> Group:
        """All checks of a group. Damaged files are not looked into."""
        rows: PartRows | None = None
        for entry in group.files:
            listed = self.output.listing.get(entry.name)
            if listed is None:
                group.report.add(entry.name, "the file is missing")
            elif listed.bytes != entry.bytes:
                what = f"it has {listed.bytes:,} bytes, not {entry.bytes:,}"
                group.report.add(entry.name, what)
            elif not self.quick:
                with group.report.reading(entry.name):
                    rows = self._read(entry, rows, group)
        return group

    def _read(self, entry: FileEntry, rows: PartRows | None, group: Group) -> PartRows | None:
        """Read a file to its end; gives the rows of the part's globals as soon as they are
        known.
        """
        report, shape, folder = group.report, self.shape, entry.name.partition("/")[0]
        with self._opened(entry.name) as file:
            digest = hashlib.sha256()
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
            if digest.hexdigest() != entry.sha256:
                short = f"{digest.hexdigest()[:12]}..., not {entry.sha256[:12]}..."
                report.add(entry.name, f"its SHA-256 is {short}")
                return rows

            file.seek(0)
            if shape is not None and folder == "global":
                rows = check_globals(file, entry, shape, report)
                group.name, group.digests = entry.name, rows.digests
                group.ok = np.flatnonzero(rows.ok).astype(np.uint16)
                unit = self.output.units.get(group.unit)
                ids = unit.work.ids if unit and isinstance(unit.work, ListedImages) else ""
                if unit and ids and sha256_text("\n".join(rows.ids)) != ids:
                    self._compare_ids(entry.name, unit, rows.ids, report)
            elif shape is not None and folder == "local":
                of_part = rows or self._rows_of_store(entry.name)
                check_locals(file, entry, of_part, shape, report)
        return rows

    def _compare_ids(self, name: str, unit: Unit, ids: list[str], report: Report) -> None:
        """Name the rows whose record id is not the plan's."""
        what, other = "its record ids are not those of its slice of the plan", []
        with contextlib.suppress(UserError):  # a damaged plan is reported by itself
            planned = [one.record_id for one in read_slice(self.output.place, unit)]
            pairs = enumerate(zip(ids, planned, strict=False))
            other = [row for row, (is_, was) in pairs if is_ != was]
            if other:
                what = f"its record id is {ids[other[0]]!r}, the plan's is {planned[other[0]]!r}"
                report.add(name, what, other[0])
                what = "its record id is not the plan's"
        report.rows(name, other[1:], what) if other else report.add(name, what)

    def _opened(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """A file to read; a store's, of 256 MB at most, in any order: a remote one is fetched."""
        place = self.output.place
        if place.local:
            return open(place.path(name), "rb")
        if part_number(name) is not None:
            return io.BytesIO(place.read(name))
        return contextlib.closing(BlockFile(open_bytes(f"{place.url}/{name}"), PIECE_BYTES))

    def _rows_of_store(self, name: str) -> PartRows | None:
        """Of a layer's file the rows of the store's globals that it was made for.

        None where these are gone, others or damaged: readers leave out this file then, or it is
        the store's damage.
        """
        above, manifest = self.output.place.url.rpartition(f"/{LAYERS}/")[0], self.output.manifest
        made_for = manifest.facts.get("globals") if manifest is not None else None
        globals_name = (made_for or {}).get(str(part_number(name)))
        if not above or globals_name is None:
            return None

        with contextlib.suppress(FileNotFoundError):
            data = open_place(above).read(check_inside(globals_name))
            if hashlib.sha256(data).hexdigest()[:12] in globals_name.split("."):
                return PartRows.of(parse_table(data, f"{above}/{globals_name}"))
        return None


def problems_of(checked: list[Group]) -> list[Problem]:
    """The problems of groups of files in order, and record ids that two ok rows of them have."""
    problems = [problem for one in checked for problem in one.report.problems]
    problems.sort(key=lambda problem: (problem.unit, problem.file, problem.row or 0))
    wrong = {problem.file for problem in problems}

    parts = sorted((one for one in checked if one.name), key=lambda one: one.name)
    for part, place, first_part, first_place in repeated_rows([one.digests for one in parts]):
        later, first = parts[part], parts[first_part]
        if later.name not in wrong:
            what = f"its record id is also that of {first.name}, row {first.ok[first_place]}"
            problems.append(Problem(later.name, what, later.unit, int(later.ok[place])))
    return problems
