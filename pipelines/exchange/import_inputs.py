"""What an import's input is: its images, the descriptors' shape, a fingerprint of the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from pipelines.exchange.import_names import named_images, unseen
from pipelines.exchange.import_readers import matrix_of
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from rrt_core.image_formats import has_image_suffix
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, split_record_id
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

Pairs = dict[str, list[int]]  # stem -> bytes of its .delg_global and .delg_local; -1 where absent


@dataclass(frozen=True)
class Inputs:
    """The listed input.

    references  an image each, in the rows' order
    stems       of DELG's files, None where an image has none; None for matrices
    local_dim   0 without locals
    unlisted    pairs of files that no name of the list or ground truth is of
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
    references = named_images(options)
    if references is None and options.format == "clip":
        names = clip_names(options.input)
        if names is not None:
            references = unseen(options, ((name, None) for name in names))

    matrix = matrix_of({**asdict(options), "variable": variable}, len(references or ()))
    if references is None:
        references = unseen(options, ((f"{row:09}", None) for row in range(matrix.rows)))

    rows, files = {matrix.path: matrix.rows}, [matrix.path]
    local_dim, scales = 0, options.scales or (1.0,)
    if options.format == "clip":
        vectors, metadata = clip_files(options.input)
        files = vectors + metadata
    if options.format == "ames":
        ames = AmesFile(options.input)
        local_dim, scales = ames.dimension, options.scales or ames.default_scales()
        rows[ames.path] = ames.rows
        files.append(options.input)
    if options.local_arrays:
        flat = FlatLocals(options.local_arrays)
        local_dim, rows[options.local_arrays] = flat.dimension, flat.rows
        files += [os.path.join(options.local_arrays, f"{name}.npy") for name in LOCAL_ARRAYS]

    for path, held in rows.items():
        if held != len(references):
            raise UserError(
                f"{path}: it holds {held:,} images, but {len(references):,} are named "
                "(--list, --ground-truth, --record-ids); they must be as many, in the same order"
            )
    if not references:
        raise UserError(f"{options.input}: it holds no image")

    content = _content(references, [fingerprint(path) for path in files])
    return Inputs(
        references, None, matrix.dimension, local_dim, scales, content, variable, matrix.rows
    )


def fingerprint(path: str) -> list[int | str]:
    """Size and SHA-256 of a local file; of one above 1 GB, of 1,000 blocks spread over it."""
    size = os.path.getsize(path)
    starts = range(0, size, BLOCK)
    if size > HASHED_WHOLE:
        starts = range(0, size - BLOCK + 1, (size - BLOCK) // (BLOCKS - 1))

    digest = sha256()
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(BLOCK))
    return [size, digest.hexdigest()]


def _content(references: Sequence[ImageReference], files: object) -> str:
    names_hash = sha256_text("\n".join(reference.record_id for reference in references))
    return sha256_text(canonical_json([names_hash, files]))


def _delg(options: Options) -> Inputs:
    place = open_place(options.input)
    if not place.is_folder():
        raise UserError(f"{options.input}: there is no such folder")
    pairs = _pairs(place)
    if not pairs:
        raise UserError(
            f"{options.input}: it holds no {delg.GLOBAL_SUFFIX} or {delg.LOCAL_SUFFIX} file"
        )

    references = named_images(options)
    stems: list[str | None]
    if references is None:
        in_order = sorted(pairs, key=os.fsencode)
        references, stems = unseen(options, ((stem, None) for stem in in_order)), [*in_order]
    else:
        stems = _matched(options, references, pairs)

    used = [stem for stem in stems if stem is not None]
    sizes = [None if stem is None else [os.fsencode(stem).hex(), *pairs[stem]] for stem in stems]
    return Inputs(
        references,
        stems,
        *_dimensions(place, options, used),
        options.scales or delg.SCALES,
        _content(references, sizes),
        unlisted=len(pairs) - len(set(used)),
    )


def _pairs(place: Place) -> Pairs:
    """The files of DELG below the folder; 0 bytes where the place does not say how many."""
    suffixes = (delg.GLOBAL_SUFFIX, delg.LOCAL_SUFFIX)
    below = place.files_below() if isinstance(place, RemotePlace) else _files_below(place.root)
    names = [name for name in below if name.endswith(suffixes)]

    pairs: Pairs = {}
    for name, size in zip(names, place.sizes(names), strict=True):
        stem, suffix = os.path.splitext(name)
        if suffix:  # a hidden file may be called as a suffix is
            pairs.setdefault(stem, [-1, -1])[suffixes.index(suffix)] = size or 0
    return pairs


def _files_below(root: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: it cannot be listed: {error.strerror}") from None

    for folder, _, files in os.walk(root, onerror=refuse):
        below = folder[len(root) :].lstrip("/")
        yield from (os.path.join(below, name) for name in files)


def _dimensions(place: Place, options: Options, stems: Sequence[str]) -> tuple[int, int]:
    """The dimensions that most of the first readable files have: of globals and of locals.

    One damaged file must not make failures of all others. Raises UserError where none of the first
    100 can be read.
    """
    measures = {delg.GLOBAL_SUFFIX: _global_dim, delg.LOCAL_SUFFIX: _local_dim}
    if not options.locals:
        del measures[delg.LOCAL_SUFFIX]

    seen: dict[str, Counter[int]] = {suffix: Counter() for suffix in measures}
    why = "none of the named images has files there"
    for stem in stems[:TRIED]:
        for suffix, measure in measures.items():
            try:
                size = place.size(stem + suffix) or 0
                if size > delg.MOST_BYTES:
                    raise Unusable(f"{stem}{suffix} has {size:,} bytes", "too_large")
                dimension = measure(place.read(stem + suffix))
            except (OSError, ValueError, Unusable) as error:
                why = str(error)
                continue

            if dimension:  # an image without local descriptors has none
                seen[suffix][dimension] += 1
        if all(counter.total() >= AGREEING for counter in seen.values()):
            break

    most = [counter.most_common(1)[0][0] if counter else 0 for counter in seen.values()]
    if all(most):
        return most[0], (*most, 0)[1]
    lacking = "local" if most[0] else "global"
    hint = "; --no-locals takes the global ones alone" if most[0] else ""
    raise UserError(
        f"{place.url}: no {lacking} descriptors can be read in its first files: {why}{hint}"
    )


def _global_dim(data: bytes) -> int:
    vector = delg.parse_global(data)
    return len(vector) if vector.ndim == 1 else 0


def _local_dim(data: bytes) -> int:
    return int(delg.parse_local(data).descriptors.shape[1])


def _matched(
    options: Options, references: Sequence[ImageReference], pairs: Pairs
) -> list[str | None]:
    """The stem of each image's files, as DELG's scripts write them.

    It is the image's path, that without its suffix, or its bare name. Raises UserError where two
    images would share files.
    """
    stems: list[str | None] = []
    owners: dict[str, str] = {}
    for reference in references:
        path = os.fsdecode(decode_name(split_record_id(reference.record_id)[1]))
        bare = os.path.splitext(path)[0] if has_image_suffix(path) else path
        candidates = (path, bare, os.path.basename(path), os.path.basename(bare))
        stem = next((name for name in candidates if name in pairs), None)
        if stem is not None and owners.setdefault(stem, reference.record_id) != reference.record_id:
            raise UserError(
                f"{options.input}: {stem}{delg.GLOBAL_SUFFIX} would belong to both {owners[stem]} "
                f"and {reference.record_id}; import them from folders of their own"
            )
        stems.append(stem)
    return stems
