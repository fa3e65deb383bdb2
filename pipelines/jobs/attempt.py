"""An attempt at a unit: its scratch folder, its files, its pieces, its marker.

A stage is a chain of *jobs*; a job fills one output folder by deterministic *units*. A worker does
one unit at a time: an `Attempt` gathers finished files, gives them their final name by content and
then drops the unit's marker by exclusive create. The first attempt wins; a loser deletes nothing.
What the markers do not name is rubbish; what they name is done. The driver writes the manifest when
every unit has its marker (docs/architecture.md, "Commit protocol").
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs import attempts
from pipelines.jobs.errors import gone
from pipelines.jobs.markers import marker_name, read_marker, software_versions
from pipelines.jobs.worker_process import who
from pipelines.storage.local import sha256_file
from pipelines.storage.protocol import Place
from schemas.errors import Damaged
from schemas.layout import PIECES, PLAN_NAME, is_layout_name
from schemas.manifest import Counts, FileEntry, Marker, Note
from schemas.plan import Job, Unit


def refuse_not_finite(table: pa.Table, stage: str, undefined: Collection[str] = ()) -> None:
    """Raise Damaged for a number that is not finite, in a column where each has a value."""
    for column in table.schema:
        if column.name in undefined or not pa.types.is_floating(column.type):
            continue
        wrong = np.flatnonzero(~np.isfinite(table.column(column.name).to_numpy()))
        if len(wrong):
            row = table.slice(wrong[0], 1).to_pylist()[0]
            texts = [value for value in row.values() if isinstance(value, str)]
            raise Damaged(
                f"{stage}: {column.name} of {' and '.join(texts)} is {row[column.name]} "
                f"({len(wrong):,} rows are alike); the descriptors or weights that it is made of "
                f"are not finite: give others, or make the store again"
            )


class Attempt:
    """One try at a unit. Its scratch folder and its `attempts/` file are its own.

    number   1 for the first try; tries that failed, or are known to be dead, count (attempts.py)
    killed   tries before this one whose process the system killed, most likely for want of memory
    summary  small results of the unit, kept in its marker
    notes    what is to be reported of it, kept there too, and no part of the output's identity
    """

    def __init__(self, place: Place, job: Job, unit: Unit) -> None:
        self.place, self.job, self.unit = place, job, unit
        self.id = secrets.token_hex(6)
        self.started = time.monotonic()
        # Files handed over: where they lie, stem, rows, byte layout, whether by just that name.
        self.finished: list[tuple[str, str, int, dict[str, Any] | None, bool]] = []
        self.pieces: list[FileEntry] = []  # files of the pieces that are committed
        self.summary: dict[str, Any] = {}
        self.notes: dict[str, Note] = {}
        me = who()
        ended = [about for _, about in attempts.records(place, unit.name)]
        ended = [about for about in ended if attempts.has_ended(about, me)]
        self.killed = sum(about.get("killed") is True for about in ended)
        self.number = 1 + len(ended) - self.killed
        self.name = f"{attempts.FOLDER}/{unit.name}.{self.id}.json"
        self._reported_at = 0.0  # when progress was last written

        self._planned = place.local and place.exists(PLAN_NAME)

        about = {**me.to_record(), "at": round(time.time())}
        place.write(self.name, json.dumps(about).encode(), durable=False)
        if place.local:  # on the same disk, so that the final rename is one step
            self.scratch = place.path(f"scratch/{unit.name}.{self.id}")
            os.makedirs(self.scratch)
        else:
            self.scratch = attempts.temporary_scratch()

    @property
    def removed(self) -> bool:
        """Whether the output was removed since the attempt began."""
        return self._planned and not self.place.exists(PLAN_NAME)

    def path(self, name: str) -> str:
        """A path in the attempt's scratch folder."""
        return os.path.join(self.scratch, name)

    def add(
        self,
        local_file: str,
        stem: str,
        rows: int,
        layout: dict[str, Any] | None = None,
        *,
        plain_name: bool = False,
    ) -> None:
        """Hand over a finished file.

        It is named ``stem.<hash12>.suffix`` (or exactly `stem`) when the unit commits.
        """
        self.finished.append((local_file, stem, rows, layout, plain_name))

    def add_table(
        self,
        table: pa.Table,
        stem: str,
        rows: int | None = None,
        *,
        plain_name: bool = False,
        undefined: Collection[str] = (),
    ) -> None:
        """Write a table as a Parquet file and hand it over, as `add` does.

        rows       its own by default
        undefined  columns in which NaN stands for what has no value

        Raises Damaged where any other number is not finite.
        """
        refuse_not_finite(table, self.job.stage, undefined)
        path = self.path(f"{len(self.finished)}.parquet")
        pq.write_table(table, path, compression="zstd")
        self.add(path, stem, len(table) if rows is None else rows, plain_name=plain_name)

    def _place_files(self) -> Iterator[FileEntry]:
        """Hash the finished files and bring them to their names."""
        for local_file, stem, rows, layout, plain_name in self.finished:
            digest, size = sha256_file(local_file), os.path.getsize(local_file)
            base, suffix = os.path.splitext(stem)
            name = stem if plain_name else f"{base}.{digest[:12]}{suffix}"
            self.place.put(local_file, name)
            yield FileEntry(name, rows, size, digest, layout)

    def report(self, done: int, failed: int = 0, share: float = 0.0, reason: str = "") -> None:
        """Report how far it is, for progress (at most once a second).

        done, failed  inputs so far
        share         of an open unit's bytes, 0..1
        reason        of the last failure
        """
        now = time.monotonic()
        if not self.place.local or now - self._reported_at <= 1.0:
            return

        self._reported_at = now
        state = {"done": done, "failed": failed, "share": round(share, 4), "reason": reason}
        path = self.place.path(f"{self.name}.progress")
        with contextlib.suppress(OSError):
            with open(f"{path}.tmp", "w") as file:
                file.write(json.dumps(state))
            os.replace(f"{path}.tmp", path)

    def read_piece(self, number: int) -> Marker | None:
        """The valid marker of a piece of this unit that an earlier attempt committed."""
        return read_marker(self.place, self.job, self.unit, self._piece_name(number))

    def pieces_from(self, first: int) -> dict[str, Marker | None]:
        """Committed pieces from the number `first` on: name -> marker; None where not valid."""
        pieces = {}
        for name in self.place.names(PIECES):
            unit, _, number = name.removesuffix(".json").rpartition(".")
            if unit == self.unit.name and number.isdecimal() and int(number) >= first:
                path = f"{PIECES}/{name}"
                pieces[path] = read_marker(self.place, self.job, self.unit, path)
        return pieces

    def drop_pieces(self, first: int) -> None:
        """Take back the committed pieces from the number `first` on, markers before files."""
        dropped = self.pieces_from(first)
        for name in sorted(dropped, reverse=True):  # the last first: a kill leaves no gap
            self.place.remove(name)

        for marker in dropped.values():
            for entry in marker.files if marker else ():
                if is_layout_name(entry.name):  # else it is the owner's, whatever a marker names
                    self.place.remove(entry.name)

    def take_piece(self, marker: Marker) -> None:
        """Count a committed piece's files among the unit's."""
        self.pieces += marker.files

    def commit_piece(self, number: int, counts: Counts, summary: dict[str, Any]) -> None:
        """Commit the files added since the last piece, so that they are never made again.

        That is what a unit of many pieces is spared when it is killed. Earlier attempts no longer
        count: they ended in an earlier piece. `summary` is kept in the piece's marker.
        """
        marker = self._marker(tuple(self._place_files()), counts, summary)
        self.take_piece(self._create(self._piece_name(number), marker))
        self.finished.clear()

        me = who()
        for name, about in attempts.records(self.place, self.unit.name):
            if attempts.has_ended(about, me):
                self.place.remove(f"{attempts.FOLDER}/{name}")
        self.number = 1

    def _piece_name(self, number: int) -> str:
        return f"{PIECES}/{self.unit.name}.{number:05}.json"

    def commit(self, counts: Counts) -> Marker:
        """Bring the files to their names, then drop the marker; gives the one that counts."""
        marker = self._marker((*self.pieces, *self._place_files()), counts, self.summary)
        return self._create(marker_name(self.unit), marker)

    def _marker(
        self, files: tuple[FileEntry, ...], counts: Counts, summary: dict[str, Any]
    ) -> Marker:
        return Marker(
            unit=self.unit.name,
            recipe=self.job.recipe_hash,
            slice=self.unit.slice,
            files=files,
            counts=counts,
            summary=summary,
            seconds=round(time.monotonic() - self.started, 3),
            host=socket.gethostname(),
            versions=software_versions(),
            notes=self.notes,
            worker=who().to_fact(),
        )

    def _create(self, name: str, marker: Marker) -> Marker:
        """Create a marker exclusively; where another attempt was first, its marker counts.

        Raises UserError where the output was removed meanwhile.
        """
        if self.removed:
            raise gone(self.place)

        while not self.place.create(name, marker.to_bytes()):
            other = read_marker(self.place, self.job, self.unit, name)
            if other is not None:
                return other
            self.place.remove(name)  # an unreadable marker counts as absent
        return marker

    def close(self, *, failed: bool = False) -> None:
        """End this attempt; the file of a failed one stays and counts, as if it was killed."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.place.local:
            self.place.remove(f"{self.name}.progress")
        if failed:
            attempts.note(self.place, self.name.rpartition("/")[2], "failed")
        else:
            self.place.remove(self.name)
