"""A compressed stream read forward in bounded memory: gzip, bzip2 and xz, by their first bytes.

The decompressors are the standard library's; its file objects are not used: LZMAFile knows no bound
of memory, GzipFile fails at what stands behind the end, and BZ2File and LZMAFile take a damaged
start of a further stream for the end.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.sources.member import Broken
from pipelines.storage.blocks import BlockFile

PIECE = 1 << 18  # bytes unpacked at a time: so many may be lost before a damage
CHUNK = 1 << 16  # packed bytes fed at a time
XZ_MEMORY = 256 << 20  # xz -9 needs 65 MB

_KINDS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY),
}
_DAMAGED = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)


class Unpacked:
    """The unpacked stream of a file: of its members, one after the other, and of nothing else."""

    def __init__(self, file: BlockFile, magic: bytes) -> None:
        self._pieces = _unpacked(file, magic)
        self._ready, self._at = b"", 0  # the last piece, and how far it was read

    def read(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end. Raises Broken."""
        whole = io.BytesIO()  # it gives its bytes without a copy
        for piece in self._read(count):
            if len(piece) == count:
                return piece
            whole.write(piece)
        return whole.getvalue()

    def skip(self, count: int) -> None:
        """Pass over bytes, at most to the end. Raises Broken."""
        for _ in self._read(count):
            pass

    def _read(self, count: int) -> Iterator[bytes]:
        while count > 0:
            if self._at == len(self._ready):
                self._ready, self._at = next(self._pieces, b""), 0
                if not self._ready:
                    return

            piece = self._ready[self._at : self._at + count]
            self._at += len(piece)
            count -= len(piece)
            yield piece


def _unpacked(file: BlockFile, magic: bytes) -> Iterator[bytes]:
    """The pieces of a compressed file's members, zeros between these passed over."""
    data = file.read(CHUNK)
    while data.startswith(magic):
        decoder = _KINDS[magic]()
        while not decoder.eof:
            # bz2 and lzma keep what they have not used yet, zlib gives it back
            if not data and getattr(decoder, "needs_input", True):
                data = file.read(CHUNK)
                if not data:
                    raise Broken("its compressed data end too early")

            try:
                piece = decoder.decompress(data, PIECE)
            except _DAMAGED as error:
                raise Broken(f"its compressed data cannot be read: {error}") from error

            data = getattr(decoder, "unconsumed_tail", b"")
            if piece:
                yield piece

        data = decoder.unused_data.lstrip(b"\0")
        while len(data) < len(magic) and (more := file.read(CHUNK)):
            data = (data + more).lstrip(b"\0")


Forward = BlockFile | Unpacked  # what is read in order


def forward(file: BlockFile) -> Forward:
    """The stream that a file holds, from its start: the file itself where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    magic = next((magic for magic in _KINDS if head.startswith(magic)), None)
    return file if magic is None else Unpacked(file, magic)
