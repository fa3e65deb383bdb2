"""Which images an import is of: by record ids, a list, a ground truth or a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.sources.listing import lacks_suffixes, list_images, listed_names, truth_names
from pipelines.sources.spec import SourceSpec, check_source_name
from pipelines.storage.input_file import read_input
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.image_list import (
    Box,
    ImageReference,
    decode_name,
    make_record_id,
    split_record_id,
)

if TYPE_CHECKING:
    from pipelines.exchange.import_options import Options


def named_images(options: Options) -> list[ImageReference] | None:
    """The images that the options name, in that order; None where none does. Raises UserError."""
    if options.record_ids:
        lines = enumerate(_lines(options.record_ids), 1)
        return [_of_record_id(f"{options.record_ids}: line {row}", text) for row, text in lines]

    listed = options.list or options.ground_truth
    if not listed and not options.images:
        return None
    if not listed and options.format != "delg":
        raise UserError(
            f"import {options.format}: which row is which image? Give --list, --ground-truth "
            f"or --record-ids"
        )

    references = _listed(options)
    if options.take == "queries" and options.format == "delg" and not options.queries_cropped:
        return [_of_whole_picture(reference) for reference in references]
    return references


def unseen(options: Options, names: Iterable[tuple[str, Box | None]]) -> list[ImageReference]:
    """Images of which nothing but name and box is known: their pictures have no place."""
    source = _source_name(options)
    return [
        ImageReference(make_record_id(source, name, box), source, b"", box) for name, box in names
    ]


def _listed(options: Options) -> list[ImageReference]:
    """What `extract` lists with the same options; without --images the same ids, no pictures."""
    spec = SourceSpec(
        options.images, options.list, options.ground_truth, options.take, options.source
    )
    if options.images:
        return list_images(spec)
    if options.list:
        names: list[tuple[str, Box | None]] = [(name, None) for name in listed_names(spec)]
    else:
        truth = load_ground_truth(options.ground_truth)
        suffix = ".jpg" if lacks_suffixes(truth) else ""  # which record ids have
        listed = truth_names(truth, options.take, options.ground_truth)
        names = [(name + suffix, box) for name, box in listed]

    if not names:
        raise UserError(f"{options.list or options.ground_truth}: no images are named here")
    return unseen(options, names)


def _of_whole_picture(reference: ImageReference) -> ImageReference:
    name = decode_name(split_record_id(reference.record_id)[1])
    return replace(reference, record_id=make_record_id(reference.source, name), box=None)


def _source_name(options: Options) -> str:
    name = options.source or open_place(options.input).root.rstrip("/").rsplit("/", 1)[-1]
    check_source_name("import", name)
    whole = options.source or options.format in ("delg", "clip")
    return name if whole else os.path.splitext(name)[0]


def _lines(path: str) -> list[str]:
    try:
        text = read_input(path, "file of record ids").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: it is not UTF-8") from None
    return text.removesuffix("\n").split("\n")


def _of_record_id(where: str, text: str) -> ImageReference:
    encoded, name, box = split_record_id(text)
    source = os.fsdecode(decode_name(encoded))
    if not source or not name or make_record_id(source, decode_name(name), box) != text:
        raise UserError(
            f"{where}: {text!r} is no record id (source/name, percent-encoded, with #x,y,w,h)"
        )
    if source in (".", "..") or ".." in name.split("/") or name.startswith("/"):
        raise UserError(
            f"{where}: {text!r} names a place outside its source; a record id is source/name, and "
            f"the name a relative one without '..'"
        )
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the source of {text!r} is no UTF-8; no record can hold it"
        ) from None
    return ImageReference(text, source, b"", box)
