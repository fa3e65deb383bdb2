"""A folder on a local disk: durable writes, exclusive create, sentences of a full disk.

A file gets a temporary name, fsync, its own name, fsync of the folder; exclusive create is a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.protocol import Entry, Place
from pipelines.storage.retries import ShortRead
from schemas.errors import UserError

FULL = {
    errno.ENOSPC: "there is no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
}
REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder must be",
    errno.EISDIR: "a folder stands in its place",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a link that leads to itself",
}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.tmp", re.DOTALL)  # what is written before it is renamed
UNSIZED = 1 << 24  # bytes that are read of a file whose size is said to be 0, as in /proc
ABSENT = (FileNotFoundError, NotADirectoryError)
NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class LocalPlace(Place):
    """A folder on a local disk."""

    local = True

    def __init__(self, path: str) -> None:
        self.root = self.url = path.rstrip("/")

    def below(self, name: str) -> LocalPlace:
        return LocalPlace(f"{self.root}/{name}")

    def exists(self, name: str = "") -> bool:
        return os.path.exists(self.path(name))

    def is_link(self, name: str = "") -> bool:
        return os.path.islink(self.path(name))

    def writable(self) -> bool:
        return os.access(self.root, os.W_OK)

    def is_folder(self) -> bool:
        return os.path.isdir(self.root)

    def entries(self, folder: str) -> list[Entry]:
        try:
            with os.scandir(self.path(folder)) as listed:
                return [Entry(one.name, _kind(one)) for one in listed]
        except ABSENT:
            return []

    def glob(self, pattern: str) -> list[str]:
        paths = LocalFileSystem().glob(f"{glob.escape(self.root)}/{pattern}")
        return [path[len(self.root) :].lstrip("/") for path in paths]

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self.path(name)).st_size
        except OSError as error:
            if error.errno in NO_FILE:
                return None
            raise

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [self.size(name) for name in names]

    def read(self, name: str, most: int | None = None) -> bytes:
        """As the face says; raises OSError for more than `most` bytes, and what is no file."""
        return read_file(self.path(name), most)

    def read_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        pieces = []
        with contextlib.ExitStack() as stack:
            opened: dict[str, int] = {}
            for name, start, stop in zip(names, starts, stops, strict=True):
                if name not in opened:
                    opened[name] = os.open(self.path(name), os.O_RDONLY)
                    stack.callback(os.close, opened[name])

                piece = os.pread(opened[name], stop - start, start)
                if len(piece) < stop - start:
                    raise ShortRead(f"it ends before byte {stop:,}")
                pieces.append(piece)

        return pieces

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        with self.temporary(name) as temporary:
            _write(temporary, data, durable)
            os.replace(temporary, self.path(name))
            if durable:
                fsync_folder(os.path.dirname(self.path(name)))

    def create(self, name: str, data: bytes) -> bool:
        with self.temporary(name) as temporary:
            _write(temporary, data, durable=True)
            try:
                _link(temporary, self.path(name))
            except FileExistsError:
                return False

            fsync_folder(os.path.dirname(self.path(name)))

        return True

    def put(self, local_file: str, name: str) -> None:
        target = self.path(name)
        with self._writing(name):
            with open(local_file, "rb") as file:
                os.fsync(file.fileno())

            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(local_file, target)
            fsync_folder(os.path.dirname(target))

    def move(self, name: str, to: str) -> None:
        target = self.path(to)
        with self._writing(to):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path(name), target)
                fsync_folder(os.path.dirname(target))

    def remove(self, name: str) -> None:
        with contextlib.suppress(*ABSENT):
            os.remove(self.path(name))

    def remove_all(self, name: str) -> None:
        path = self.path(name)
        with self._writing(name), contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)

    def remove_folder(self, name: str) -> None:
        shutil.rmtree(self.path(name), ignore_errors=True)

    def remove_empty_folder(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self.path(name))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        made = not os.path.isdir(self.root)
        try:
            os.makedirs(self.root, exist_ok=True)
        except OSError as error:
            why = FULL.get(error.errno or 0) or REFUSED.get(error.errno or 0) or error.strerror
            raise UserError(f"{self.root}: the folder cannot be made: {why}") from error

        folder = os.open(self.root, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # of a disk that knows no locks
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"{self.url} is being made by another command; wait for its end, or give "
                        f"another place"
                    ) from None

            yield
        finally:
            os.close(folder)
            if made:
                with contextlib.suppress(OSError):  # where nothing came of it
                    os.rmdir(self.root)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Errors of the disk as UserError."""
        try:
            yield
        except OSError as error:
            refused = full_disk(error, self.path(name))
            if refused is None and error.errno in REFUSED:
                refused = UserError(f"{self.path(name)} cannot be written: {REFUSED[error.errno]}")

            if refused is None:
                raise

            raise refused from error

    @contextlib.contextmanager
    def temporary(self, name: str) -> Iterator[str]:
        """A temporary name beside the file; no file of that name is left."""
        target = self.path(name)
        temporary = f"{target}.{secrets.token_hex(6)}.tmp"
        with self._writing(name):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is, links followed."""
    if entry.is_file():
        return "file"

    return "directory" if entry.is_dir() else "other"


def _write(path: str, data: bytes, durable: bool) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _link(temporary: str, target: str) -> None:
    """Exclusive create of a whole file; without links its name comes first, then its content."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise

        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        os.replace(temporary, target)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `LocalPlace` gives to what it has not finished writing."""
    return TEMPORARY.fullmatch(name.rpartition("/")[2]) is not None


def full_disk(error: Exception, where: str) -> UserError | None:
    """The sentence for an error of a disk that takes no more; None for any other error.

    HDF5 and faiss write the system's number or words into their own errors.
    """
    number, text = getattr(error, "errno", None), str(error)
    if number not in FULL and isinstance(error, OSError | RuntimeError | ValueError):
        told = re.search(r"\berrno = (\d+)", text)
        spoken = (code for code in FULL if os.strerror(code) in text)
        number = int(told[1]) if told else next(spoken, None)

    why = FULL.get(number or 0)
    if not why:
        return None

    return UserError(
        f"{where} cannot be written: {why}; fix it, the same command goes on from there"
    )


def read_file(path: str | bytes, most: int | None = None) -> bytes:
    """A regular file of at most so many bytes; a device or a pipe is never waited for.

    Raises OSError, and ValueError for what is no path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder, no regular file", path)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if most is not None and about.st_size > most:
            why = f"it has {about.st_size:,} bytes; at most {most:,} are read"
            raise OSError(errno.EFBIG, why, path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(about.st_size or UNSIZED)
    finally:
        os.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: str | Path) -> None:
    """Make the names in a local folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
