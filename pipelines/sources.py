"""What is to be described: a folder, an image list, or the gallery or queries of a ground-truth file.

The listing is made once, by the driver, and written into the store's plan; reruns and workers read it there and
never list again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import Place, open_file_system
from schemas.errors import UserError
from schemas.ground_truth import GroundTruth, load_ground_truth
from schemas.image_list import Box, ImageReference, encode_name, make_record_id

_RASTER = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "jp2")
SUFFIXES = frozenset(f".{name}" for name in (*_RASTER, "avif"))
NAME_COLUMNS = ("path", "name", "image", "file", "filename")


@dataclass(frozen=True)
class SourceSpec:
    """Where the images are named. `images` is the folder that names are relative to."""

    images: str
    list: str = ""
    ground_truth: str = ""
    take: str = ""  # gallery | queries, of the ground truth
    source: str = ""  # the source's name in ids; "" is the folder's own

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source or Place(self.images).root.rstrip("/").rsplit("/", 1)[-1] or "images"


def list_images(spec: SourceSpec) -> list[ImageReference]:
    """The references of a source, in the order of their record ids' UTF-8 bytes, or as the list gives them.

    Raises UserError where nothing is found, or a list or ground truth cannot be read.
    """
    place = Place(spec.images)
    if "/" in spec.source:
        raise UserError(f"extract: --source is {spec.source!r}; the name of a source has no '/'")
    if not place.fs.isdir(place.root):
        raise UserError(f"{spec.images}: there is no such folder of images")
    if spec.ground_truth:
        references = list(_from_ground_truth(spec, place))
    elif spec.list:
        references = list(_from_list(spec, place))
    else:
        references = sorted(_from_folder(spec, place), key=lambda reference: reference.record_id.encode())
    if not references:
        raise UserError(f"{spec.list or spec.ground_truth or spec.images}: no images are named here")
    return references


def _reference(spec: SourceSpec, place: Place, name: str | bytes, box: Box | None = None) -> ImageReference:
    try:
        raw = os.fsencode(name) if isinstance(name, str) else name
    except UnicodeEncodeError:
        raise UserError(f"{spec.list or spec.ground_truth}: {name!r} is no valid Unicode text") from None
    location = os.fsencode(place.url.rstrip("/")) + b"/" + raw
    return ImageReference(make_record_id(spec.name, raw, box), spec.name, location, box)


def _from_folder(spec: SourceSpec, place: Place) -> Iterator[ImageReference]:
    """All files below the folder whose suffix is an image's; hidden files and folders are left out."""
    if place.local:
        for path in _walk(place.root, frozenset()):
            if os.path.splitext(path)[1].lower() in SUFFIXES:
                yield _reference(spec, place, os.path.relpath(path, place.root))
        return
    for path in place.fs.find(place.root):
        relative = path[len(place.root) :].lstrip("/")
        hidden = any(piece.startswith(".") for piece in relative.split("/"))
        if not hidden and os.path.splitext(relative)[1].lower() in SUFFIXES:
            yield _reference(spec, place, relative)


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Files below a folder that are not hidden, links followed; a link to a folder above leads nowhere.

    Raises UserError for a folder that cannot be listed: a store without its images would look complete.
    """
    try:
        about = os.stat(folder)
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be listed: {error.strerror}") from None
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    for entry in listed:
        if entry.is_dir():
            yield from _walk(entry.path, above | {here})
        else:
            yield entry.path


def _from_list(spec: SourceSpec, place: Place) -> Iterator[ImageReference]:
    """CSV or text (the paper's ``path,label,width,height``, or a name a line), or Parquet with a column of names."""
    fs, path = open_file_system(spec.list)
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise UserError(f"{spec.list}: there is no such image list") from None
    try:
        names = _parquet_names(data) if path.endswith(".parquet") else _csv_names(data)
    except (csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"{spec.list}: it cannot be read as an image list: {error}") from None
    if names is None:
        raise UserError(f"{spec.list}: it has no column of names (one of {', '.join(NAME_COLUMNS)})")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
            raise UserError(
                f"{spec.list}: row {number}: {name!r} must be a name relative to the folder of images, without '..'"
            )
        yield _reference(spec, place, name)


def _parquet_names(data: bytes) -> list[str] | None:
    table = pq.read_table(io.BytesIO(data))
    column = next((name for name in NAME_COLUMNS if name in table.column_names), None)
    return None if column is None else table.column(column).to_pylist()


def _csv_names(data: bytes) -> list[str]:
    rows = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    names = [row[0].strip() for row in rows if row and row[0].strip()]
    return names[1:] if names and names[0].lower() in NAME_COLUMNS else names


def _from_ground_truth(spec: SourceSpec, place: Place) -> Iterator[ImageReference]:
    """The gallery or the queries (with their boxes) that a ground-truth file names."""
    truth = load_ground_truth(spec.ground_truth)
    complete = _complete_names(truth, place, spec)
    if spec.take == "queries":
        for query in truth.queries:
            yield _reference(spec, place, complete(query.name), query.box)
    else:
        for name in truth.gallery:
            yield _reference(spec, place, complete(name))


def _complete_names(truth: GroundTruth, place: Place, spec: SourceSpec) -> Callable[[str], str | bytes]:
    """Revisitop's files name images without a suffix: it is found in the folder, once for all."""
    if all(os.path.splitext(name)[1].lower() in SUFFIXES for name in truth.gallery[:100]):
        return lambda name: name
    by_stem: dict[str, bytes] = {}
    for reference in _from_folder(spec, place):
        relative = reference.location[len(os.fsencode(place.url.rstrip("/"))) + 1 :]
        by_stem.setdefault(encode_name(os.path.splitext(relative)[0]), relative)
    return lambda name: by_stem.get(encode_name(name), os.fsencode(name) + b".jpg")
