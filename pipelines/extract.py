"""extract: images -> global descriptors (Parquet), local descriptors (HDF5) and failures, a part at a time."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from pipelines.commit import Attempt, Job, Unit, UnitWorker
from pipelines.driver import RunSettings, run_job
from pipelines.isolation import Crashed, DescribingFailed, Isolated
from pipelines.options import option
from pipelines.sources import SourceSpec, list_images
from pipelines.storage import Place, open_file_system
from rrt_core.extractors import Description, Extractor, Failure, create
from rrt_core.images import DecodeError, Image, decode
from schemas import failures, global_descriptors, local_descriptors
from schemas.errors import UserError
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import ImageReference, image_table, references_of
from schemas.local_descriptors import LocalRow
from schemas.manifest import Counts, Manifest, canonical_json, sha256_text
from schemas.shortlist import ROWS_A_PART

STAGE = "extract"
LAYER = "full"  # the layer of local descriptors that a full extraction makes
PART_BYTES = 256_000_000
PARTS_WISHED = 16  # small stores are cut finer, so that workers share them and little is lost on a kill
BATCH = 4  # few: each of the images that are decoded ahead may have max_pixels
MOST_BYTES = 1_000_000_000  # of an image file
ISOLATE_FROM = 3  # from this attempt on, images are described one by one in a child process
CRASH_VARIABLE = "RRT_TEST_CRASH_ON"  # a test hook: decoding an id that contains this text kills the process


@dataclass(frozen=True)
class Options:
    """Options of `extract`."""

    images: str = option("folder of images, or the folder that the names of a list are relative to (path or URL)")
    out: str = option("the store to make: a folder (path or URL)")
    list: str = option("image list: CSV or text with a name first in each row, or Parquet with a column 'path'", "")
    ground_truth: str = option("ground-truth file (.json, revisitop's .pkl) that names gallery and queries", "")
    take: str = option("what of the ground truth to describe", "", choices=("", "gallery", "queries"))
    source: str = option("name of the source in record ids; the folder's name where empty", "")
    extractor: str = option("efficientnet, rootsift, or package.module:Class", "efficientnet")
    extractor_option: dict[str, Any] = option("an option of the extractor, such as sizes=512,360,256", {})
    global_dtype: str = option("how globals are stored", "float32", choices=("float32", "float16"))
    local_dtype: str = option(
        "how local descriptors are stored; 500 of 128 dimensions take 262 kB (float32), 134 kB (float16), 70 kB (int8)",
        "float16",
        choices=tuple(local_descriptors.DTYPES),
    )
    rows_per_part: int = option("images a part; 0 chooses (at most 4,096 and 256 MB)", 0)
    max_pixels: int = option("images with more pixels are refused, as failed rows", 100_000_000)
    min_side: int = option("images with a shorter side are refused, as failed rows", 10)


def run(options: Options, settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the store. Raises UserError and driver.JobFailed."""
    job, plan_files = plan(options, settings)
    return run_job(job, settings, plan_files)


def plan(options: Options, settings: RunSettings) -> tuple[Job, dict[str, bytes]]:
    """The job, and its plan's files where the images were listed just now: lists once, cuts them into parts."""
    if options.ground_truth and not options.take:
        raise UserError("extract: --ground-truth needs --take gallery or --take queries")
    extractor = create(options.extractor, **options.extractor_option)
    spec = SourceSpec(options.images, options.list, options.ground_truth, options.take, options.source)
    names = None if settings.overwrite else _planned_ids(Place(options.out), spec)
    files: dict[str, bytes] = {}
    if names is None:
        references = list_images(spec)
        names = [reference.record_id for reference in references]
        files = _plan_files(spec, references)
    rows = _rows_per_part(options, extractor, len(names))
    recipe = {
        "extractor": identity_of(extractor),
        "global_dtype": options.global_dtype,
        "local_dtype": options.local_dtype,
        "rows_per_part": rows,
        "max_pixels": options.max_pixels,
        "min_side": options.min_side,
        "threads": settings.threads_per_worker,
    }
    units = []
    repeated = _repeated(names)
    for part, start in enumerate(range(0, len(names), rows)):
        ids = names[start : start + rows]
        again = [row for row in range(len(ids)) if start + row in repeated]
        payload = {"part": part, "start": start, "ids": sha256_text("\n".join(ids)), "repeated": again}
        units.append(Unit(f"part-{part:05}", payload, len(ids)))
    job = Job(
        stage=STAGE,
        output=options.out,
        worker="pipelines.extract:DescribePart",
        recipe=recipe,
        inputs={"images": {"url": Place(options.images).url, "content": sha256_text("\n".join(names))}},
        units=tuple(units),
        settings=asdict(options),
        facts={
            "kind": "store",
            "layer": LAYER,
            "rows_per_part": rows,
            "bytes_a_local": local_descriptors.bytes_a_local(extractor.local_dim, options.local_dtype),
        },
        noun="images",
    )
    return job, files


def identity_of(extractor: Extractor) -> dict[str, Any]:
    """What of an extractor goes into a recipe."""
    return {
        "name": extractor.name,
        "revision": extractor.revision,
        "weights_sha256": extractor.weights_sha256,
        "global_dim": extractor.global_dim,
        "local_dim": extractor.local_dim,
        "scales": list(extractor.scales),
        "config": extractor.config,
    }


def _repeated(names: Sequence[str]) -> set[int]:
    """Places of the ids that stand earlier in the source already."""
    first: dict[str, int] = {}
    return {place for place, name in enumerate(names) if first.setdefault(name, place) != place}


def _planned_ids(place: Place, spec: SourceSpec) -> Sequence[str] | None:
    """The record ids of the store's plan, or None where it has none of this source, or it is damaged."""
    try:
        planned = json.loads(place.read("plan/source.json"))
        data = place.read("plan/images.parquet")
        if planned["spec"] != canonical_json(asdict(spec)) or planned["images_sha256"] != sha256(data).hexdigest():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ids: Sequence[str] = pq.read_table(io.BytesIO(data), columns=["record_id"]).column("record_id").to_pylist()
    return ids


def _plan_files(spec: SourceSpec, references: Sequence[ImageReference]) -> dict[str, bytes]:
    """The plan's table of images, and of what source it is; reruns read them and never list again."""
    buffer = io.BytesIO()
    pq.write_table(image_table(references), buffer, row_group_size=ROWS_A_PART)
    data = buffer.getvalue()
    told = {"spec": canonical_json(asdict(spec)), "images_sha256": sha256(data).hexdigest()}
    return {"plan/images.parquet": data, "plan/source.json": json.dumps(told).encode()}


def _rows_per_part(options: Options, extractor: Extractor, images: int) -> int:
    """At most 4,096 rows and 256 MB a part; a small source is cut into about 16 parts of 32 images or more."""
    if options.rows_per_part:
        if not 1 <= options.rows_per_part <= ROWS_A_PART:
            raise UserError(f"extract: --rows-per-part is {options.rows_per_part}; it must lie in 1 .. {ROWS_A_PART}")
        return options.rows_per_part
    a_local = local_descriptors.bytes_a_local(extractor.local_dim, options.local_dtype)
    an_image = 4 * extractor.global_dim + int(extractor.config.get("max_locals", 500)) * a_local
    most = max(1, min(ROWS_A_PART, PART_BYTES // an_image))
    return max(1, min(most, max(32, -(-images // PARTS_WISHED))))


@dataclass
class Described:
    """What became of one image; the row of the failures table where it failed."""

    row: GlobalRow
    description: Description | None = None
    failure: FailureRow | None = None


class Describer:
    """Reads, decodes and describes images: in the worker, or alone in a child process."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.extractor = create(options["extractor"], **options["extractor_option"])

    def decoded(self, reference: ImageReference) -> tuple[Image | DecodeError, int, str]:
        """The image, or why there is none; the file's bytes and SHA-256."""
        try:
            data = read_location(reference.location)
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return DecodeError(f"the file cannot be read: {reason}", "unreadable"), 0, ""
        digest = sha256(data).hexdigest()
        crash = os.environ.get(CRASH_VARIABLE)
        if crash and crash in reference.record_id:
            os.kill(os.getpid(), signal.SIGSEGV)
        try:
            image = decode(
                data,
                reference.record_id,
                reference.box,
                max_pixels=self.options["max_pixels"],
                min_side=self.options["min_side"],
            )
        except DecodeError as error:
            return error, len(data), digest
        return image, len(data), digest

    def describe(
        self, references: Sequence[ImageReference], images: Sequence[tuple[Image | DecodeError, int, str]]
    ) -> Iterator[Described]:
        """What became of a batch of decoded images, in order."""
        good = [image for image, _, _ in images if isinstance(image, Image)]
        answers = iter(self.extractor.describe(good) if good else [])
        for reference, (image, size, digest) in zip(references, images, strict=True):
            if isinstance(image, DecodeError):
                yield failed(reference, image.reason, image.error_class, size, digest)
                continue
            answer = next(answers)
            if isinstance(answer, Failure):
                yield failed(reference, answer.reason, answer.error_class, size, digest)
                continue
            row = GlobalRow(
                reference.record_id,
                reference.source,
                image.width,
                image.height,
                reference.box,
                image.resize_factor,
                size,
                digest,
                answer.global_descriptor,
            )
            yield Described(row, answer)

    def describe_alone(self, reference: ImageReference) -> Described:
        """One image by itself: the same bytes as in any company."""
        return next(self.describe([reference], [self.decoded(reference)]))


def failed(reference: ImageReference, reason: str, error_class: str, size: int = 0, digest: str = "") -> Described:
    """A failed image: its row with zeros for a descriptor, and its row of the failures table."""
    row = GlobalRow(reference.record_id, reference.source, 0, 0, reference.box, 1.0, size, digest, None)
    return Described(row, None, FailureRow(reference.record_id, STAGE, reason, error_class))


def read_location(location: bytes) -> bytes:
    """The bytes of a file by local path or URL. Raises OSError; a device or a pipe is never waited for."""
    if not location.startswith(b"/"):
        fs, path = open_file_system(location.decode())
        return bytes(fs.cat_file(path))
    with open(os.open(location, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no regular file")
        if about.st_size > MOST_BYTES:
            raise OSError(f"it has {about.st_size:,} bytes; at most {MOST_BYTES:,} are read")
        return file.read()


class DescribePart(UnitWorker):
    """Does a part: decodes ahead of the model, describes in batches, writes three files."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.options = job.settings
        self.describer = Describer(self.options)

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Describe the part's images and hand over its files."""
        references = self._references(attempt.place, unit)
        one_by_one = attempt.number >= ISOLATE_FROM
        describe = self._isolated if one_by_one else self._batched
        repeated = set(unit.payload["repeated"])
        rows: list[GlobalRow] = []
        kept: list[LocalRow] = []
        lost: list[FailureRow] = []
        for described in describe(references):
            if len(rows) in repeated:
                reason = "the record id stands twice in the source; only the first is described"
                described = failed(references[len(rows)], reason, "duplicate")
            rows.append(described.row)
            if described.failure:
                lost.append(described.failure)
            if described.description:
                kept.append(self._local_row(len(rows) - 1, described.description))
            attempt.tell(len(rows))
        self._write(attempt, unit, rows, kept, lost)
        return Counts(len(rows), len(rows) - len(lost), len(lost))

    def _references(self, place: Place, unit: Unit) -> Sequence[ImageReference]:
        """The unit's slice of the plan; reads only the row groups that hold it."""
        start, rows = unit.payload["start"], unit.inputs
        with place.fs.open(place.path("plan/images.parquet"), "rb") as stream:
            file = pq.ParquetFile(stream)
            first, last = start // ROWS_A_PART, (start + rows - 1) // ROWS_A_PART
            table = file.read_row_groups(list(range(first, last + 1)))
        references = references_of(table.slice(start - first * ROWS_A_PART, rows))
        if sha256_text("\n".join(reference.record_id for reference in references)) != unit.payload["ids"]:
            raise UserError(f"{place.url}/plan/images.parquet is not what the plan says; give --overwrite")
        return references

    def _batched(self, references: Sequence[ImageReference]) -> Iterator[Described]:
        """Two threads read and decode up to two batches ahead of the model."""
        waiting = iter(references)
        with ThreadPoolExecutor(2) as pool:
            queue = [(r, pool.submit(self.describer.decoded, r)) for r in islice(waiting, 2 * BATCH)]
            while queue:
                batch, queue = queue[:BATCH], queue[BATCH:]
                images = [future.result() for _, future in batch]
                queue += [(r, pool.submit(self.describer.decoded, r)) for r in islice(waiting, BATCH)]
                yield from self.describer.describe([reference for reference, _ in batch], images)

    def _isolated(self, references: Sequence[ImageReference]) -> Iterator[Described]:
        """One by one in a child process: an image that kills it, or on which it fails, becomes a failed row.

        Raises the last failure where not one image went well: then it is not the images.
        """
        trouble: Exception | None = None
        well = 0
        with Isolated(self.options, self.job.recipe["threads"]) as child:
            for reference in references:
                try:
                    described = child.describe(reference)
                    well += 1
                except Crashed as crash:
                    described = failed(reference, f"describing it killed the process ({crash})", "crashed")
                except DescribingFailed as error:
                    trouble = error
                    described = failed(reference, f"describing it failed: {error}", "error")
                yield described
        if trouble is not None and not well:
            raise trouble

    def _local_row(self, row: int, description: Description) -> LocalRow:
        descriptors = local_descriptors.encoded(description.descriptors, self.options["local_dtype"])
        return LocalRow(row, descriptors, description.xy, description.scale, description.strength)

    def _write(
        self,
        attempt: Attempt,
        unit: Unit,
        rows: Sequence[GlobalRow],
        kept: Sequence[LocalRow],
        lost: Sequence[FailureRow],
    ) -> None:
        extractor, options = self.describer.extractor, self.options
        path = attempt.path("global.parquet")
        global_descriptors.write_part(path, rows, extractor.global_dim, options["global_dtype"])
        attempt.add(path, f"global/{unit.name}.parquet", len(rows))
        path = attempt.path("local.h5")
        layout = local_descriptors.write_part(path, kept, extractor.local_dim, options["local_dtype"])
        attempt.add(path, f"local/{LAYER}/{unit.name}.h5", len(kept), layout)
        path = attempt.path("failures.parquet")
        failures.write_part(path, lost)
        attempt.add(path, f"failures/{unit.name}.parquet", len(lost))


def failure_rows(store: Place, names: Sequence[str]) -> list[FailureRow]:
    """The failures of a store's parts, in order."""
    return [row for name in sorted(names) for row in failures.read_part(io.BytesIO(store.read(name)))]
