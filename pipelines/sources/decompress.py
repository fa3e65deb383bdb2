"""A compressed stream read forward, a bounded piece at a time: gzip, bzip2 and xz, told by their
first bytes.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from pipelines.sources.member import Broken
from pipelines.storage.blocks import BlockFile

PIECE = 1 << 18  # bytes unpacked at a time: so many may be lost before a damage
CHUNK = 1 << 16  # packed bytes fed at a time
XZ_MEMORY = 256 << 20  # xz -9 needs 65 MB


class Forward(Protocol):
    """What is read in order."""

    packed: bool

    def read(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end. Raises Broken."""
        ...

    def skip(self, count: int) -> None:
        """Pass over bytes, at most to the end. Raises Broken."""
        ...


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        unpacked = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(unpacked) < max_length and not self._zlib.unconsumed_tail
        return unpacked


_KINDS: dict[bytes, Callable[[], _Decoder]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY),
}


class Plain:
    """A file that is not compressed."""

    packed = False

    def __init__(self, file: BlockFile) -> None:
        self.read, self.skip = file.read, file.skip


class Unpacked:
    """The unpacked stream of one compressed file, of several members where it has them; what
    follows is left alone.
    """

    packed = True

    def __init__(self, file: BlockFile, magic: bytes) -> None:
        self._file, self._magic, self._new = file, magic, _KINDS[magic]
        self._decoder = self._new()
        self._input, self._ended = b"", False
        self._ready, self._at = b"", 0  # unpacked, and how far it was read

    def read(self, count: int) -> bytes:
        pieces = []
        while count > 0 and self._filled():
            piece = self._ready[self._at : self._at + count]
            pieces.append(piece)
            self._at += len(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def skip(self, count: int) -> None:
        while count > 0 and self._filled():
            passed = min(count, len(self._ready) - self._at)
            self._at += passed
            count -= passed

    def _filled(self) -> bool:
        """Whether there is anything more."""
        if self._at == len(self._ready):
            self._ready, self._at = self._more(), 0
        return bool(self._ready)

    def _more(self) -> bytes:
        """The next piece; empty at the end."""
        while not self._ended:
            if self._decoder.eof and not self._next_member():
                break
            if self._decoder.needs_input and not self._input:
                self._input = self._file.read(CHUNK)
                if not self._input:
                    raise Broken("its compressed data end too early")
            data, self._input = self._input, b""
            try:
                piece = self._decoder.decompress(data, PIECE)
            except (
                zlib.error,
                lzma.LZMAError,
                OSError,
                EOFError,
                ValueError,
                MemoryError,
            ) as error:
                raise Broken(f"its compressed data cannot be read: {error}") from error
            if piece:
                return piece
        return b""

    def _next_member(self) -> bool:
        """Whether another compressed member follows, zeros between them passed over."""
        rest = self._decoder.unused_data
        while True:
            rest = rest.lstrip(b"\0")
            if len(rest) >= len(self._magic):
                break
            more = self._file.read(CHUNK)
            if not more:
                break
            rest += more
        if not rest.startswith(self._magic):
            self._ended = True
            return False
        self._decoder, self._input = self._new(), rest
        return True


def forward(file: BlockFile) -> Forward:
    """The stream that a file holds, from its start."""
    head = file.read(6)
    file.seek(0)
    for magic in _KINDS:
        if head.startswith(magic):
            return Unpacked(file, magic)
    return Plain(file)
