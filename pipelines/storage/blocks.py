"""A file that is read by blocks, wherever its bytes come from.

Remote blocks are fetched one ahead in a thread, so that network and processor overlap.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

LOCAL_BLOCK = 1 << 20
REMOTE_BLOCK = 4 << 20


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
        whole = io.BytesIO()  # it gives its bytes without a copy
        missing = count if count is not None and count >= 0 else sys.maxsize
        while missing > 0:
            number, start = divmod(self._at, self.block)
            piece = self._block(number)[start : start + missing]
            if not piece:
                break

            self._at += len(piece)
            missing -= len(piece)
            if not missing and not whole.tell():
                return piece

            whole.write(piece)

        return whole.getvalue()

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
            self._ahead = (number + 1, self._thread.submit(self._range, number + 1))

        return data

    def _fetched(self, number: int) -> bytes:
        if self._thread is None:
            return self._range(number)

        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            return ahead[1].result()

        if ahead is not None:
            ahead[1].cancel()

        # In the thread as well, so that there is one request at a time: a session is no thread's.
        return self._thread.submit(self._range, number).result()

    def _range(self, number: int) -> bytes:
        return self.source.fetch(number * self.block, (number + 1) * self.block)

    def close(self) -> None:
        """Let the thread and the source go."""
        self.closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

        self.source.close()
