"""What is to be described: a folder, a glob, archives, an image list, or the gallery or queries of
a ground truth.

The listing is made once, by the driver, and written into the store's plan; reruns and workers read
it there and never list again. Archives are not opened for it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from pipelines.sources.archives import ARCHIVE_SUFFIXES, is_archive
from pipelines.sources.spec import SourceSpec, _folder_of, read_input
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from pipelines.storage.tables import parse_table
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, load_ground_truth
from schemas.image_list import (
    SUFFIXES,
    Box,
    ImageReference,
    encode_name,
    make_record_id,
    relative_name,
)

NAME_COLUMNS = ("path", "name", "image", "file", "filename")
_RELATIVE = "must be a name relative to the folder of images, without '..'"


def list_images(spec: SourceSpec) -> list[ImageReference]:
    """The references of a source, in the order of their record ids' UTF-8 bytes, or as the list
    gives them.

    Raises UserError where nothing is found, or a list or ground truth cannot be read.
    """
    place = open_place(_folder_of(spec.images))
    listed_on_web = place.http and bool(spec.list)  # the server need not show its folders
    if not listed_on_web and not place.is_folder():
        if place.exists():
            raise UserError(
                f"{spec.images}: it is a file; give its folder, and --list for some of the images "
                f"there"
            )
        raise UserError(f"{spec.images}: there is no such folder of images")
    if spec.ground_truth:
        references = list(_from_ground_truth(spec, place))
    elif spec.list:
        references = list(_from_list(spec, place))
    else:
        references = sorted(
            _from_folder(spec, place), key=lambda reference: reference.record_id.encode()
        )
    if not references:
        whole_folder = (
            not (spec.list or spec.ground_truth) and _folder_of(spec.images) == spec.images
        )
        if whole_folder and any(map(is_archive, place.names(""))):
            suffix = next(
                suffix
                for name in place.names("")
                for suffix in ARCHIVE_SUFFIXES
                if name.endswith(suffix)
            )
            raise UserError(
                f"{spec.images}: no images are here, but archives lie here; give "
                f"{place.url}/*{suffix}"
            )
        raise UserError(
            f"{spec.list or spec.ground_truth or spec.images}: no images are named here"
        )
    return references


def _reference(
    spec: SourceSpec, place: Place, name: str | bytes, box: Box | None = None
) -> ImageReference:
    try:
        raw = os.fsencode(name) if isinstance(name, str) else name
    except UnicodeEncodeError:
        raise UserError(
            f"{spec.list or spec.ground_truth}: {name!r} is no valid Unicode text"
        ) from None
    location = os.fsencode(place.url.rstrip("/")) + b"/" + raw
    return ImageReference(make_record_id(spec.name, raw, box), spec.name, location, box)


def _from_folder(spec: SourceSpec, place: Place) -> Iterator[ImageReference]:
    """All files below the folder whose suffix is an image's; hidden files and folders are left out.

    Of a glob, those that it matches.
    """
    folder = _folder_of(spec.images)
    if folder != spec.images:
        below = spec.images.removeprefix(folder).lstrip("/")
        for name in place.glob(below):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield _reference(spec, place, name)
        return
    if not isinstance(place, RemotePlace):
        for path in _walk(place.root, frozenset()):
            if os.path.splitext(path)[1].lower() in SUFFIXES:
                yield _reference(spec, place, os.path.relpath(path, place.root))
        return
    for name in place.files_below():
        relative = unquote(name) if place.http else name  # links of a page
        hidden = any(piece.startswith(".") for piece in relative.split("/"))
        if not hidden and os.path.splitext(relative)[1].lower() in SUFFIXES:
            yield _reference(spec, place, relative)


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Files below a folder that are not hidden, links followed; a link to a folder above leads
    nowhere.

    Raises UserError for a folder that cannot be listed: a store without its images would look
        complete.
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
    for name in listed_names(spec):
        yield _reference(spec, place, name)


def listed_names(spec: SourceSpec) -> Iterator[str]:
    """The names of an image list. Raises UserError.

    CSV or text (the paper's ``path,label,width,height``, or a name a line), or Parquet with a
    column of names. A name comes without `./` (as `find .` writes it) and doubled slashes.
    """
    data = read_input(spec.list, "image list")
    read = _parquet_names if spec.list.endswith(".parquet") else _csv_names
    names = read(data, spec.list)
    if names is None:
        raise UserError(
            f"{spec.list}: it has no column of names (one of {', '.join(NAME_COLUMNS)})"
        )
    for number, name in enumerate(names, 1):
        relative = relative_name(name) if isinstance(name, str) else None
        if relative is None:
            raise UserError(f"{spec.list}: row {number}: {name!r} {_RELATIVE}")
        yield relative


def _parquet_names(data: bytes, where: str) -> list[str] | None:
    table = parse_table(data, where)
    column = next((name for name in NAME_COLUMNS if name in table.column_names), None)
    return None if column is None else table.column(column).to_pylist()


def _csv_names(data: bytes, where: str) -> list[str]:
    text = data.decode("utf-8-sig", "surrogateescape")  # -sig: a BOM is no name
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{where}: it cannot be read as an image list: {error}") from None

    names = [row[0].strip() for row in rows if row and row[0].strip()]
    return names[1:] if names and names[0].lower() in NAME_COLUMNS else names


def _from_ground_truth(spec: SourceSpec, place: Place) -> Iterator[ImageReference]:
    """The gallery or the queries (with their boxes) that a ground-truth file names."""
    truth = load_ground_truth(spec.ground_truth)
    complete = _complete_names(truth, place, spec)
    for name, box in truth_entries(truth, spec.take, spec.ground_truth):
        yield _reference(spec, place, complete(name), box)


def truth_entries(truth: GroundTruth, take: str, url: str) -> list[tuple[str, Box | None]]:
    """The names of a gallery, or of queries with their boxes.

    Raises UserError for one that leads out of the folder.
    """
    entries: list[tuple[str, Box | None]] = [(name, None) for name in truth.gallery]
    if take == "queries":
        entries = [(query.name, query.box) for query in truth.queries]
    kind = "query" if take == "queries" else "gallery image"
    for number, (name, _) in enumerate(entries):
        if relative_name(name) is None:
            raise UserError(f"{url}: {kind} {number}: {name!r} {_RELATIVE}")
    return entries


def _complete_names(
    truth: GroundTruth, place: Place, spec: SourceSpec
) -> Callable[[str], str | bytes]:
    """Revisitop's files name images without a suffix: it is found in the folder, once for all."""
    if all(os.path.splitext(name)[1].lower() in SUFFIXES for name in truth.gallery[:100]):
        return lambda name: name
    by_stem: dict[str, bytes] = {}
    for reference in _from_folder(spec, place):
        relative = reference.location[len(os.fsencode(place.url.rstrip("/"))) + 1 :]
        by_stem.setdefault(encode_name(os.path.splitext(relative)[0]), relative)
    return lambda name: by_stem.get(encode_name(name), os.fsencode(name) + b".jpg")
