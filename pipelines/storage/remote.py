"""Files on any file system that fsspec reaches and that is no local disk: whole objects, each
operation retried.

Nothing is written by `open("wb")`, which on S3 commits what was written before an exception. A
multipart upload that breaks is no visible object. What is read is checked for its length, what was
put for its size.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec

from pipelines.storage.retries import (
    ShortRead,
    Unreachable,
    condition_failed,
    passes,
    retried,
    words,
)

Result = TypeVar("Result")

AT_ONCE = 8_000_000  # bytes: larger objects are read in concurrent ranges where the file system can
_NOISY = ("aiobotocore", "botocore", "s3fs", "gcsfs", "fsspec", "aiohttp", "urllib3", "asyncio")
ABSENT: tuple[type[Exception], ...] = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_BUGS = (TypeError, AttributeError, LookupError, NameError, AssertionError, MemoryError)
_made: dict[tuple[Any, ...], fsspec.AbstractFileSystem] = {}
_lock = threading.Lock()


def file_system(
    kind: type[fsspec.AbstractFileSystem], settings: dict[str, Any]
) -> fsspec.AbstractFileSystem:
    """A file system, one for all threads of the process where it may be shared: each has
    connections of its own.
    """
    if not kind.async_impl:
        return kind(**settings)
    for name in _NOISY:  # their warnings about requests that are tried again
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    key = (os.getpid(), kind, repr(sorted(settings.items())))
    with _lock:
        if key not in _made:
            _made[key] = kind(**settings)
        return _made[key]


class TooLarge(OSError):
    """An object that is not read for its size."""


class RemoteFiles:
    """The operations on paths of one file system.

    All raise retrying.Unreachable where the file system fails in all tries or refuses; only what
    each says besides.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self.fs = fs

    def info(self, path: str) -> dict[str, Any] | None:
        """What the file system tells of a file or folder, or None where there is none."""
        try:
            return dict(self._do(lambda: self.fs.info(path), "looked at", path))
        except ABSENT:
            return None

    def read(
        self, path: str, final: tuple[type[Exception], ...] = ABSENT, most: int | None = None
    ) -> bytes:
        """The whole object.

        Raises FileNotFoundError, and what else is `final`; TooLarge above `most` bytes.
        """

        def whole() -> bytes:
            size = self.fs.info(path).get("size")
            if most is not None and size is not None and size > most:
                raise TooLarge(errno.EFBIG, f"it has {size:,} bytes; at most {most:,} are read")
            if not size or size > AT_ONCE:
                data = bytes(self.fs.cat_file(path))
            else:
                data = bytes(
                    self.fs.cat_file(path, start=0, end=size)
                )  # s3fs would else ask for the size again
            if size is not None and len(data) != size:
                raise ShortRead(f"{len(data):,} bytes came of {size:,}")
            return data

        return self._do(whole, "read", path, final)

    def ranges(
        self, paths: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        """Byte ranges, in order, concurrently where the file system can.

        Raises FileNotFoundError.
        """
        pieces: dict[int, bytes] = {}

        def missing() -> None:
            left = [index for index in range(len(paths)) if index not in pieces]
            asked = [paths[i] for i in left], [starts[i] for i in left], [stops[i] for i in left]
            trouble: Exception | None = None
            for index, data in zip(
                left, self.fs.cat_ranges(*asked, on_error="return"), strict=True
            ):
                if isinstance(data, Exception):
                    if trouble is None or not passes(data):
                        trouble = data
                elif len(data) != stops[index] - starts[index]:
                    trouble = trouble or ShortRead(
                        f"{len(data):,} bytes came of {starts[index]:,} .. {stops[index]:,} of "
                        f"{paths[index]}"
                    )
                else:
                    pieces[index] = bytes(data)
            if trouble is not None:
                raise trouble

        if paths:
            self._do(missing, "read", paths[0])
        return [pieces[index] for index in range(len(paths))]

    def listed(self, path: str) -> list[dict[str, Any]]:
        """What lies directly in a folder; empty where it is absent."""
        try:
            return list(self._do(lambda: self.fs.ls(path, detail=True), "listed", path))
        except ABSENT:
            return []

    def found(self, path: str) -> list[str]:
        """Paths of all files below a folder; empty where it is absent."""
        try:
            return list(self._do(lambda: self.fs.find(path), "listed", path))
        except ABSENT:
            return []

    def glob(self, pattern: str) -> list[str]:
        """Paths that a glob matches, sorted; empty where there are none."""
        try:
            return sorted(self._do(lambda: self.fs.glob(pattern), "listed", pattern))
        except ABSENT:
            return []

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a whole object."""
        self._do(lambda: self.fs.pipe_file(path, data), "written", path, final=())

    def create(self, path: str, data: bytes) -> bool:
        """Write a whole object unless there is one; whether exactly these bytes are the ones that
        stand there.

        A request whose answer was lost may have made the object (and layers below try again by
        themselves), so that a refusal alone does not tell who was first.
        """

        def make() -> bool:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except Exception as error:
                if not condition_failed(error):
                    raise
                return False
            return True

        while True:
            if self._do(make, "made", path, final=()):
                return True
            try:
                return self.read(path) == data
            except FileNotFoundError:  # removed since
                continue

    def put(self, local_file: str, path: str) -> None:
        """Bring the content of a local file to a path."""
        size = os.path.getsize(local_file)

        def bring() -> None:
            self.fs.put_file(local_file, path)
            there = self.fs.info(path).get("size")
            if there != size:
                raise ShortRead(f"{there:,} bytes are there of {size:,}")

        self._do(bring, "written", path, final=())

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is absent."""
        with contextlib.suppress(*ABSENT):
            self._do(lambda: self.fs.rm_file(path), "removed", path)

    def remove_below(self, path: str) -> None:
        """Remove all objects below a path."""
        with contextlib.suppress(*ABSENT):
            self._do(lambda: self.fs.rm(path, recursive=True), "removed", path)

    def _do(
        self,
        operation: Callable[[], Result],
        verb: str,
        path: str,
        final: tuple[type[Exception], ...] = ABSENT,
    ) -> Result:
        """The operation, retried; errors of the classes `final` come as they are, all others as
        Unreachable.
        """
        what = f"{self.fs.unstrip_protocol(path)} cannot be {verb}"
        try:
            return retried(operation, what)
        except Unreachable:
            raise
        except Exception as error:
            if isinstance(error, (*final, *_BUGS)):
                raise
            raise Unreachable(f"{what}: {words(error)}") from error
