"""What `import` finds: the images by name, the descriptors' shape, and a fingerprint of the
files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from pipelines.exchange.import_readers import matrix_of
from pipelines.sources.listing import list_images, truth_entries
from pipelines.sources.spec import SourceSpec, read_input, refuse_unreadable_name
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.image_list import (
    SUFFIXES,
    ImageReference,
    decode_name,
    make_record_id,
    split_record_id,
)
from schemas.importers import Unusable, delg
from schemas.importers.ames import AmesFile
from schemas.importers.arrays import LOCAL_ARRAYS, FlatLocals, clip_files, clip_names
from schemas.manifest import canonical_json, sha256_text

if TYPE_CHECKING:
    from pipelines.exchange.import_options import Options

TRIED, AGREEING = 100, 9  # pairs that are read for the dimensions, and how many are enough
HASHED_WHOLE = 1_000_000_000  # bytes of a file; of a larger one blocks are hashed
BLOCK = 1_000_000
BLOCKS = 1_000


@dataclass(frozen=True)
class Inputs:
    """The listed input.

    references: an image each, in the rows' order. stems: of DELG's files, None where there are
        none; None for matrices.
    local_dim: 0 without locals. unlisted: pairs of files that no name of the list or ground truth
        asks for.
    """

    references: Sequence[ImageReference]
    stems: Sequence[str | None] | None
    global_dim: int
    local_dim: int
    scales: tuple[float, ...]
    content: str
    variable: str = ""
    matrix_rows: int = 0
    unlisted: int = 0


def describe_inputs(options: Options) -> Inputs:
    """List and look, once, in the driver. Raises UserError."""
    return _delg(options) if options.format == "delg" else _matrix(options)


def _matrix(options: Options) -> Inputs:
    for url in (options.input, options.globals, options.local_arrays):
        if url and not open_place(url).local:
            raise UserError(f"{url}: only local files can be read by rows; copy it to a disk first")
    variable = options.variable
    if options.format == "mat" and not variable:
        variable = {"gallery": "X", "queries": "Q"}.get(options.take, "")
    references = _named(options)
    if references is None and options.format == "clip":
        names = clip_names(options.input)
        references = None if names is None else _unseen(options, names)
    matrix = matrix_of({**asdict(options), "variable": variable}, len(references or ()))
    if references is None:
        references = _unseen(options, (f"{row:09}" for row in range(matrix.rows)))
    told = {matrix.path: matrix.rows}
    files = [matrix.path]
    local_dim, scales = 0, options.scales or (1.0,)
    if options.format == "clip":
        vectors, metadata = clip_files(options.input)
        files = vectors + metadata
    if options.format == "ames":
        ames = AmesFile(options.input)
        local_dim, scales, told[ames.path] = (
            ames.dimension,
            options.scales or ames.default_scales(),
            ames.rows,
        )
        files.append(options.input)
    if options.local_arrays:
        flat = FlatLocals(options.local_arrays)
        local_dim, told[options.local_arrays] = flat.dimension, flat.rows
        files += [os.path.join(options.local_arrays, f"{name}.npy") for name in LOCAL_ARRAYS]
    for path, rows in told.items():
        if rows != len(references):
            raise UserError(
                f"{path}: it holds {rows:,} images, but {len(references):,} are named "
                "(--list, --ground-truth, --record-ids); they must be as many, in the same order"
            )
    if not references:
        raise UserError(f"{options.input}: it holds no image")
    names_hash = sha256_text("\n".join(reference.record_id for reference in references))
    content = sha256_text(canonical_json([names_hash, [fingerprint(path) for path in files]]))
    return Inputs(
        references, None, matrix.dimension, local_dim, scales, content, variable, matrix.rows
    )


def fingerprint(path: str) -> list[int | str]:
    """Size and SHA-256 of a local file; of one above 1 GB, of 1,000 blocks that are spread over
    it.
    """
    size = os.path.getsize(path)
    digest = sha256()
    with open(path, "rb") as file:
        starts = range(0, size, BLOCK)
        if size > HASHED_WHOLE:
            starts = range(0, size - BLOCK + 1, (size - BLOCK) // (BLOCKS - 1))
        for start in starts:
            file.seek(start)
            digest.update(file.read(BLOCK))
    return [size, digest.hexdigest()]


def _delg(options: Options) -> Inputs:
    place = open_place(options.input)
    if not place.is_folder():
        raise UserError(f"{options.input}: there is no such folder")
    found = _pairs(place)
    if not found:
        raise UserError(
            f"{options.input}: it holds no {delg.GLOBAL_SUFFIX} or {delg.LOCAL_SUFFIX} file"
        )
    references = _named(options)
    if references is None and options.images:
        references = _of_folder(options)
    stems: list[str | None]
    if references is None:
        in_order = sorted(found, key=os.fsencode)
        references = _unseen(options, in_order)
        stems = list(in_order)
    else:
        stems = _matched(options, references, found)
    sizes = [
        [os.fsencode(stem).hex(), *found[stem]] if stem is not None else None for stem in stems
    ]
    names_hash = sha256_text("\n".join(reference.record_id for reference in references))
    global_dim, local_dim = _dimensions(
        place, options, [stem for stem in stems if stem is not None]
    )
    return Inputs(
        references,
        stems,
        global_dim,
        local_dim,
        options.scales or delg.SCALES,
        sha256_text(canonical_json([names_hash, sizes])),
        unlisted=len(found) - len({stem for stem in stems if stem is not None}),
    )


def _pairs(place: Place) -> dict[str, list[int]]:
    """Bytes of the two files of each stem below the folder; -1 where one is missing."""
    found: dict[str, list[int]] = {}
    suffixes = (delg.GLOBAL_SUFFIX, delg.LOCAL_SUFFIX)

    def note(relative: str, size: int) -> None:
        stem, suffix = os.path.splitext(relative)
        if suffix in suffixes:
            found.setdefault(stem, [-1, -1])[suffixes.index(suffix)] = size

    if isinstance(place, RemotePlace):
        names = [name for name in place.files_below() if os.path.splitext(name)[1] in suffixes]
        for name, size in zip(names, place.sizes(names), strict=True):
            note(name, size or 0)  # 0: the place tells none
        return found
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(place.path(below)) as entries:
                for entry in entries:
                    relative = f"{below}/{entry.name}" if below else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(relative)
                    elif os.path.splitext(entry.name)[1] in suffixes:
                        note(relative, entry.stat().st_size)
        except OSError as error:
            raise UserError(
                f"{error.filename or place.path(below)}: it cannot be listed: {error.strerror}"
            ) from None
    return found


def _dimensions(place: Place, options: Options, stems: Sequence[str]) -> tuple[int, int]:
    """The dimensions that most of the first readable files have. Raises UserError where none of the
    first 100 is.

    One damaged file must not make failures of all others.
    """
    seen: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    why = "none of the named images has files there"
    for stem in stems[:TRIED]:
        for counter, suffix in zip(seen, (delg.GLOBAL_SUFFIX, delg.LOCAL_SUFFIX), strict=True):
            try:
                if counter is seen[0]:
                    vector = delg.parse_global(place.read(stem + suffix))
                    counter[len(vector) if vector.ndim == 1 else 0] += 1
                elif options.locals:
                    counter[
                        int(delg.parse_local(place.read(stem + suffix)).descriptors.shape[1])
                    ] += 1
            except (OSError, Unusable) as error:
                why = str(error)
        for counter in seen:
            del counter[0]  # an image without local descriptors tells nothing
        if all(counter.total() >= AGREEING for counter in seen[: 2 if options.locals else 1]):
            break
    global_dim, local_dim = (counter.most_common(1)[0][0] if counter else 0 for counter in seen)
    if global_dim and (local_dim or not options.locals):
        return global_dim, local_dim
    lacking = "local" if global_dim else "global"
    hint = "; --no-locals takes the global ones alone" if global_dim else ""
    raise UserError(
        f"{place.url}: no {lacking} descriptors can be read in its first files: {why}{hint}"
    )


def _source_name(options: Options) -> str:
    name = options.source or open_place(options.input).root.rstrip("/").rsplit("/", 1)[-1]
    if "/" in name:
        raise UserError(f"import: --source is {options.source!r}; the name of a source has no '/'")
    refuse_unreadable_name("import", name)
    return (
        name if options.source or options.format in ("delg", "clip") else os.path.splitext(name)[0]
    )


def _unseen(options: Options, names: Iterable[str]) -> list[ImageReference]:
    """Images of which nothing but the name is known: their pictures have no place."""
    source = _source_name(options)
    return [ImageReference(make_record_id(source, name), source, b"") for name in names]


def _of_folder(options: Options) -> list[ImageReference]:
    """What `extract` lists with the same options; without --images the same ids, but no
    pictures.
    """
    if options.images:
        return list_images(
            SourceSpec(
                options.images, options.list, options.ground_truth, options.take, options.source
            )
        )
    source = _source_name(options)
    if options.ground_truth:
        return _of_truth(options, source)
    below = (
        options.input
        if options.format in ("delg", "clip")
        else os.path.dirname(open_place(options.input).root) or "/"
    )
    return [
        replace(reference, location=b"")
        for reference in list_images(SourceSpec(below, options.list, source=source))
    ]


def _of_truth(options: Options, source: str) -> list[ImageReference]:
    """The gallery or queries of a ground truth; revisitop's names lack the suffix .jpg, which
    record ids have.
    """
    truth = load_ground_truth(options.ground_truth)
    bare = not all(os.path.splitext(name)[1].lower() in SUFFIXES for name in truth.gallery[:100])
    suffix = ".jpg" if bare else ""
    entries = truth_entries(truth, options.take, options.ground_truth)
    return [
        ImageReference(make_record_id(source, name + suffix, box), source, b"", box)
        for name, box in entries
    ]


def _named(options: Options) -> list[ImageReference] | None:
    """The images that a list, a ground truth or record ids name, in that order; None without."""
    if options.record_ids:
        return [
            _of_record_id(options.record_ids, row, text)
            for row, text in enumerate(_lines(options.record_ids), 1)
        ]
    if not (options.list or options.ground_truth):
        if options.images and options.format != "delg":
            raise UserError(
                f"import {options.format}: which row is which image? Give --list, --ground-truth "
                f"or --record-ids"
            )
        return None
    references = _of_folder(options)
    if options.take == "queries" and options.format == "delg" and not options.queries_cropped:
        plain = [
            make_record_id(item.source, decode_name(split_record_id(item.record_id)[1]))
            for item in references
        ]
        references = [
            replace(item, record_id=name, box=None)
            for item, name in zip(references, plain, strict=True)
        ]
    return references


def _lines(path: str) -> list[str]:
    try:
        text = read_input(path, "file of record ids").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: it is not UTF-8") from None
    return text.removesuffix("\n").split("\n")


def _of_record_id(path: str, row: int, text: str) -> ImageReference:
    encoded, name, box = split_record_id(text)
    source = os.fsdecode(decode_name(encoded))
    if not source or not name or make_record_id(source, decode_name(name), box) != text:
        raise UserError(
            f"{path}: line {row}: {text!r} is no record id (source/name, percent-encoded, with "
            f"#x,y,w,h)"
        )
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: line {row}: the source of {text!r} is no UTF-8; no record can hold it"
        ) from None
    return ImageReference(text, source, b"", box)


def _matched(
    options: Options, references: Sequence[ImageReference], found: dict[str, list[int]]
) -> list[str | None]:
    """The stem of each image's files: its path, that without its suffix, or its bare name, as
    DELG's scripts write.

    Raises UserError where two images would share files.
    """
    stems: list[str | None] = []
    owners: dict[str, str] = {}
    for reference in references:
        path = os.fsdecode(decode_name(split_record_id(reference.record_id)[1]))
        bare = os.path.splitext(path)[0] if os.path.splitext(path)[1].lower() in SUFFIXES else path
        candidates = (path, bare, os.path.basename(path), os.path.basename(bare))
        stem = next((name for name in candidates if name in found), None)
        if stem is not None and owners.setdefault(stem, reference.record_id) != reference.record_id:
            raise UserError(
                f"{options.input}: {stem}{delg.GLOBAL_SUFFIX} would belong to both {owners[stem]} "
                f"and "
                f"{reference.record_id}; import them from folders of their own"
            )
        stems.append(stem)
    return stems
