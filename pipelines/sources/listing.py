"""The images of a folder, a glob, an image list, or of a ground truth's gallery or queries.

The listing is made once, by the driver, and written into the store's plan; reruns and workers read
it there and never list again. Archives are not opened for it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from pipelines.sources.archives import ARCHIVE_SUFFIXES
from pipelines.sources.spec import SourceSpec
from pipelines.storage.input_file import read_input
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
    """The references of a source, as its list or ground truth gives them.

    Without these in the order of their record ids' UTF-8 bytes. Raises UserError where nothing is
    listed, or a list or ground truth cannot be read.
    """
    place = open_place(spec.folder)
    listed_on_web = place.http and bool(spec.list)  # the server need not show its folders
    if not listed_on_web and not place.is_folder():
        what = "there is no such folder of images"
        if place.exists():
            what = "it is a file; give its folder, and --list for some of the images there"
        raise UserError(f"{spec.images}: {what}")

    names: Iterable[tuple[str, Box | None]]
    if spec.ground_truth:
        names = _names_of_truth(spec, place)
    else:
        plain = listed_names(spec) if spec.list else _names_below(spec, place)
        names = ((name, None) for name in plain)

    source, folder = spec.name, os.fsencode(place.url.rstrip("/"))
    references = [
        ImageReference(make_record_id(source, raw, box), source, folder + b"/" + raw, box)
        for raw, box in ((_encoded(spec, name), box) for name, box in names)
    ]
    if not references:
        raise _nothing_named(spec, place)
    if not (spec.list or spec.ground_truth):
        references.sort(key=lambda reference: reference.record_id.encode())
    return references


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _encoded(spec: SourceSpec, name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(
            f"{spec.list or spec.ground_truth}: {name!r} is no valid Unicode text"
        ) from None


def _nothing_named(spec: SourceSpec, place: Place) -> UserError:
    listed = spec.list or spec.ground_truth
    files = place.names("") if not listed and spec.folder == spec.images else []
    suffixes = [suffix for suffix in ARCHIVE_SUFFIXES for file in files if file.endswith(suffix)]
    if suffixes:
        return UserError(
            f"{spec.images}: no images are here, but archives lie here; give "
            f"{place.url}/*{suffixes[0]}"
        )

    return UserError(f"{listed or spec.images}: no images are named here")


def _names_below(spec: SourceSpec, place: Place) -> Iterator[str]:
    """All images below the folder, hidden files and folders left out; of a glob, its matches."""
    names: Iterable[str]
    if spec.folder != spec.images:
        names = place.glob(spec.images.removeprefix(spec.folder).lstrip("/"))
    elif isinstance(place, RemotePlace):
        below = (unquote(name) if place.http else name for name in place.files_below())  # of links
        names = (name for name in below if not name.startswith(".") and "/." not in name)
    else:
        names = (os.path.relpath(path, place.root) for path in _walk(place.root, frozenset()))
    return filter(is_image, names)


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Files below a folder that are not hidden, links followed.

    A link to a folder above leads nowhere. Raises UserError for a folder that cannot be listed: a
    store without its images would look complete.
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


def listed_names(spec: SourceSpec) -> Iterator[str]:
    """The names of an image list. Raises UserError.

    CSV or text (the paper's ``path,label,width,height``, or a name a line), or Parquet with a
    column of names. A name comes without `./` (as `find .` writes it) and doubled slashes.
    """
    data = read_input(spec.list, "image list")
    read = _parquet_names if spec.list.endswith(".parquet") else _csv_names
    for number, name in enumerate(read(data, spec.list), 1):
        relative = relative_name(name) if isinstance(name, str) else None
        if relative is None:
            raise UserError(f"{spec.list}: row {number}: {name!r} {_RELATIVE}")
        yield relative


def _parquet_names(data: bytes, where: str) -> list[object]:
    table = parse_table(data, where)
    column = next((name for name in NAME_COLUMNS if name in table.column_names), None)
    if column is None:
        raise UserError(f"{where}: it has no column of names (one of {', '.join(NAME_COLUMNS)})")

    names: list[object] = table.column(column).to_pylist()
    return names


def _csv_names(data: bytes, where: str) -> list[str]:
    text = data.decode("utf-8-sig", "surrogateescape")  # -sig: a BOM is no name
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{where}: it cannot be read as an image list: {error}") from None

    names = [row[0].strip() for row in rows if row and row[0].strip()]
    return names[1:] if names and names[0].lower() in NAME_COLUMNS else names


def _names_of_truth(spec: SourceSpec, place: Place) -> list[tuple[str, Box | None]]:
    """Revisitop's files name images without a suffix: it is looked up in the folder, once."""
    truth = load_ground_truth(spec.ground_truth)
    names = truth_names(truth, spec.take, spec.ground_truth)
    if not lacks_suffixes(truth):
        return names

    by_stem: dict[str, str] = {}
    for name in _names_below(spec, place):
        by_stem.setdefault(encode_name(os.path.splitext(name)[0]), name)
    return [(by_stem.get(encode_name(name), f"{name}.jpg"), box) for name, box in names]


def lacks_suffixes(truth: GroundTruth) -> bool:
    """Whether a ground truth names images without the suffix of their files, as revisitop's do."""
    return not all(is_image(name) for name in truth.gallery[:100])


def truth_names(truth: GroundTruth, take: str, url: str) -> list[tuple[str, Box | None]]:
    """The names of a gallery, or of queries with their boxes.

    Raises UserError for one that leads out of the folder.
    """
    kind = "query" if take == "queries" else "gallery image"
    names: list[tuple[str, Box | None]] = [(name, None) for name in truth.gallery]
    if take == "queries":
        names = [(query.name, query.box) for query in truth.queries]

    for number, (name, _) in enumerate(names):
        if relative_name(name) is None:
            raise UserError(f"{url}: {kind} {number}: {name!r} {_RELATIVE}")
    return names
