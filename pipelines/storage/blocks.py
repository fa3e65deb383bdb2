"""An archive's bytes as a file that is read by blocks: local, remote, or behind http(s).

Remote blocks are fetched one ahead in a thread, so that network and processor overlap, and each is
tried again where the connection breaks. An object that changes while it is read is refused: its
pieces would not fit each other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pipelines.storage.http import HttpBytes, changed
from pipelines.storage.place import open_place
from pipelines.storage.protocol import is_http
from pipelines.storage.remote import RemotePlace
from schemas.errors import Unreachable, UserError

LOCAL_BLOCK = 1 << 20
REMOTE_BLOCK = 4 << 20
_TAGS = ("ETag", "etag", "md5Hash", "generation", "version_id", "LastModified", "mtime", "created")


class Bytes(Protocol):
    """Where an archive's bytes come from."""

    size: int | None  # None where a server does not say
    seekable: bool  # False where each byte before must be read again
    remote: bool

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes of a range; fewer only at the end. Raises UserError."""
        ...

    def close(self) -> None:
        """Let the connection or file go."""
        ...


class LocalBytes:
    """A file on a local disk."""

    seekable, remote = True, False

    def __init__(self, url: str, path: str) -> None:
        self.url = url
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such archive") from None
        except OSError as error:
            raise UserError(f"{url}: the archive cannot be read: {error.strerror}") from None
        about = os.fstat(self._file)
        if not stat.S_ISREG(about.st_mode):
            os.close(self._file)
            raise UserError(f"{url}: it is no file, thus no archive")
        self.size: int | None = about.st_size
        self._written = about.st_mtime_ns

    def fetch(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop and (piece := os.pread(self._file, stop - start, start)):
            pieces.append(piece)
            start += len(piece)
        about = os.fstat(self._file)
        if (about.st_size, about.st_mtime_ns) != (self.size, self._written):
            raise changed(self.url)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        os.close(self._file)


class RemoteBytes:
    """An object on a remote file system."""

    seekable, remote = True, True

    def __init__(self, url: str, place: RemotePlace) -> None:
        self.url, self.place = url, place
        about = place.info()
        if about is None:
            raise UserError(f"{url}: there is no such archive")

        if about.get("type") == "directory" or about.get("size") is None:
            raise UserError(f"{url}: it is no file, thus no archive")

        self.size: int | None = int(about["size"])
        self._tags = self._tags_of(about)

    @staticmethod
    def _tags_of(about: dict[str, object]) -> list[object]:
        return [about.get("size"), *(about.get(name) for name in _TAGS)]

    def fetch(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size or 0)
        if start >= stop:
            return b""

        try:
            (data,) = self.place.read_ranges([""], [start], [stop])
        except (Unreachable, FileNotFoundError):
            self._compare()  # a shorter object gives short reads
            raise

        self._compare()
        return data

    def _compare(self) -> None:
        about = self.place.info()
        if about is None or self._tags_of(about) != self._tags:
            raise changed(self.url)

    def close(self) -> None:
        """Nothing is held."""


def open_bytes(url: str) -> Bytes:
    """The bytes of a path or URL.

    Raises UserError where there is no such file or it cannot be read.
    """
    if is_http(url):
        return HttpBytes(url)

    place = open_place(url)
    return (
        RemoteBytes(url, place) if isinstance(place, RemotePlace) else LocalBytes(url, place.root)
    )


class BlockFile:
    """A binary file over bytes that are fetched in blocks, at most two; not for several threads."""

    def __init__(self, source: Bytes, block: int = 0) -> None:
        self.source = source
        self.block = block or (REMOTE_BLOCK if source.remote else LOCAL_BLOCK)
        self.closed = False
        self._at = 0
        self._number, self._data = -1, b""
        self._end = source.size  # learned at the last block where the size is unknown
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._thread = ThreadPoolExecutor(1, "archive") if source.remote else None

    @property
    def position(self) -> float:
        """Share of the bytes before the read position; 0 where the size is unknown."""
        return min(1.0, self._at / self._end) if self._end else 0.0

    def seekable(self) -> bool:
        return self.source.seekable

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END and self._end is None:
            raise OSError("the size is unknown")
        start = (0, self._at, self._end or 0)[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start of the file")
        self._at = start + offset
        return self._at

    def skip(self, count: int) -> None:
        """Pass over bytes; of remote ones whole blocks are not fetched."""
        self._at += count

    def read(self, count: int | None = -1) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        pieces: list[bytes] = []
        missing = count if count is not None and count >= 0 else None
        while missing is None or missing > 0:
            number, start = divmod(self._at, self.block)
            data = self._block(number)
            piece = data[start:] if missing is None else data[start : start + missing]
            if not piece:
                break
            pieces.append(piece)
            self._at += len(piece)
            missing = None if missing is None else missing - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block(self, number: int) -> bytes:
        if number == self._number:
            return self._data
        if self._end is not None and number * self.block >= self._end:
            return b""
        follows = number == self._number + 1
        self._number, self._data = -1, b""  # the old block goes before the new one comes
        data = self._fetched(number)
        self._number, self._data = number, data
        if len(data) < self.block and self._end is None:
            self._end = number * self.block + len(data)
        more = self._end is None or (number + 1) * self.block < self._end
        if self._thread is not None and follows and more:
            self._ahead = (number + 1, self._thread.submit(self._range(number + 1)))
        return data

    def _fetched(self, number: int) -> bytes:
        if self._thread is None:
            return self._range(number)()

        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            return ahead[1].result()

        if ahead is not None:
            ahead[1].cancel()

        # In the thread as well, so that there is one request at a time: a session is no thread's.
        return self._thread.submit(self._range(number)).result()

    def _range(self, number: int) -> Callable[[], bytes]:
        return lambda: self.source.fetch(number * self.block, (number + 1) * self.block)

    def close(self) -> None:
        """Let the thread and the source go."""
        self.closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self.source.close()
