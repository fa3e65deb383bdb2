"""Members of a tar file in the order of the stream: ustar, pax and GNU headers.

tarfile parses each header block; the way from header to header is ours. tarfile reads extended
headers of any size into memory, follows chains of them by recursion, keeps a list of all members,
and takes a damaged header for the end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from pipelines.sources.decompress import Forward, forward
from pipelines.sources.member import Broken, Member
from pipelines.storage.blocks import BlockFile

BLOCK = tarfile.BLOCKSIZE
MOST_HEADER = 1_000_000  # bytes of one extended header
PIECE = 2048 * BLOCK  # bytes that are looked at for zeros at a time
# bytes behind the end mark: of what was made larger than it came to be; of what is packed a small
# file unpacks to as many as it likes
MOST_ZEROS, MOST_ZEROS_PACKED = 64_000_000_000, 4_000_000_000
_DATA = frozenset((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE))
_BARE = frozenset(
    (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    )
)
_EXTENDED = frozenset((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE))
_LONG = frozenset((tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
_LINK = ("link", "it is a link, not a file; links are not followed")
_SPECIAL = ("special", "it is a device or another thing that is no file")
_SPARSE = ("sparse", "it is a sparse file; put it into the archive without --sparse")


def tar_members(file: BlockFile) -> Iterator[Member]:
    """The members of a tar file that are no folders, compressed or not; of several, one behind the
    other, those of all.

    The end is two blocks of zeros or more, and nothing but zeros behind them. Raises Broken.
    """
    plain = forward(file)
    packed = plain is not file
    stream = _Stream(plain, None if packed else file.source.size)
    first, name = True, b""
    pax: dict[bytes, bytes] = {}
    while True:
        position, at = file.position, stream.at
        block = stream.read(BLOCK)
        if not block and packed and not first:
            return  # whole by the compression's own end
        if len(block) < BLOCK:
            empty = first and not block
            raise Broken("it is empty" if empty else "it ends without the mark of its end", at)
        if not any(block):
            zeros = BLOCK + stream.pass_zeros(MOST_ZEROS_PACKED if packed else MOST_ZEROS)
            if stream.ended:
                return
            if zeros < 2 * BLOCK:
                raise Broken("a header is nothing but zeros, and more stands behind it", at)
            first, name, pax = False, b"", {}
            continue

        try:
            info = tarfile.TarInfo.frombuf(block, "latin-1", "strict")
        except tarfile.HeaderError as error:
            what = "it is no tar file" if first else f"a header cannot be read: {error}"
            raise Broken(what, at) from None

        first, kind, size = False, info.type, info.size
        if size < 0:
            raise Broken("a header declares a negative size", at)

        if kind in _EXTENDED or kind in _LONG:
            content = _extended(stream, size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                name = content.partition(b"\0")[0]
            elif kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = _pax(content, at)
            continue  # a global header says nothing of a single file

        if b"size" in pax:
            size = _number(pax[b"size"], at)
        if kind == tarfile.GNUTYPE_SPARSE:
            _pass_sparse_headers(stream, block)
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name or _plain_name(block)
        sparse = kind == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.") for key in pax)

        member = _Pending(stream, 0 if kind in _BARE else size)
        if kind != tarfile.DIRTYPE and not name.endswith(b"/"):
            yield Member(name, size, position, _refusal(kind, sparse), member.read)
        member.pass_over()
        name, pax = b"", {}


class _Stream:
    """A stream that knows where it is, and passes over zeros."""

    def __init__(self, stream: Forward, size: int | None) -> None:
        self._stream, self._size, self._ready = stream, size, b""
        self.at = 0  # bytes of the tar file, unpacked, before what is read next
        self.ended = False

    def read(self, count: int) -> bytes:
        """`count` bytes; fewer only at the end. Raises Broken."""
        data, self._ready = self._ready[:count], self._ready[count:]
        if len(data) < count:
            more = self._stream.read(count - len(data))
            data = data + more if data else more
        self.at += len(data)
        return data

    def skip(self, count: int) -> None:
        """Pass over bytes. Raises Broken."""
        self.at += count
        if self._size is not None and self.at > self._size:
            raise Broken("it ends in the middle of a file", self._size)
        ready, self._ready = len(self._ready), self._ready[count:]
        if count > ready:
            self._stream.skip(count - ready)

    def pass_zeros(self, most: int) -> int:
        """Pass over whole blocks of zeros; gives their bytes. Notes whether that is the end.

        Raises Broken where there are more than `most`.
        """
        zeros = 0
        while zeros < most:
            data = self.read(PIECE)
            rest = data.lstrip(b"\0")
            if rest:
                self._ready = data[(len(data) - len(rest)) // BLOCK * BLOCK :] + self._ready
                self.at -= len(self._ready)
                return zeros + len(data) - len(self._ready)

            zeros += len(data)
            self.ended = len(data) < PIECE
            if self.ended:
                return zeros
        raise Broken(f"more than {most:,} zeros stand behind its end", self.at)


class _Pending:
    """The data that lie next in the stream."""

    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream, self._size = stream, size
        self._padding = -size % BLOCK

    def read(self) -> bytes:
        size, self._size = self._size, 0
        return _exactly(self._stream, size, "file")

    def pass_over(self) -> None:
        self._stream.skip(self._size + self._padding)


def _refusal(kind: bytes, sparse: bool) -> tuple[str, str] | None:
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        return _LINK
    if sparse:
        return _SPARSE
    return None if kind in _DATA else _SPECIAL


def _plain_name(block: bytes) -> bytes:
    """The name in a header block; only ustar's own magic says that a prefix stands there."""
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended(stream: _Stream, size: int) -> bytes:
    """The content of an extended header."""
    if size > MOST_HEADER:
        raise Broken(
            f"a header of {size:,} bytes stands in it; more than {MOST_HEADER:,} are not read",
            stream.at,
        )
    return _exactly(stream, size + -size % BLOCK, "header")[:size]


def _exactly(stream: _Stream, count: int, what: str) -> bytes:
    at, data = stream.at, stream.read(count)
    if len(data) < count:
        raise Broken(f"it ends in the middle of a {what}", at + len(data))
    return data


def _pax(content: bytes, header: int) -> dict[bytes, bytes]:
    """The records ("length key=value" and a line's end) that say name, size and sparseness."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 10)
        length = _number(content[at:space], header) if space > at else 0
        record = content[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if at + length > len(content) or record[-1:] != b"\n" or not equals:
            raise Broken("a pax header cannot be read", header)
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            records[key] = value
        at += length
    return records


def _number(digits: bytes, header: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise Broken("a number in a pax header cannot be read", header)
    return int(digits)


def _pass_sparse_headers(stream: _Stream, block: bytes) -> None:
    """Old GNU sparse files have further blocks of their map before the data."""
    more = block[482]
    while more:
        more = _exactly(stream, BLOCK, "header")[504]
