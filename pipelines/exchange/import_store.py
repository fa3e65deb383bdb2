"""import: descriptors that other software made -> a store as `extract` makes it.

The driver lists what there is, once, and cuts it into parts; a worker reads its part's files,
checks every descriptor and writes the part. What cannot be taken is a failed row with its reason
(docs/importing.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.exchange.import_inputs import Inputs, describe_inputs
from pipelines.exchange.import_options import STAGE, Options, refuse_mistakes
from pipelines.exchange.import_readers import ImportedImage, Reader, open_reader
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.storage.place import open_place
from pipelines.stores.failed_rows import end_with_failures
from pipelines.stores.image_plan import (
    images_file,
    listed_units,
    read_rows,
    read_slice,
    rows_per_part,
    table_file,
)
from pipelines.stores.part_writer import OF_A_STORE, PartRows, PartWriter
from schemas import local_descriptors
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import ImageReference
from schemas.importers import Unusable
from schemas.layout import ENTRIES, IMAGES_NAME, LAYER
from schemas.manifest import Counts, Manifest
from schemas.plan import Job, ListedImages, Unit

REPEATED = "the record id stands twice in the input; only the first is taken"


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the store. Raises UserError and JobFailed."""
    job, plan_files = plan(options)
    manifest = run_job(job, settings, plan_files)
    end_with_failures(manifest, options.out)
    extractor = manifest.recipe["extractor"]
    if extractor["local_dim"] and not extractor["weights_sha256"]:
        print(
            f"import     NOTE: the store does not say which weights made its descriptors, called "
            f"{extractor['name']} here, so that 'rerank' cannot see whether a reranker's weights "
            f"fit them; --extractor-name and --weights-sha256 say it",
            file=sys.stderr,
        )
    return manifest


def plan(options: Options) -> tuple[Job, dict[str, bytes]]:
    """The job, and its plan's files.

    Raises UserError where input, names and options do not fit together.
    """
    refuse_mistakes(options)
    inputs = describe_inputs(options)
    names = [reference.record_id for reference in inputs.references]
    has_locals, a_local = inputs.local_dim > 0, 0
    if has_locals:
        a_local = local_descriptors.bytes_a_local(inputs.local_dim, options.local_dtype)
    an_image = 4 * inputs.global_dim + options.max_locals * a_local
    rows = options.rows_per_part or rows_per_part(an_image, len(names))
    # by absolute paths, wherever workers run
    opened = {name: getattr(options, name) for name in ("input", "globals", "local_arrays")}
    job = Job(
        stage=STAGE,
        output=options.out,
        worker="import/part",
        recipe={
            "extractor": _extractor(options, inputs),
            "format": options.format,
            "variable": inputs.variable,
            "layout": options.layout,
            "scale_field": options.scale_field,
            "queries_cropped": options.queries_cropped,
            "locals": "full" if has_locals else "none",
            "global_dtype": options.global_dtype,
            "local_dtype": options.local_dtype,
            "rows_per_part": rows,
        },
        inputs={"descriptors": {"url": open_place(options.input).url, "content": inputs.content}},
        units=tuple(listed_units(names, rows)),
        settings={
            **asdict(options),
            **{name: open_place(given).url for name, given in opened.items() if given},
            "variable": inputs.variable,
            "scales": list(inputs.scales),
            "rows": inputs.matrix_rows,
            "global_dim": inputs.global_dim,
            "local_dim": inputs.local_dim,
        },
        facts={
            "kind": "store",
            **({"layer": LAYER} if has_locals else {}),
            "rows_per_part": rows,
            "bytes_a_local": a_local,
            "unlisted": inputs.unlisted,
        },
        noun="images",
    )
    return job, _plan_files(inputs)


def _extractor(options: Options, inputs: Inputs) -> dict[str, Any]:
    """What a recipe says of the extractor; what is not known is left open."""
    config: dict[str, Any] = {"max_locals": options.max_locals} if inputs.local_dim else {}
    if options.local_order == "given":
        config["order"] = "given"
    usual = {"delg": "delg", "ames": "ames", "clip": "clip"}.get(options.format, "imported")
    return {
        "name": options.extractor_name or usual,
        "revision": 0,
        "weights_sha256": options.weights_sha256.lower(),
        "global_dim": inputs.global_dim,
        "local_dim": inputs.local_dim,
        "scales": list(inputs.scales),
        "config": config,
    }


def _plan_files(inputs: Inputs) -> dict[str, bytes]:
    """The table of images, and for DELG the stem of each one's files; null where there is none."""
    files = {IMAGES_NAME: images_file(inputs.references)}
    if inputs.stems is not None:
        stems = [None if stem is None else os.fsencode(stem) for stem in inputs.stems]
        files[ENTRIES] = table_file(pa.table({"stem": pa.array(stems, pa.binary())}))
    return files


class ImportPart(UnitWorker):
    """Does a part: reads its images' descriptors, checks them, writes the part's files."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.options = job.settings
        local_dim = self.options["local_dim"]
        self.writer = PartWriter(
            self.options, self.options["global_dim"], local_dim, OF_A_STORE if local_dim else ""
        )

    @cached_property
    def reader(self) -> Reader:
        """The input, opened when the first part needs it."""
        return open_reader(self.options)

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Import the part and hand over its files."""
        work = unit.of(ListedImages)
        references = read_slice(attempt.place, unit)
        stems: list[bytes | None] = []
        if self.options["format"] == "delg":
            table = read_rows(attempt.place, ENTRIES, work.start, unit.inputs)
            stems = table.column("stem").to_pylist()

        part, repeated = PartRows(), work.repeated_rows
        images = zip(references, self._images(references, stems, work.start), strict=True)
        for row, (reference, image) in enumerate(images):
            if row in repeated:
                image = Unusable(REPEATED, "duplicate")

            if isinstance(image, Unusable):
                failure = FailureRow(reference.record_id, STAGE, image.reason, image.error_class)
                part.failures.append(failure)
                part.globals.append(_global_row(reference, None))
            else:
                part.globals.append(_global_row(reference, image))
                if image.locals is not None:
                    part.locals.append(self.writer.local_row(row, image.locals))
            attempt.report(row + 1)

        self.writer.write(attempt, work.part, part)
        return part.counts

    def _images(
        self, references: Sequence[ImageReference], stems: Sequence[bytes | None], start: int
    ) -> Iterator[ImportedImage | Unusable]:
        """What the input holds of each image, in order; what cannot be taken with its reason."""
        for take in self.reader.images(start, references, stems):
            try:
                yield take()
            except Unusable as error:
                yield error


def _global_row(reference: ImageReference, image: ImportedImage | None) -> GlobalRow:
    """The image's row; the picture itself was not seen: its size is 0 and it has no SHA-256."""
    make = partial(GlobalRow, reference.record_id, reference.source, 0, 0, reference.box, 1.0)
    return make(0, "", None) if image is None else make(image.bytes, "", image.global_descriptor)
