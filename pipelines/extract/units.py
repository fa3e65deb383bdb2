"""The workers of `extract`: they describe images of listings and archives, and write parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from pipelines.extract.absent import missing_images
from pipelines.extract.batches import ISOLATE_FROM, batched, isolated
from pipelines.extract.begun import options_as_begun
from pipelines.extract.describer import Described, Describer, failed
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker, refuse_other_weights
from pipelines.sources.archive_images import ArchiveImages, Listed, archive_url, open_archive
from pipelines.sources.folder import PASSED_OVER
from pipelines.sources.item import Item
from pipelines.storage.byte_sources import read_columns
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.stores.image_plan import read_ids, read_slice
from pipelines.stores.part_writer import OF_A_LAYER, OF_A_STORE, PartRows, PartWriter, read_rotation
from pipelines.stores.store import Store
from rrt_core.images import DecodeError
from schemas.errors import UserError
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import ImageReference
from schemas.layout import REPAIR_RECORD, ROWS_A_PART, retry_number
from schemas.manifest import Counts, Marker, canonical_json, sha256_text
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, MissingImages, Unit

REPEATED = "the record id stands twice in the source; only the first is described"


class _Differs(Exception):
    """A committed piece is not of the images that the archive holds now."""

    def __init__(self, piece: int) -> None:
        super().__init__()
        self.piece = piece


class ImageWorker(UnitWorker):
    """What describes images and writes parts; `store` is the place whose plan says where they are.

    layer  whether the parts are a layer's: local descriptors and failures alone
    """

    def __init__(self, job: Job, store: Place, *, layer: bool = False) -> None:
        super().__init__(job)
        extractor_option = options_as_begun(
            job.settings["extractor"], job.settings["extractor_option"], job.recipe.get("extractor")
        )
        self.options = {**job.settings, "extractor_option": extractor_option}
        self.plan = store
        self.describer = Describer(self.options)
        extractor = self.describer.extractor
        refuse_other_weights(job, "extractor", extractor.weights_sha256)
        self.with_locals = self.options["locals"] != "none"
        self.writer = PartWriter(
            self.options,
            0 if layer else extractor.global_dim,
            extractor.local_dim,
            OF_A_LAYER if layer else OF_A_STORE if self.with_locals else "",
            read_rotation(store, self.options, extractor.local_dim),
        )
        self.lists: dict[str, Listed] = {}

    def archive(self, work: ArchivedImages, only: Collection[str] | None) -> ArchiveImages:
        """The images of an archive, or only those of some record ids."""
        return open_archive(self.plan, work, only, self.lists)

    def described(self, items: Iterable[Item], attempt: Attempt) -> Iterator[Described]:
        """What becomes of images, in order.

        After two failed attempts each is described alone; after one that the system killed fewer
        are in memory at once.
        """
        if attempt.number >= ISOLATE_FROM:
            return isolated(self.options, self.job.recipe["threads"], items)
        return batched(self.describer, items, attempt.killed)

    def keep(self, part: PartRows, row: int, described: Described) -> str:
        """Note an image's local descriptors, or why it failed; gives that reason, or ""."""
        if described.failure:
            part.failures.append(described.failure)
            return f"{described.row.record_id}: {described.failure.reason}"

        if described.description and self.with_locals:
            part.locals.append(self.writer.local_row(row, described.description))
        return ""


class DescribeUnit(ImageWorker):
    """Decodes ahead of the model, describes in batches, writes up to three files a part."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, open_place(job.settings["out"]))

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Describe the unit's images and hand over its files."""
        if isinstance(unit.work, MissingImages):
            return self._missing(unit.work, attempt)
        if isinstance(unit.work, ArchivedImages):
            return self._archive(unit.work, attempt)

        work = unit.of(ListedImages)
        repeated = work.repeated_rows
        items = (
            Item(reference, refusal=DecodeError(REPEATED, "duplicate") if row in repeated else None)
            for row, reference in enumerate(read_slice(attempt.place, unit))
        )

        part = self._describe(items, attempt, Counts(0, 0), None)
        self.writer.write(attempt, work.part, part)
        return part.counts

    def _archive(self, work: ArchivedImages, attempt: Attempt) -> Counts:
        """Stream an archive, once unless pieces of a damaged copy must be taken back.

        The checksum of a compressed archive comes at its end: pieces were committed before the
        damage was known, and may hold damaged images. With a whole copy in place those that differ
        are dropped and made again.
        """
        while True:
            try:
                return self._stream(work, attempt)
            except _Differs as differs:
                later = attempt.pieces_from(differs.piece).values()
                whole = any(marker is not None and marker.summary["end"] for marker in later)

                # Pieces that were read to the end, or found whole: it is another archive.
                if whole or attempt.place.exists(REPAIR_RECORD):
                    raise UserError(
                        f"{archive_url(self.plan, work.archive)} holds other images than before; "
                        f"give --overwrite, or another place"
                    ) from None

                attempt.drop_pieces(differs.piece)
                attempt.pieces.clear()

    def _stream(self, work: ArchivedImages, attempt: Attempt) -> Counts:
        """Stream an archive once; what is committed of it is passed over without decoding."""
        images = self.archive(work, read_ids(attempt.place, work.again) if work.again else None)
        counts, piece, unlisted, ended = Counts(0, 0, 0), 0, 0, False

        while not ended:
            done = attempt.read_piece(piece)
            if done is not None:
                _pass_over(images, done, piece)
                attempt.take_piece(done)
                counts, ended = counts + done.counts, bool(done.summary["end"])
                unlisted = int(done.summary["unlisted"])
                attempt.report(counts.inputs, counts.failed, images.position)
            else:
                part = self._describe(islice(images, work.rows), attempt, counts, images)
                counts, ended = counts + part.counts, len(part.globals) < work.rows
                unlisted = images.unlisted
                if part.globals:
                    self.writer.write(attempt, work.part + piece * work.stride, part)
                    fingerprint = _fingerprint((row.record_id, row.sha256) for row in part.globals)
                    summary = {"images": fingerprint, "end": ended, "unlisted": unlisted}
                    attempt.commit_piece(piece, part.counts, summary)
            piece += 1

        if images.listed:
            attempt.summary = {"unlisted": unlisted}
        attempt.notes = {PASSED_OVER + suffix: n for suffix, n in images.passed_over.items()}
        if images.damaged:
            attempt.summary = {**attempt.summary, "damaged": 1}
        return counts

    def _missing(self, work: MissingImages, attempt: Attempt) -> Counts:
        """A failed row for each image that a list names and no archive held."""
        missing, counts = missing_images(attempt.place), Counts(0, 0, 0)
        for piece, references in enumerate(iter(lambda: list(islice(missing, ROWS_A_PART)), [])):
            part = PartRows()
            for row, reference in enumerate(references):
                described = failed(reference, "no archive holds it", "missing")
                part.globals.append(described.row)
                self.keep(part, row, described)

            self.writer.write(attempt, work.part + piece * work.stride, part)
            counts += part.counts
        return counts

    def _describe(
        self, items: Iterable[Item], attempt: Attempt, before: Counts, images: ArchiveImages | None
    ) -> PartRows:
        """Describe a run of images; progress counts from what the unit did `before`."""
        later = _taken_over(attempt.place, attempt.unit.work.again)
        part, reason = PartRows(), ""
        for row, described in enumerate(self.described(items, attempt)):
            if described.failure is None and described.row.record_id in later:
                described = _left_to_retry(described.row)

            part.globals.append(described.row)
            reason = self.keep(part, row, described) or reason
            counts = before + part.counts
            attempt.report(counts.inputs, counts.failed, images.position if images else 0.0, reason)
        return part


class DescribeLocals(ImageWorker):
    """Describes the named rows of a part, or of an archive's parts, and writes their locals."""

    def __init__(self, job: Job) -> None:
        self.store = Store(job.settings["store"])
        super().__init__(job, self.store.place, layer=True)

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Describe the rows and hand over a file of locals, and one of failures, a part."""
        work = unit.of(LocalsOfParts)
        expected = {
            columns["record_id"]: (number, row, columns["sha256"])
            for number, rows in work.parts
            for row, columns in self._rows(number, rows)
        }
        parts = {number: PartRows() for number, _ in work.parts}
        left = {number: len(rows) for number, rows in work.parts}
        failed = 0

        items = self._items(work.maker, dict(expected))
        for done, described in enumerate(self.described(items, attempt), 1):
            number, row, _ = expected.pop(described.row.record_id)
            reason = self.keep(parts[number], row, described)
            failed += bool(reason)
            left[number] -= 1
            if not left[number]:  # a part of an archive goes to the disk as soon as it is whole
                self._write(attempt, number, parts.pop(number))
            attempt.report(done, failed, reason=reason)

        for record_id, (number, _, _) in sorted(expected.items()):
            reason = "its archive does not hold it any more"
            parts[number].failures.append(FailureRow(record_id, self.job.stage, reason, "changed"))
            failed += 1
        for number in sorted(parts):
            self._write(attempt, number, parts[number])
        return Counts(unit.inputs, unit.inputs - failed, failed)

    def _rows(self, number: int, rows: Sequence[int]) -> Iterable[tuple[int, dict[str, Any]]]:
        name = self.store.part(number).globals.name
        table = read_columns(self.store.place, name, ["record_id", "sha256"])
        return zip(rows, table.take(list(rows)).to_pylist(), strict=True)

    def _items(self, maker: Unit, expected: dict[str, tuple[int, int, str]]) -> Iterable[Item]:
        """The images in the order in which the store's unit had them."""
        if isinstance(maker.work, ArchivedImages):
            for item in islice(self.archive(maker.work, expected.keys()), len(expected)):
                yield replace(item, expected=expected[item.reference.record_id][2])
        else:
            references = read_slice(self.store.place, maker)
            for _, row, digest in expected.values():
                yield Item(references[row], expected=digest)

    def _write(self, attempt: Attempt, number: int, part: PartRows) -> None:
        part.locals.sort(key=lambda one: one.row)
        self.writer.write(attempt, number, part)


def _taken_over(place: Place, own: str) -> frozenset[str]:
    """Record ids that later retries took over from a unit of the table `own` ("": the plan's).

    Where such a unit is done again, they must not come to life in two parts.
    """
    names = (f"plan/{name}" for name in place.names("plan"))
    later = (name for name in names if retry_number(name) > retry_number(own))
    return frozenset[str]().union(*(read_ids(place, name) for name in later))


def _left_to_retry(row: GlobalRow) -> Described:
    reference = ImageReference(row.record_id, row.source, b"", row.box)
    reason = "it failed before, and was left to --retry-failed"
    return failed(reference, reason, "retried", row.bytes, row.sha256)


def _pass_over(images: ArchiveImages, done: Marker, piece: int) -> None:
    """Read the images of a committed piece. Raises _Differs where they are others by now."""
    items = islice(images, done.counts.inputs)
    if (
        _fingerprint((item.reference.record_id, item.digest) for item in items)
        != (done.summary["images"])
    ):
        raise _Differs(piece)


def _fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """One hash of record ids and SHA-256 of their files."""
    return sha256_text(canonical_json(list(rows)))
