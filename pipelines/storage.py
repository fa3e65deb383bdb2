"""A folder anywhere that fsspec reaches, with the few operations that the commit protocol needs.

Local: write to a temporary name, fsync, rename, fsync of the folder; exclusive create by link. Remote: whole
objects by `pipe_file` and `put_file` only (an exception inside `open("wb")` on S3 still commits the truncated
object), exclusive create by the store's own precondition, and no listings cache (others' markers would stay
unseen).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import UserError


def open_file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a URL. Raises UserError for an unknown protocol or a missing package."""
    try:
        if "://" not in url:
            return fsspec.core.url_to_fs(os.path.abspath(os.path.expanduser(url)))
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: cannot be opened: {error}") from error


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


class Place:
    """A folder by path or URL. Names are relative, with forward slashes."""

    def __init__(self, url: str) -> None:
        self.fs, root = open_file_system(url)
        self.root = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.url = self.root if self.local else str(self.fs.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        """The path of a name on the place's own file system."""
        return f"{self.root}/{name}" if name else self.root

    def below(self, name: str) -> Place:
        """A folder in this one."""
        return Place(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether a file (or, locally, a folder) is there."""
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is absent."""
        try:
            return int(self.fs.size(self.path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return bytes(self.fs.cat_file(self.path(name)))

    def read_ranges(self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """Byte ranges of files, in order; concurrently where the file system can."""
        if not self.local:
            paths = [self.path(name) for name in names]
            return [bytes(data) for data in self.fs.cat_ranges(paths, list(starts), list(stops))]
        pieces = []
        with contextlib.ExitStack() as stack:
            opened: dict[str, int] = {}
            for name, start, stop in zip(names, starts, stops, strict=True):
                if name not in opened:
                    descriptor = os.open(self.path(name), os.O_RDONLY)
                    stack.callback(os.close, descriptor)
                    opened[name] = descriptor
                pieces.append(os.pread(opened[name], stop - start, start))
        return pieces

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty where the folder is absent."""
        if self.local:
            try:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []
        try:
            listed = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in listed if entry["type"] == "file")

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a whole file at once."""
        if not self.local:
            self.fs.pipe_file(self.path(name), data)
            return
        with self._temporary(name) as temporary:
            os.replace(self._write_local(temporary, data), self.path(name))
        fsync_folder(os.path.dirname(self.path(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless it exists; False where it does. The first of many wins."""
        if not self.local:
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            return True
        with self._temporary(name) as temporary:
            self._write_local(temporary, data)
            try:
                os.link(temporary, self.path(name))
            except FileExistsError:
                return False
        fsync_folder(os.path.dirname(self.path(name)))
        return True

    def put(self, local_file: str, name: str) -> None:
        """Bring a finished local file to its name; locally it is moved (it must lie on the same disk)."""
        if not self.local:
            self.fs.put_file(local_file, self.path(name))
            os.remove(local_file)
            return
        with open(local_file, "rb") as file:
            os.fsync(file.fileno())
        target = self.path(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(local_file, target)
        fsync_folder(os.path.dirname(target))

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where it is absent."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def remove_all(self) -> None:
        """Remove the folder and all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                shutil.rmtree(self.root)
            else:
                self.fs.rm(self.root, recursive=True)

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[str]:
        target = self.path(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.{secrets.token_hex(6)}.tmp"
        try:
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)

    @staticmethod
    def _write_local(path: str, data: bytes) -> str:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return path
