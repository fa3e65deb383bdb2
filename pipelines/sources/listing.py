"""The images of a folder, a glob, an image list, or of a ground truth's gallery or queries.

The listing is made once, by the driver, and written into the store's plan; reruns and workers read
it there and never list again. Archives are not opened for it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from pipelines.sources.archives import ARCHIVE_SUFFIXES
from pipelines.sources.folder import names_below, words_for
from pipelines.sources.name_list import names_in
from pipelines.sources.spec import SourceSpec
from pipelines.storage.input_file import read_input
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from rrt_core.image_formats import has_image_suffix
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, load_ground_truth
from schemas.image_list import (
    Box,
    ImageReference,
    encode_name,
    make_record_id,
    relative_name,
)

_RELATIVE = "must be a name relative to the folder of images, without '..'"


def list_images(spec: SourceSpec, passed_over: Counter[str] | None = None) -> list[ImageReference]:
    """The references of a source, as its list or ground truth gives them.

    Without these in the order of their record ids' UTF-8 bytes, and what is no image is counted in
    `passed_over`. Raises UserError where nothing is listed, or a list or ground truth cannot be
    read.
    """
    passed = Counter[str]()
    place = open_place(spec.folder)
    listed_on_web = place.http and bool(spec.list)  # the server need not show its folders
    if not listed_on_web and not place.is_folder():
        what = "there is no such folder of images"
        if place.exists():
            what = "it is a file; give its folder, and --list for some of the images there"
        raise UserError(f"{spec.images}: {what}")

    names: Iterable[tuple[str, str, Box | None]]
    if spec.ground_truth:
        names = _of_truth(spec, place)
    else:
        plain = listed_names(spec) if spec.list else names_below(place, spec.pattern, passed)
        names = ((name, name, None) for name in plain)

    source, folder = spec.name, os.fsencode(place.url.rstrip("/")) + b"/"
    references = [
        ImageReference(
            make_record_id(source, _encoded(spec, name), box),
            source,
            folder + _encoded(spec, file),
            box,
        )
        for name, file, box in names
    ]
    if not references:
        raise _nothing_named(spec, place, passed)
    if spec.list and place.local and not any(_is_there(one.location) for one in references):
        first = os.fsdecode(references[0].location[len(folder) :])
        raise UserError(
            f"{spec.list}: none of its {len(references):,} names is a file below {spec.images} "
            f"(the first is {first!r}); give the folder that they are relative to, and a list in "
            f"UTF-8 with the names in a column 'path'"
        )
    if not (spec.list or spec.ground_truth):
        references.sort(key=lambda reference: reference.record_id.encode())
    if passed_over is not None:
        passed_over.update(passed)
    return references


def _is_there(location: bytes) -> bool:
    return b"\0" not in location and os.path.lexists(location)


def _encoded(spec: SourceSpec, name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(
            f"{spec.list or spec.ground_truth}: {name!r} is no valid Unicode text"
        ) from None


def _nothing_named(spec: SourceSpec, place: Place, passed: Counter[str]) -> UserError:
    listed = spec.list or spec.ground_truth
    files = place.names("") if not listed and spec.folder == spec.images else []
    suffixes = [suffix for suffix in ARCHIVE_SUFFIXES for file in files if file.endswith(suffix)]
    if suffixes:
        return UserError(
            f"{spec.images}: no images are here, but archives lie here; give "
            f"{place.url}/*{suffixes[0]}"
        )

    if passed:
        return UserError(
            f"{spec.images}: no images are named here; passed over {words_for(passed)}"
        )
    return UserError(f"{listed or spec.images}: no images are named here")


def listed_names(spec: SourceSpec) -> Iterator[str]:
    """The names of an image list. Raises UserError.

    A name comes without `./` (as `find .` writes it) and doubled slashes.
    """
    folder = None
    if spec.images and not spec.in_archives:
        place = open_place(spec.folder)
        folder = place.root if place.local else None

    names = names_in(read_input(spec.list, "image list"), spec.list, folder)
    for number, name in enumerate(names, 1):
        relative = relative_name(name) if isinstance(name, str) else None
        if relative is None:
            raise UserError(f"{spec.list}: row {number}: {name!r} {_RELATIVE}")
        yield relative


def _of_truth(spec: SourceSpec, place: Place) -> Iterator[tuple[str, str, Box | None]]:
    """(name in ids, name of the file, box) of what a ground truth names.

    Revisitop's files name images without a suffix, and others without the folder that they lie in:
    both are looked up below the folder of images, once. Raises UserError where two files fit.
    """
    truth = load_ground_truth(spec.ground_truth)
    names = truth_names(truth, spec.take, spec.ground_truth)
    bare = lacks_suffixes(truth)
    if not bare and (not place.local or all(place.exists(name) for name, _ in names)):
        yield from ((name, name, box) for name, box in names)
        return

    by_path: dict[str, str] = {}
    by_name: dict[str, list[str]] = {}
    for file in names_below(place, spec.pattern, Counter()):
        key = encode_name(os.path.splitext(file)[0] if bare else file)
        if key not in by_path:
            by_path[key] = file
            by_name.setdefault(key.rpartition("/")[2], []).append(file)

    for name, box in names:
        key, standard = encode_name(name), f"{name}.jpg" if bare else name
        files = [by_path[key]] if key in by_path else by_name.get(key, [])
        if len(files) > 1:
            raise UserError(
                f"{spec.ground_truth}: {name!r} may be {files[0]} or {files[1]} below "
                f"{spec.images}; give the folder of one of them, or name it with its folder"
            )
        file = files[0] if files else standard
        yield name + os.path.splitext(file)[1] if bare else name, file, box


def lacks_suffixes(truth: GroundTruth) -> bool:
    """Whether a ground truth names images without the suffix of their files, as revisitop's do."""
    return not all(has_image_suffix(name) for name in truth.gallery[:100])


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
