"""The worker of `extract`: does a slice of a listing, or an archive piece by piece, and writes its
parts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

import pyarrow.parquet as pq

from pipelines.extract.absent import missing_images
from pipelines.extract.batches import ISOLATE_FROM, batched, isolated
from pipelines.extract.describer import Described, Describer, failed
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.sources.archive_images import ArchiveImages, Listed, archive_url
from pipelines.sources.item import Item
from pipelines.storage.place import Place, open_place
from pipelines.stores.image_plan import read_slice
from pipelines.stores.part_writer import local_row, read_rotation, write_locals
from rrt_core.extractors import Description
from rrt_core.images import DecodeError
from schemas import failures, global_descriptors
from schemas.errors import UserError
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import ImageReference
from schemas.layout import LAYER, REPAIR_RECORD
from schemas.local_descriptors import LocalRow
from schemas.manifest import Counts, canonical_json, sha256_text
from schemas.plan import ArchivedImages, Job, ListedImages, MissingImages, Unit
from schemas.row_ids import ROWS_A_PART


@dataclass
class Rows:
    """What became of a run of images."""

    rows: list[GlobalRow] = field(default_factory=list)
    kept: list[LocalRow] = field(default_factory=list)
    lost: list[FailureRow] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """inputs = succeeded + failed."""
        return Counts(len(self.rows), len(self.rows) - len(self.lost), len(self.lost))


class _Differs(Exception):
    """A committed piece is not of the images that the archive holds now."""

    def __init__(self, piece: int) -> None:
        super().__init__()
        self.piece = piece


class DescribeUnit(UnitWorker):
    """Does a unit: decodes ahead of the model, describes in batches, writes up to three files a
    part.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.options = job.settings
        self.describer = Describer(self.options)
        self.lists: dict[str, Listed] = {}
        self.rotation = read_rotation(
            open_place(job.settings["out"]), self.options, self.describer.extractor.local_dim
        )

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Describe the unit's images and hand over its files."""
        if isinstance(unit.work, MissingImages):
            return self._missing(unit.work, attempt)
        if isinstance(unit.work, ArchivedImages):
            return self._archive(unit.work, attempt)
        work = unit.of(ListedImages)
        repeated = work.repeated_rows
        reason = "the record id stands twice in the source; only the first is described"
        references = read_slice(attempt.place, unit)
        items = (
            Item(reference, refusal=DecodeError(reason, "duplicate") if row in repeated else None)
            for row, reference in enumerate(references)
        )
        rows = self._rows(items, attempt, Counts(0, 0), None)
        self._write(attempt, work.part, rows)
        return rows.counts

    def _archive(self, work: ArchivedImages, attempt: Attempt) -> Counts:
        """Stream an archive, once unless pieces of a damaged copy must be taken back.

        The checksum of a compressed archive comes at its end: pieces were committed before the
            damage was known,
        and may hold damaged images. With a whole copy in place those that differ are dropped and
        made again.
        """
        while True:
            try:
                return self._stream(work, attempt)
            except _Differs as differs:
                later = attempt.pieces_from(differs.piece).values()
                whole = any(marker is not None and marker.summary["end"] for marker in later)
                if whole or attempt.place.exists(
                    REPAIR_RECORD
                ):  # they were read to the end: it is another archive
                    sentence = "holds other images than before; give --overwrite, or another place"
                    raise UserError(
                        f"{archive_url(attempt.place, work.archive)} {sentence}"
                    ) from None
                attempt.drop_pieces(differs.piece)
                attempt.pieces.clear()

    def _stream(self, work: ArchivedImages, attempt: Attempt) -> Counts:
        """Stream an archive once; what an earlier attempt committed of it is passed over without
        decoding.
        """
        size = work.rows
        listed = self._listed(attempt.place, work.source) if work.listed else None
        only = _ids(attempt.place, work.again) if work.again else None
        url = archive_url(attempt.place, work.archive)
        images = ArchiveImages(url, work.source, work.prefix, listed, only)
        counts, piece, unlisted, ended = Counts(0, 0, 0), 0, 0, False
        while not ended:
            done = attempt.read_piece(piece)
            if done is not None:
                passed = islice(images, done.counts.inputs)
                seen = _fingerprint((item.reference.record_id, _digest(item)) for item in passed)
                if seen != done.summary["images"]:
                    raise _Differs(piece)
                attempt.take_piece(done)
                counts, ended = counts + done.counts, bool(done.summary["end"])
                unlisted = int(done.summary["unlisted"])
                attempt.tell(counts.inputs, counts.failed, images.position)
            else:
                rows = self._rows(islice(images, size), attempt, counts, images)
                ended = len(rows.rows) < size
                unlisted = images.unlisted
                number = work.part + piece * work.stride
                if rows.rows:
                    self._write(attempt, number, rows)
                    fingerprint = _fingerprint((row.record_id, row.sha256) for row in rows.rows)
                    summary = {"images": fingerprint, "end": ended, "unlisted": unlisted}
                    attempt.commit_piece(piece, rows.counts, summary)
                counts += rows.counts
            piece += 1
        if listed:
            attempt.summary = {"unlisted": unlisted}
        return counts

    def _listed(self, place: Place, source: str) -> Listed:
        if source not in self.lists:
            self.lists[source] = Listed(place, source)
        return self.lists[source]

    def _missing(self, work: MissingImages, attempt: Attempt) -> Counts:
        """A failed row for each image that a list names and no archive held."""
        missing, counts = missing_images(attempt.place), Counts(0, 0, 0)
        for piece, references in enumerate(iter(lambda: list(islice(missing, ROWS_A_PART)), [])):
            described = [
                failed(reference, "no archive holds it", "missing") for reference in references
            ]
            lost = [one.failure for one in described if one.failure]
            rows = Rows([one.row for one in described], [], lost)
            self._write(attempt, work.part + piece * work.stride, rows)
            counts += rows.counts
        return counts

    def _rows(
        self, items: Iterable[Item], attempt: Attempt, before: Counts, images: ArchiveImages | None
    ) -> Rows:
        """Describe a run of images; tells how far it is, counted from what the unit did
        `before`.
        """
        later = _taken_over(attempt.place, attempt.unit.work.again)
        if attempt.number >= ISOLATE_FROM:
            stream = isolated(self.options, self.job.recipe["threads"], items)
        else:
            stream = batched(self.describer, items)
        found, reason = Rows(), ""
        for described in stream:
            if described.failure is None and described.row.record_id in later:
                described = _left_to_retry(described.row)
            found.rows.append(described.row)
            if described.failure:
                found.lost.append(described.failure)
                reason = f"{described.row.record_id}: {described.failure.reason}"
            if described.description and self.options["locals"] != "none":
                found.kept.append(self._local_row(len(found.rows) - 1, described.description))
            counts = before + found.counts
            attempt.tell(counts.inputs, counts.failed, images.position if images else 0.0, reason)
        return found

    def _local_row(self, row: int, description: Description) -> LocalRow:
        return local_row(row, description, self.options, self.rotation)

    def _write(self, attempt: Attempt, part: int, found: Rows) -> None:
        extractor, options, name = self.describer.extractor, self.options, f"part-{part:05}"
        path = attempt.path(f"{name}.parquet")
        global_descriptors.write_part(
            path, found.rows, extractor.global_dim, options["global_dtype"]
        )
        attempt.add(path, f"global/{name}.parquet", len(found.rows))
        if options["locals"] != "none":
            path = attempt.path(f"{name}.h5")
            layout = write_locals(path, found.kept, extractor.local_dim, options, self.rotation)
            attempt.add(path, f"local/{LAYER}/{name}.h5", len(found.kept), layout)
        path = attempt.path(f"{name}.failures.parquet")
        failures.write_part(path, found.lost)
        attempt.add(path, f"failures/{name}.parquet", len(found.lost))


def _taken_over(place: Place, own: str) -> frozenset[str]:
    """Record ids that retries have taken over from a unit of the first round, or from the retry
    with the images `own`.

    Where such a unit is done again, they must not come to life in two parts.
    """
    names = (
        f"plan/{name}" for name in place.names("plan") if re.fullmatch(r"retry-\d+\.parquet", name)
    )
    return frozenset[str]().union(*(_ids(place, name) for name in names if name > own))


def _left_to_retry(row: GlobalRow) -> Described:
    reference = ImageReference(row.record_id, row.source, b"", row.box)
    reason = "it failed before, and was left to --retry-failed"
    return failed(reference, reason, "retried", row.bytes, row.sha256)


def _digest(item: Item) -> str:
    return "" if item.data is None else sha256(item.data).hexdigest()


def _fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """One hash of record ids and SHA-256 of their files."""
    return sha256_text(canonical_json(list(rows)))


def _ids(place: Place, name: str) -> frozenset[str]:
    """The record ids of a plan's table of images."""
    return frozenset(
        pq.read_table(io.BytesIO(place.read(name)), columns=["record_id"])
        .column("record_id")
        .to_pylist()
    )
