"""A file behind http(s): by byte ranges, or as one stream that is started again.

Not by fsspec's http file system: where a server answers a range with the whole object, that holds
it in memory. The package `requests` is imported when a URL is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.storage.retries import ShortRead, retried, words
from schemas.errors import UserError

if TYPE_CHECKING:
    import urllib3

SECONDS = (30, 120)  # to connect, and between two pieces
_PIECE = 1 << 17
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_ALL = re.compile(r"bytes \*/(\d+)")


def changed(url: str) -> UserError:
    """The refusal of a file that is being written."""
    return UserError(
        f"{url}: it changed while it was read; run the command again when it is complete"
    )


class HttpBytes:
    """An object on a web server. Not for several threads at once."""

    remote = True

    def __init__(self, url: str) -> None:
        import requests

        self.url = url
        self.size: int | None = None
        self.seekable = True
        self._tag: tuple[int | None, str] | None = None
        # the whole object, where a server knows no ranges
        self._stream: urllib3.BaseHTTPResponse | None = None
        self._at = 0  # of the stream
        self._session = requests.Session()
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "rrt-pipelines"})
        self._tried(self._learn)

    def _learn(self) -> None:
        """Size, tag, and whether the server knows ranges."""
        body = self._open(0, 1)
        if body is not None:
            body.read(decode_content=False)
            body.release_conn()

    def fetch(self, start: int, stop: int) -> bytes:
        data = bytearray()  # grows over all tries
        self._tried(lambda: self._read(start + len(data), stop, data))
        return bytes(data)

    def close(self) -> None:
        self._drop()
        self._session.close()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _tried(self, operation: Callable[[], object]) -> None:
        import urllib3

        def one_try() -> None:
            try:
                operation()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._drop()
                if isinstance(error, OSError):  # as what requests raises is
                    raise

                raise ConnectionError(words(error)) from error

        try:
            retried(one_try, f"{self.url} cannot be read")
        except OSError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            what = f"it cannot be read: {words(error)}"
            if status in (404, 410):
                what = f"there is no such file (the server answers {status})"
            raise UserError(f"{self.url}: {what}") from error

    def _open(self, start: int, stop: int) -> urllib3.BaseHTTPResponse | None:
        """The body of a range; None where it lies behind the end, or where all is `_stream`."""
        response = self._session.get(
            self.url, headers={"Range": f"bytes={start}-{stop - 1}"}, stream=True, timeout=SECONDS
        )
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416:
            response.close()
            whole = _ALL.match(content_range)
            if self._tag is None:
                self.size = int(whole[1]) if whole else None
            elif whole and int(whole[1]) != self.size:
                raise changed(self.url)

            return None

        response.raise_for_status()
        part = _RANGE.match(content_range) if response.status_code == 206 else None
        if part is None and response.status_code != 200:
            raise UserError(
                f"{self.url}: the server answers a byte range with status {response.status_code}"
            )

        length = part[3] if part else response.headers.get("Content-Length", "")
        # not known where it is no number
        size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        tag = (size, response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        if self._tag is None:
            self._tag, self.size, self.seekable = tag, size, part is not None
        elif tag != self._tag:
            response.close()
            raise changed(self.url)

        if part is None:
            self._stream, self._at = response.raw, 0
            return None

        if int(part[1]) != start:
            raise UserError(
                f"{self.url}: the server sent bytes from {part[1]} on where {start} was requested"
            )

        return response.raw

    def _read(self, start: int, stop: int, data: bytearray) -> None:
        """Append the range to `data`, as far as the object goes."""
        stop = stop if self.size is None else min(stop, self.size)
        if start >= stop:
            return

        if self._at > start:
            self._drop()

        if self._stream is None:
            body = self._open(start, stop)
            if body is not None:
                self._take(body, stop - start, data)
                body.release_conn()
                return

            if self._stream is None:
                return

        while self._at < start:
            passed = self._stream.read(min(_PIECE, start - self._at), decode_content=False)
            self._at += len(passed)
            if not passed:
                raise ShortRead(f"the stream ended at byte {self._at:,}")

        self._at += self._take(self._stream, stop - start, data)

    def _take(self, body: urllib3.BaseHTTPResponse, count: int, data: bytearray) -> int:
        taken = 0
        while taken < count:
            piece = body.read(min(_PIECE, count - taken), decode_content=False)
            if not piece:
                if self.size is not None:
                    raise ShortRead(f"{taken:,} bytes came of {count:,}")

                break

            data += piece
            taken += len(piece)

        return taken
