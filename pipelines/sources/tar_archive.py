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
MOST_BEHIND = 64_000_000  # bytes unpacked after the end mark, for the checksum that follows
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
    """The members of a tar file that are no folders, compressed or not.

    Raises Broken.
    """
    stream = forward(file)
    packed = stream is not file
    first, name, pax = True, b"", {}
    while True:
        position = file.position
        block = stream.read(BLOCK)
        if not block and packed and not first:
            return  # whole by the compression's own end
        if len(block) < BLOCK:
            raise Broken(
                "it is empty" if first and not block else "it ends without the mark of its end"
            )
        if not any(block):
            if packed:
                stream.skip(MOST_BEHIND)  # to the checksum, which is of all that came before
            return

        try:
            info = tarfile.TarInfo.frombuf(block, "latin-1", "strict")
        except tarfile.HeaderError as error:
            raise Broken(
                "it is no tar file" if first else f"a header cannot be read: {error}"
            ) from None

        first, kind, size = False, info.type, info.size
        if size < 0:
            raise Broken("a header declares a negative size")

        if kind in _EXTENDED or kind in _LONG:
            content = _extended(stream, size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                name = content.partition(b"\0")[0]
            elif kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = _pax(content)
            continue  # a global header says nothing of a single file

        if b"size" in pax:
            size = _number(pax[b"size"])
        if kind == tarfile.GNUTYPE_SPARSE:
            _pass_sparse_headers(stream, block)
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name or _plain_name(block)
        sparse = kind == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.") for key in pax)

        member = _Pending(stream, 0 if kind in _BARE else size)
        if kind != tarfile.DIRTYPE and not name.endswith(b"/"):
            yield Member(name, size, position, _refusal(kind, sparse), member.read)
        member.pass_over()
        name, pax = b"", {}


class _Pending:
    """The data that lie next in the stream."""

    def __init__(self, stream: Forward, size: int) -> None:
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


def _extended(stream: Forward, size: int) -> bytes:
    """The content of an extended header."""
    if size > MOST_HEADER:
        raise Broken(
            f"a header of {size:,} bytes stands in it; more than {MOST_HEADER:,} are not read"
        )
    return _exactly(stream, size + -size % BLOCK, "header")[:size]


def _exactly(stream: Forward, count: int, what: str) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise Broken(f"it ends in the middle of a {what}")
    return data


def _pax(content: bytes) -> dict[bytes, bytes]:
    """The records ("length key=value" and a line's end) that say name, size and sparseness."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 10)
        length = _number(content[at:space]) if space > at else 0
        record = content[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if at + length > len(content) or record[-1:] != b"\n" or not equals:
            raise Broken("a pax header cannot be read")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            records[key] = value
        at += length
    return records


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise Broken("a number in a pax header cannot be read")
    return int(digits)


def _pass_sparse_headers(stream: Forward, block: bytes) -> None:
    """Old GNU sparse files have further blocks of their map before the data."""
    more = block[482]
    while more:
        more = _exactly(stream, BLOCK, "header")[504]
