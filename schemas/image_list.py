"""Image names, record ids and the plan's table of images.

An image id is ``source/relative/path.jpg``: UTF-8 text in which ``%``, control characters and bytes
that are not UTF-8 are percent-encoded, so that any file name has one id and an id gives the name
back. A record id is the image id, plus ``#x,y,w,h`` where a box is given: the key of a described
thing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

Box = tuple[float, float, float, float]  # x, y, width, height in pixels of the upright original

IMAGE_LIST = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        # path or URL as bytes: names need not be UTF-8
        pa.field("location", pa.binary(), nullable=False),
        pa.field("box", pa.list_(pa.float64()), nullable=False),  # x, y, w, h, or empty
    ]
)

_TO_ENCODE = re.compile("[%#\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_ENCODED = re.compile(rb"%([0-9A-F]{2})")
_NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"  # as `format_box` writes one
_BOX = re.compile(f"#{','.join([_NUMBER] * 4)}\\Z")


def encode_name(name: str | bytes) -> str:
    """A file name as id text.

    ``%``, ``#``, control characters and undecodable bytes are percent-encoded.
    """
    raw = os.fsencode(name) if isinstance(name, str) else name
    text = raw.decode("utf-8", "surrogateescape")
    if not _TO_ENCODE.search(text):  # nearly all names
        return text
    pieces = []
    for character in text:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
            pieces.append(f"%{code - 0xDC00:02X}")
        elif character in "%#" or code < 0x20 or 0x7F <= code <= 0x9F:
            pieces.append("".join(f"%{byte:02X}" for byte in character.encode()))
        else:
            pieces.append(character)
    return "".join(pieces)


def decode_name(text: str) -> bytes:
    """The bytes of the file name that `encode_name` made the text from."""
    return _ENCODED.sub(lambda match: bytes([int(match.group(1), 16)]), text.encode())


def relative_name(name: str) -> str | None:
    """A name of a list without `./` and doubled slashes: one file has one name.

    None where it names no file below the folder of images: absolute, with `..`, or empty.
    """
    pieces = [piece for piece in name.split("/") if piece not in ("", ".")]
    return None if not pieces or name.startswith("/") or ".." in pieces else "/".join(pieces)


def format_box(box: Box) -> str:
    """``x,y,w,h`` with the shortest digits that give the same numbers back."""
    return ",".join(repr(float(value)).removesuffix(".0") for value in box)


def make_record_id(source: str, name: str | bytes, box: Box | None = None) -> str:
    """The record id of an image (and box) of a source."""
    image_id = f"{encode_name(source)}/{encode_name(name)}"
    return image_id if box is None else f"{image_id}#{format_box(box)}"


def split_record_id(record_id: str) -> tuple[str, str, Box | None]:
    """(source, name below the source as id text, box or None) of a record id."""
    match = _BOX.search(record_id)
    box: Box | None = None
    if match:
        x, y, w, h = (float(value) for value in match.groups())
        box = (x, y, w, h)
        record_id = record_id[: match.start()]
    source, _, name = record_id.partition("/")
    return source, name, box


@dataclass(frozen=True)
class ImageReference:
    """One thing to describe: an image, or a box in one."""

    record_id: str
    source: str
    location: bytes  # path or URL
    box: Box | None = None


def image_table(references: Iterable[ImageReference]) -> pa.Table:
    """The references as a table of schema IMAGE_LIST."""
    listed = list(references)
    return pa.table(
        {
            "record_id": [reference.record_id for reference in listed],
            "source": [reference.source for reference in listed],
            "location": [reference.location for reference in listed],
            "box": [list(reference.box) if reference.box else [] for reference in listed],
        },
        schema=IMAGE_LIST,
    )


def references_of(table: pa.Table) -> Sequence[ImageReference]:
    """The references of a table of schema IMAGE_LIST, in its order."""
    return [
        ImageReference(row["record_id"], row["source"], row["location"], tuple(row["box"]) or None)
        for row in table.to_pylist()
    ]
