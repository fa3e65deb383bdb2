"""extract --locals-for: local descriptors of the images that a shortlist names, as a layer of a
finished store.

Of a million images only some ten thousand are ever reranked; the others need no locals. A layer
lies in STORE/layers/NAME, an output of its own: local/part-00017.<hash>.h5 with the rows of the
store's part 17 that were asked for and are in no layer yet.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.extract.batches import ISOLATE_FROM, batched, isolated
from pipelines.extract.describer import Describer
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.manifests import read_manifest, require_manifest
from pipelines.jobs.plan import planned_units
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import reranked_rows, truth_of
from pipelines.sources.archive_images import ArchiveImages, Listed, archive_url
from pipelines.sources.item import Item
from pipelines.storage.place import open_place
from pipelines.stores.image_plan import read_slice
from pipelines.stores.locals import LocalsFile
from pipelines.stores.part_writer import local_row, read_rotation, write_locals
from pipelines.stores.store import PartFiles, Store, part_columns
from rrt_core.extractors import create
from schemas import failures
from schemas.errors import UserError
from schemas.failures import FailureRow
from schemas.layout import LAYERS
from schemas.local_descriptors import LocalRow, bytes_a_local
from schemas.manifest import Counts, Manifest, canonical_json, sha256_text
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, Unit
from schemas.row_ids import ROWS_A_PART

STAGE = "locals"
OF_THE_STORE = (
    "local_dtype",
    "max_locals",
    "decoding",
    "max_pixels",
    "min_side",
)  # a layer has its store's

Wanted = dict[int, list[int]]  # part number -> rows, both ascending


def run(options: dict[str, Any], settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the layer. Raises UserError and driver.JobFailed."""
    job = plan(options, settings)
    if job is None:
        return Store(options["out"]).manifest
    if options["retry_failed"] and read_manifest(open_place(job.output)) is not None:
        settings = replace(
            settings, overwrite=True
        )  # finished, and yet none of these has locals: all of it failed
    manifest = run_job(job, settings)
    if manifest.counts.failed:
        print(
            f"{STAGE:<9}  {manifest.counts.failed:,} images failed (see {job.output}/failures); "
            f"once they are as they "
            "were, give --retry-failed too",
            file=sys.stderr,
        )
    return manifest


def plan(options: dict[str, Any], settings: RunSettings) -> Job | None:
    """The job of the layer; None where all images that are named have local descriptors. Raises
    UserError.
    """
    from rrt_core.extractors import identity_of

    store = Store(options["out"])
    extractor = create(options["extractor"], **options["extractor_option"])
    if json.loads(canonical_json(identity_of(extractor))) != store.extractor:
        raise UserError(
            f"{store.place.url} was described by {store.extractor['name']} with other settings or "
            f"weights; give the "
            "same --extractor and --extractor-option"
        )
    _refuse_other_options(store, options, settings)
    named = _named(store, options)
    wanted = _not_there(store, named)
    images = sum(map(len, wanted.values()))
    if not images:
        print(
            f"{STAGE:<9}  all {sum(map(len, named.values())):,} images have local descriptors",
            file=sys.stderr,
        )
        return None
    kept = {key: store.manifest.recipe[key] for key in OF_THE_STORE}
    units = _units(store, wanted)
    globals_of = {number: store.part(number).globals.name for number in wanted}
    layer = sha256_text(
        canonical_json([[number, wanted[number], globals_of[number]] for number in sorted(wanted)])
    )
    content = sha256_text(canonical_json(sorted(globals_of.values())))
    return Job(
        stage=STAGE,
        output=f"{store.place.url}/{LAYERS}/{layer[:12]}",
        worker="extract/locals",
        recipe={"extractor": store.extractor, **kept, "threads": settings.threads_per_worker},
        inputs={"globals": {"url": store.place.url, "content": content}},
        units=tuple(units),
        settings={**options, **kept, "locals": "all", "store": store.place.url},
        facts={
            "kind": "layer",
            "globals": {str(number): name for number, name in globals_of.items()},
            "bytes_a_local": bytes_a_local(extractor.local_dim, str(kept["local_dtype"])),
        },
        noun="images",
        most_failed=options["max_failures"],
    )


def _refuse_other_options(store: Store, options: dict[str, Any], settings: RunSettings) -> None:
    """Raise UserError for an option that is given and is not the store's: it would do nothing, or
    change bytes.
    """
    from pipelines.extract.options import Options

    usual = {field.name: field.default for field in fields(Options)}
    recipe = store.manifest.recipe
    for name in OF_THE_STORE:
        if name not in recipe:
            raise UserError(
                f"{store.place.url} was imported, so that its images are not known; describe them "
                f"anew"
            )
        if options[name] not in (usual[name], recipe[name]):
            raise UserError(
                f"extract: {name} is {options[name]!r}; of {store.place.url} it is "
                f"{recipe[name]!r}, so leave it out"
            )
    if settings.threads_per_worker != recipe["threads"]:
        raise UserError(
            f"{store.place.url} was described with {recipe['threads']} threads a worker, which "
            f"change the bytes; give "
            f"--threads-per-worker {recipe['threads']}"
        )


def _named(store: Store, options: dict[str, Any]) -> Wanted:
    """The rows that a run's shortlist reranks, or that a file of record ids names."""
    asked = str(options["locals_for"])
    if open_place(asked).exists("shortlist"):
        return _of_shortlist(store, asked, options)
    folder, _, name = asked.rpartition("/")
    try:
        text = open_place(folder or ("/" if asked.startswith("/") else ".")).read(name).decode()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"{asked}: there is neither a shortlist of 'search' nor such a file of record ids"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{asked}: it is no text of record ids") from None
    ids = {line.rstrip("\r") for line in text.split("\n") if line.strip()}
    if not ids:
        raise UserError(f"{asked}: it names no record id")
    rows = _rows_of(store, ids)
    found = sum(map(len, rows.values()))
    if found < len(ids):
        there: set[str] = set()
        for number, listed in rows.items():
            held = store.read_ids(store.part(number)).record_ids
            there.update(held[row] for row in listed)
        raise UserError(
            f"{asked}: {sorted(ids - there)[0]!r} is no described image of {store.place.url}"
        )
    return rows


def _rows_of(store: Store, ids: set[str]) -> Wanted:
    rows: Wanted = {}
    for part in store.parts:
        read = store.read_ids(part)
        found = [int(row) for row in np.flatnonzero(read.ok) if read.record_ids[row] in ids]
        if found:
            rows[part.number] = found
    return rows


def _of_shortlist(store: Store, url: str, options: dict[str, Any]) -> Wanted:
    """Of a gallery's store the candidates that are reranked, of the queries' store the queries."""
    manifest = require_manifest(f"{url}/shortlist", "shortlist", "search")
    bases = [
        entry["base"]
        for entry in manifest.facts["stores"]
        if entry["content"] == store.manifest.content
    ]
    queries = manifest.inputs["queries"]["content"] == store.manifest.content
    if not bases and not queries:
        raise UserError(
            f"{url}/shortlist was not made of {store.place.url} as it is now; search again"
        )
    names: set[str] = set()
    row_ids: set[int] = set()
    for entry in shortlist_files(url):
        shortlists = read_shortlist_part(url, entry.name)
        truth = truth_of(options["ground_truth"], shortlists)
        names |= {name for name, _ in shortlists}
        for name, rows in shortlists:
            reranked, _ = reranked_rows(name, rows, truth, int(options["shortlist"]))
            row_ids |= set(reranked.column("row_id").to_pylist())
    rows = _rows_of(store, names) if queries else {}
    for base in bases[:1]:
        for row_id in sorted(row_ids):
            part, row = divmod(row_id - base * ROWS_A_PART, ROWS_A_PART)
            if 0 <= part < store.span:
                rows.setdefault(part, []).append(row)
    return {part: sorted(set(listed)) for part, listed in sorted(rows.items())}


def _not_there(store: Store, named: Wanted) -> Wanted:
    """Without the rows that a finished layer holds."""
    left: Wanted = {}
    for number, rows in named.items():
        part = store.part(number)
        held = {int(row) for file in _files(store, part) for row in file.rows}
        missing = [row for row in rows if row not in held]
        if missing:
            left[number] = missing
    return left


def _files(store: Store, part: PartFiles) -> Iterable[LocalsFile]:
    own = [(store.place, part.locals)] if part.locals else []
    return (LocalsFile(place, entry) for place, entry in (*own, *part.layers))


def _units(store: Store, wanted: Wanted) -> list[Unit]:
    """A unit a part of a listing, or an archive.

    It holds the unit of the store's plan that made the part.
    """
    parts: dict[str, list[int]] = {}
    makers: dict[str, Unit] = {}
    planned = planned_units(store.place)
    table = pq.read_table(
        io.BytesIO(store.place.read("parts.parquet")), columns=["unit", "name"]
    ).to_pylist()
    unit_of = {row["name"]: row["unit"] for row in table}
    by_name = {unit.name: unit for unit in planned}
    for number in sorted(wanted):
        maker = by_name.get(unit_of[store.part(number).globals.name])
        if maker is None or not isinstance(maker.work, (ArchivedImages, ListedImages)):
            raise UserError(
                f"{store.place.url} was imported, so that its images are not known; describe them "
                f"anew"
            )
        parts.setdefault(maker.name, []).append(number)
        makers[maker.name] = maker
    return [
        Unit(
            name,
            LocalsOfParts(
                makers[name], tuple((number, tuple(wanted[number])) for number in numbers)
            ),
            sum(len(wanted[number]) for number in numbers),
        )
        for name, numbers in parts.items()
    ]


class DescribeLocals(UnitWorker):
    """Describes the named rows of a part, or of an archive's parts, and writes their locals."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.options = job.settings
        self.store = Store(job.settings["store"])
        self.describer = Describer(self.options)
        self.rotation = read_rotation(
            self.store.place, self.options, self.describer.extractor.local_dim
        )

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Describe the rows and hand over a file of locals, and one of failures, a part."""
        work = unit.of(LocalsOfParts)
        wanted = dict(work.parts)
        expected = {
            columns["record_id"]: (number, row, columns["sha256"])
            for number, rows in wanted.items()
            for row, columns in self._rows(number, rows)
        }
        kept: dict[int, list[LocalRow]] = {number: [] for number in wanted}
        lost: dict[int, list[FailureRow]] = {number: [] for number in wanted}
        left = {number: len(rows) for number, rows in wanted.items()}
        failed = 0
        items = self._items(work.maker, dict(expected))
        for done, described in enumerate(self._described(items, attempt), 1):
            number, row, _ = expected.pop(described.row.record_id)
            reason = ""
            if described.description:
                kept[number].append(
                    local_row(row, described.description, self.options, self.rotation)
                )
            elif described.failure:
                lost[number].append(described.failure)
                failed, reason = (
                    failed + 1,
                    f"{described.row.record_id}: {described.failure.reason}",
                )
            left[number] -= 1
            if not left[number]:  # a part of an archive goes to the disk as soon as it is whole
                self._write(attempt, number, kept.pop(number), lost.pop(number))
            attempt.tell(done, failed, reason=reason)
        for record_id, (number, _, _) in sorted(expected.items()):
            reason = "its archive does not hold it any more"
            lost[number].append(FailureRow(record_id, STAGE, reason, "changed"))
            failed += 1
        for number in sorted(kept):
            self._write(attempt, number, kept[number], lost[number])
        return Counts(unit.inputs, unit.inputs - failed, failed)

    def _rows(self, number: int, rows: Sequence[int]) -> Iterable[tuple[int, dict[str, Any]]]:
        table = part_columns(
            self.store.place, self.store.part(number).globals.name, ["record_id", "sha256"]
        )
        return zip(rows, table.take(list(rows)).to_pylist(), strict=True)

    def _items(self, maker: Unit, expected: dict[str, tuple[int, int, str]]) -> Iterable[Item]:
        """The images in the order in which the store's unit had them."""
        place, work = self.store.place, maker.work
        if not isinstance(work, ArchivedImages):
            references = read_slice(place, maker)
            for _, row, digest in expected.values():
                yield Item(references[row], expected=digest)
            return
        listed = Listed(place, work.source) if work.listed else None
        url = archive_url(place, work.archive)
        images = ArchiveImages(url, work.source, work.prefix, listed, expected.keys())
        for item in islice(images, len(expected)):
            yield Item(
                item.reference, item.data, item.refusal, expected[item.reference.record_id][2]
            )

    def _described(self, items: Iterable[Item], attempt: Attempt) -> Iterable[Any]:
        if attempt.number >= ISOLATE_FROM:
            return isolated(self.options, self.job.recipe["threads"], items)
        return batched(self.describer, items)

    def _write(
        self, attempt: Attempt, number: int, kept: list[LocalRow], lost: list[FailureRow]
    ) -> None:
        kept.sort(key=lambda one: one.row)
        path = attempt.path(f"part-{number:05}.h5")
        layout = write_locals(
            path, kept, self.describer.extractor.local_dim, self.options, self.rotation
        )
        attempt.add(path, f"local/part-{number:05}.h5", len(kept), layout)
        path = attempt.path(f"part-{number:05}.parquet")
        failures.write_part(path, lost)
        attempt.add(path, f"failures/part-{number:05}.parquet", len(lost))
