"""A folder on any file system that fsspec reaches and that is no local disk.

Whole objects only, each operation retried, exclusive create by the store's own precondition.

Nothing is written by `open("wb")`, which on S3 commits what was written before an exception. A
multipart upload that breaks is no visible object. What is read is checked for its length, what was
put for its size.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec

from pipelines.storage.protocol import Entry, Place
from pipelines.storage.retries import ShortRead, condition_failed, passes, retried, words
from schemas.errors import Unreachable, UserError

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


class RemotePlace(Place):
    """A folder, or a file by the name "", on a remote file system.

    All operations raise Unreachable where the file system fails in all tries or refuses.
    """

    local = False

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self.fs, self.root = fs, path.rstrip("/")
        self.url = str(fs.unstrip_protocol(self.root))

    def below(self, name: str) -> RemotePlace:
        return RemotePlace(self.fs, f"{self.root}/{name}")

    def info(self, name: str = "") -> dict[str, Any] | None:
        """What the file system says of a file or folder, or None where there is none."""
        path = self.path(name)
        try:
            return dict(self._do(lambda: self.fs.info(path), "looked at", path))
        except ABSENT:
            return None

    def listed(self, folder: str) -> list[dict[str, Any]]:
        """What the file system says of what lies directly in a folder, without the folder."""
        path = self.path(folder)
        try:
            about = self._do(lambda: self.fs.ls(path, detail=True), "listed", path)
        except ABSENT:
            return []

        # An object of a folder's own name, or with a slash at its end, stands for a folder.
        return [one for one in about if one["name"].strip("/") != path.strip("/")]

    def matches(self) -> list[str]:
        """URLs of what the place's own path matches as a glob, sorted."""
        return [str(self.fs.unstrip_protocol(path)) for path in self._glob(self.root)]

    def files_below(self) -> list[str]:
        """Names of all files below the folder; empty where it is absent."""
        try:
            paths = self._do(lambda: self.fs.find(self.root), "listed", self.root)
        except ABSENT:
            return []

        return [self._name(path) for path in paths]

    def exists(self, name: str = "") -> bool:
        return self.info(name) is not None

    def is_folder(self) -> bool:
        about = self.info()
        if about is not None and about["type"] != "directory" and self.http:  # it knows pages alone
            return bool(self.listed(""))

        return about is not None and about["type"] == "directory"

    def entries(self, folder: str) -> list[Entry]:
        return [
            Entry(
                one["name"].rstrip("/").rpartition("/")[2],
                "other" if one["name"].endswith("/") else one["type"],
            )
            for one in self.listed(folder)
        ]

    def glob(self, pattern: str) -> list[str]:
        return [self._name(path) for path in self._glob(f"{glob.escape(self.root)}/{pattern}")]

    def size(self, name: str) -> int | None:
        about = self.info(name)
        return None if about is None or about["size"] is None else int(about["size"])

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        listed: dict[str, int] = {}
        for folder in {name.rpartition("/")[0] for name in names}:
            for one in self.listed(folder):
                listed[one["name"].strip("/")] = one["size"]

        return [listed.get(self.path(name).strip("/")) for name in names]

    def read(
        self, name: str, final: tuple[type[Exception], ...] = ABSENT, most: int | None = None
    ) -> bytes:
        """As the face says; also raises what else is `final`, and TooLarge above `most` bytes."""
        path = self.path(name)

        def whole() -> bytes:
            size = self.fs.info(path).get("size")
            if most is not None and size is not None and size > most:
                raise TooLarge(errno.EFBIG, f"it has {size:,} bytes; at most {most:,} are read")

            # Without a range s3fs would ask for the size again.
            span = {"start": 0, "end": size} if size and size <= AT_ONCE else {}
            data = bytes(self.fs.cat_file(path, **span))
            if size is not None and len(data) != size:
                raise ShortRead(f"{len(data):,} bytes came of {size:,}")

            return data

        return self._do(whole, "read", path, final)

    def read_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        paths = [self.path(name) for name in names]
        pieces: dict[int, bytes] = {}

        def fetch() -> None:
            left = [index for index in range(len(paths)) if index not in pieces]
            columns = [[column[i] for i in left] for column in (paths, starts, stops)]
            fetched = self.fs.cat_ranges(*columns, on_error="return")
            trouble: Exception | None = None
            for index, data in zip(left, fetched, strict=True):
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
            self._do(fetch, "read", paths[0])

        return [pieces[index] for index in range(len(paths))]

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self.path(name)
        self._do(lambda: self.fs.pipe_file(path, data), "written", path, final=())

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)

        def make() -> bool:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except Exception as error:
                if not condition_failed(error):
                    raise

                return False

            return True

        # A request whose answer was lost may have made the object (and layers below try again by
        # themselves), so that a refusal alone does not say who was first: the bytes do.
        while not self._do(make, "made", path, final=()):
            with contextlib.suppress(FileNotFoundError):  # removed since
                return self.read(name) == data

        return True

    def put(self, local_file: str, name: str) -> None:
        path, size = self.path(name), os.path.getsize(local_file)

        def bring() -> None:
            self.fs.put_file(local_file, path)
            stored = self.fs.info(path).get("size")
            if stored != size:
                raise ShortRead(f"{stored:,} bytes are stored of {size:,}")

        try:
            self._do(bring, "written", path, final=())
        except (Unreachable, UserError):
            self._give_up_uploads(path)
            raise

        os.remove(local_file)

    def _give_up_uploads(self, path: str) -> None:
        """Abort what failed tries left of an upload in parts: it is not visible, but is paid for.

        Whoever else writes this object writes the same bytes, and tries again.
        """
        if not hasattr(self.fs, "list_multipart_uploads"):  # S3 alone knows them
            return

        bucket, key, _ = self.fs.split_path(path)
        with contextlib.suppress(OSError, ValueError):
            for upload in self.fs.list_multipart_uploads(bucket):
                if upload["Key"] == key:
                    self.fs.abort_mpu(bucket, key, upload["UploadId"])

    def move(self, name: str, to: str) -> None:
        source, target = self.path(name), self.path(to)

        def copy() -> None:
            size = self.fs.info(source).get("size")
            self.fs.cp_file(source, target)  # by the store itself
            copied = self.fs.info(target).get("size")
            if copied != size:
                raise ShortRead(f"{copied:,} bytes were copied of {size:,}")

        with contextlib.suppress(*ABSENT):
            self._do(copy, "moved", source)
            self.remove(name)

    def remove(self, name: str) -> None:
        path = self.path(name)
        with contextlib.suppress(*ABSENT):
            self._do(lambda: self.fs.rm_file(path), "removed", path)

    def remove_all(self, name: str) -> None:
        path = self.path(name)
        with contextlib.suppress(*ABSENT):
            self._do(lambda: self.fs.rm(path, recursive=True), "removed", path)

    def remove_folder(self, name: str) -> None:
        if name:
            with contextlib.suppress(OSError, UserError):
                self.remove_all(name)

    def remove_empty_folder(self, name: str) -> None:
        return

    def empty(self) -> None:
        super().empty()
        self.remove_all("")  # an object of the folder's own name

    def _name(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

    def _glob(self, pattern: str) -> list[str]:
        try:
            return sorted(self._do(lambda: self.fs.glob(pattern), "listed", pattern))
        except ABSENT:
            return []

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
