"""A file read by ranges: local, on any file system that fsspec reaches, or behind http(s).

An archive is read so, and a Parquet table of which only some blocks are wanted.
Each request is tried again where the connection breaks. An object that changes while it is read is
refused: its pieces would not fit each other.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.blocks import BlockFile, Bytes
from pipelines.storage.http import HttpBytes, changed
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place, is_http
from pipelines.storage.remote import RemotePlace
from pipelines.storage.tables import reading
from schemas.errors import Unreachable, UserError
from schemas.openers.parquet import check_rows, columns_of

COLUMNS_BLOCK = 1 << 18  # bytes that are fetched at once where only some columns are read
_TAGS = ("ETag", "etag", "md5Hash", "generation", "version_id", "LastModified", "mtime", "created")


class LocalBytes:
    """A file on a local disk."""

    seekable, remote = True, False

    def __init__(self, url: str, path: str) -> None:
        self.url = url
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{url}: it cannot be read: {why}") from None

        about = os.fstat(self._file)
        if not stat.S_ISREG(about.st_mode):
            os.close(self._file)
            raise UserError(f"{url}: it is no file")

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
            raise UserError(f"{url}: there is no such file")

        if about.get("type") == "directory" or about.get("size") is None:
            raise UserError(f"{url}: it is no file")

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


def read_columns(place: Place, name: str, columns: Sequence[str]) -> pa.Table:
    """As read_table, but only the blocks of the file that hold the columns are fetched.

    Of a part of 4,096 globals that is half a MB, not the whole file. Raises Damaged.
    """
    with open_table(place, name, COLUMNS_BLOCK) as file:
        return columns_of(file, columns)


@contextlib.contextmanager
def open_table(place: Place, name: str, block: int = 0) -> Iterator[pq.ParquetFile]:
    """A place's file, of which only the blocks that are read are fetched.

    Raises Damaged.
    """
    with reading(place, name):
        if place.local and not place.exists(name):
            raise FileNotFoundError
        source = open_bytes(f"{place.url}/{name}")
        with contextlib.closing(BlockFile(source, block)) as stream:
            file = pq.ParquetFile(pa.PythonFile(stream, "r"))
            check_rows(file.metadata)
            yield file
