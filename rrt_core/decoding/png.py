"""PNG files before they are decoded: chunks whose checksums hold, and none that only costs memory.

Pillow refuses a picture for a colour profile or a text of more than a megabyte, or for a damaged
remark, none of which bears on its pixels; and it does not look at the checksums of the pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rrt_core.decoding.error import DecodeError

_SIGNATURE = 8
_MOST_TEXT = 1_000_000  # bytes of a text that may say how the picture is turned
_TURNING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # of which Pillow reads that
_KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # besides the critical ones


class _Chunk(NamedTuple):
    kind: bytes
    first: int  # of its length field
    length: int  # of its body

    @property
    def end(self) -> int:
        return self.first + self.length + 12


def without_needless_chunks(data: bytes) -> bytes:
    """The file as Pillow is to read it; the same bytes where nothing is to be left out.

    Raises DecodeError where the checksum of a chunk that the pixels depend on is wrong.
    """
    view, kept, start = memoryview(data), [], 0
    for chunk in _chunks(data):
        if chunk.end > len(data):
            break  # Pillow says what is missing

        sound = _sound(view, chunk)
        if not sound and chunk.kind[:1].isupper() and chunk.kind != b"IEND":
            raise DecodeError(
                f"the PNG is damaged: the checksum of its {chunk.kind.decode()} chunk is wrong",
                "unreadable",
            )
        if not (_matters(view, chunk) and (sound or chunk.kind == b"IEND")):
            kept.append(view[start : chunk.first])
            start = chunk.end

    return b"".join([*kept, view[start:]]) if kept else data


def transparent_colour(data: bytes) -> tuple[int, ...]:
    """The samples, one or three, that a tRNS chunk makes transparent; none where there is none."""
    for chunk in _chunks(data):
        if chunk.kind == b"tRNS" and chunk.length in (2, 6):
            body = data[chunk.first + 8 : chunk.end - 4]
            return struct.unpack(f">{chunk.length // 2}H", body)
        if chunk.kind == b"IDAT":
            break
    return ()


def _chunks(data: bytes) -> Iterator[_Chunk]:
    place = _SIGNATURE
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunk = _Chunk(data[place + 4 : place + 8], place, length)
        if not chunk.kind.isalpha():
            return
        yield chunk
        place = chunk.end


def _sound(view: memoryview, chunk: _Chunk) -> bool:
    said = int.from_bytes(view[chunk.end - 4 : chunk.end], "big")
    return zlib.crc32(view[chunk.first + 4 : chunk.end - 4]) == said


def _matters(view: memoryview, chunk: _Chunk) -> bool:
    """Whether the picture depends on the chunk: by its pixels, or by the turn it is seen at."""
    if chunk.kind[:1].isupper() or chunk.kind in _KEPT:
        return chunk.kind != b"eXIf" or chunk.length <= _MOST_TEXT
    if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt") or chunk.length > _MOST_TEXT:
        return False
    body = bytes(view[chunk.first + 8 : chunk.end - 4])
    return body.startswith(_TURNING) and _small(body)


def _small(body: bytes) -> bool:
    """Whether a compressed text stays small; the stream begins somewhere behind the keyword."""
    begin = body.find(b"\x78", body.index(b"\0"))
    try:
        text = zlib.decompressobj()
        text.decompress(body[begin:], _MOST_TEXT)
        return not text.unconsumed_tail
    except zlib.error:
        return True  # not compressed
