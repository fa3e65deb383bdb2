"""A folder anywhere that fsspec reaches, with the few operations that the commit protocol needs.

Local: write to a temporary name, fsync, rename, fsync of the folder; exclusive create by link.
    Remote
(pipelines/storage/remote.py): whole objects only, each operation retried, exclusive create by the
store's own precondition, and no listings cache (others' markers would stay unseen).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.local import _FULL, _NO_LINKS, _REFUSED, fsync_folder, full_disk
from pipelines.storage.remote import ABSENT, RemoteFiles, TooLarge, file_system
from schemas.errors import UserError
from schemas.layout import PLAN_FOLDER
from schemas.manifest import MANIFEST_NAME

_TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.tmp", re.DOTALL)  # what Place writes before it renames
_URL = re.compile(r"([a-z0-9]+::)*[A-Za-z][A-Za-z0-9+.-]*://")
_CHAIN = re.compile(
    r"^[a-z0-9]+::|::[a-z0-9]+://"
)  # fsspec's URL chains; any other "::" belongs to a name
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcp",
    "gcs": "gcp",
}  # protocol -> the extra that brings its package


def is_http(url: str) -> bool:
    """Whether a URL is a web server's, which is read and never written."""
    return url.startswith(("http://", "https://"))


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `Place` gives to what it has not finished writing."""
    return _TEMPORARY.fullmatch(name.rpartition("/")[2]) is not None


def open_file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a URL.

    Raises UserError for an unknown protocol or a missing package.
    """
    if not _URL.match(url):  # a local path, whatever is in its names
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    try:
        if _CHAIN.search(url):
            return fsspec.core.url_to_fs(url, use_listings_cache=False)
        kind = fsspec.get_filesystem_class(url.partition("://")[0])
        settings = {**kind._get_kwargs_from_urls(url), "use_listings_cache": False}
        return file_system(kind, settings), str(kind._strip_protocol(url))
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        mend = (
            f"; give RRT_EXTRAS={extra} to run_pipeline.sh once, or install the package"
            if extra
            else ""
        )
        raise UserError(f"{url}: cannot be opened: {error}{mend}") from error
    except ValueError as error:
        raise UserError(f"{url}: cannot be opened: {error}") from error


def read_url(url: str, most: int | None = None) -> bytes:
    """The whole file at a remote URL, retried: one that may be bad by itself, such as an image.

    Raises OSError for what is wrong with this file alone (absent, not allowed, more than `most`
    bytes), and UserError where its place does not answer.
    """
    fs, path = open_file_system(url)
    return RemoteFiles(fs).read(path, (*ABSENT, PermissionError, TooLarge), most)


def _when_emptied(name: str) -> tuple[int, str]:
    """Order in which the entries of a folder are removed."""
    return {MANIFEST_NAME: 0, PLAN_FOLDER: 2}.get(name, 1), name


class Place:
    """A folder by path or URL. Names are relative, with forward slashes.

    Where it is remote, each operation raises UserError (retrying.Unreachable) when the place failed
    in all tries or refuses.
    """

    def __init__(self, url: str) -> None:
        self.fs, root = open_file_system(url)
        self.root = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.remote = RemoteFiles(self.fs)  # not used where the place is local
        self.url = self.root if self.local else str(self.fs.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        """The path of a name on the place's own file system."""
        return f"{self.root}/{name}" if name else self.root

    def below(self, name: str) -> Place:
        """A folder in this one."""
        return Place(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether a file (or, locally, a folder) is there."""
        return (
            os.path.exists(self.path(name))
            if self.local
            else self.remote.info(self.path(name)) is not None
        )

    def is_folder(self) -> bool:
        """Whether the place itself is a folder; a remote one is where files lie below it."""
        if self.local:
            return os.path.isdir(self.root)
        told = self.remote.info(self.root)
        if (
            told is not None and told["type"] != "directory" and self.http
        ):  # which knows pages alone
            return bool(self.remote.listed(self.root))
        return told is not None and told["type"] == "directory"

    @property
    def http(self) -> bool:
        """Whether it is read over http(s), where a folder is a page of links, if the server makes
        one.
        """
        return is_http(self.url)

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is absent."""
        if not self.local:
            told = self.remote.info(self.path(name))
            return None if told is None or told["size"] is None else int(told["size"])
        try:
            return os.stat(self.path(name)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Bytes of each file, or None; elsewhere than on a local disk by one listing a folder."""
        if self.local:
            return [self.size(name) for name in names]
        listed: dict[str, int] = {}
        for folder in {name.rpartition("/")[0] for name in names}:
            for entry in self.remote.listed(self.path(folder)):
                listed[entry["name"].strip("/")] = entry["size"]
        return [listed.get(self.path(name).strip("/")) for name in names]

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return (
            Path(self.path(name)).read_bytes() if self.local else self.remote.read(self.path(name))
        )

    def read_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        """Byte ranges of files, in order; concurrently where the file system can."""
        if not self.local:
            return self.remote.ranges([self.path(name) for name in names], starts, stops)
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
        files = [
            entry["name"]
            for entry in self.remote.listed(self.path(folder))
            if entry["type"] == "file"
        ]
        return sorted(
            name.rpartition("/")[2] for name in files if not name.endswith("/")
        )  # "x/" stands for a folder

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; empty where the folder is absent."""
        if self.local:
            try:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []
        listed = self.remote.listed(self.path(folder))
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2]
            for entry in listed
            if entry["type"] == "directory"
        )

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write or replace a whole file at once. What need not outlive a power cut is not
        `durable`.

        Raises UserError where the place cannot be written; so do `create` and `put`.
        """
        if not self.local:
            self.remote.write(self.path(name), data)
            return
        with self._temporary(name) as temporary:
            self._write_local(temporary, data, durable)
            os.replace(temporary, self.path(name))
            if durable:
                fsync_folder(os.path.dirname(self.path(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless it exists; False where it does. The first of many wins.

        On a remote place also True where exactly these bytes stand there: perhaps they are our own.
        """
        if not self.local:
            return self.remote.create(self.path(name), data)
        with self._temporary(name) as temporary:
            self._write_local(temporary, data, durable=True)
            try:
                self._link(temporary, self.path(name))
            except FileExistsError:
                return False
            fsync_folder(os.path.dirname(self.path(name)))
        return True

    def put(self, local_file: str, name: str) -> None:
        """Bring a finished local file to its name; locally it is moved (it must lie on the same
        disk).
        """
        if not self.local:
            self.remote.put(local_file, self.path(name))
            os.remove(local_file)
            return
        target = self.path(name)
        with self._writing(name):
            with open(local_file, "rb") as file:
                os.fsync(file.fileno())
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(local_file, target)
            fsync_folder(os.path.dirname(target))

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where it is absent."""
        if not self.local:
            self.remote.remove(self.path(name))
            return
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder of leftovers, as far as it can be removed."""
        if self.local:
            shutil.rmtree(self.path(name), ignore_errors=True)
        elif name:
            with contextlib.suppress(OSError, UserError):
                self.remote.remove_below(self.path(name))

    def empty(self) -> None:
        """Remove all that is in the folder; the folder stays.

        The manifest goes first, so that nobody takes what is left for whole where this is killed,
        and plan/plan.json
        last: by it the next command knows that the rest is its own to remove.
        """
        if not self.local:
            paths = [entry["name"].strip("/") for entry in self.remote.listed(self.root)]
            below = [
                path.rpartition("/")[2] for path in paths if path != self.root.strip("/")
            ]  # not its own marker
            for name in sorted(below, key=_when_emptied):
                self._empty_plan(name)
                self.remote.remove_below(self.path(name))
            self.remote.remove_below(self.root)
            return
        with self._writing(""), contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.root), key=_when_emptied):
                self._empty_plan(name)
                path = self.path(name)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.remove(path)

    def _empty_plan(self, folder: str) -> None:
        for name in self.names(folder) if folder == PLAN_FOLDER else ():
            if name != "plan.json":
                self.remove(f"{folder}/{name}")

    def has_files(self, besides: str = "") -> bool:
        """Whether the folder holds anything but hidden files and the entry `besides`."""
        if self.local:
            try:
                paths = os.listdir(self.root)
            except (FileNotFoundError, NotADirectoryError):
                return False
        else:
            paths = [entry["name"] for entry in self.remote.listed(self.root)]
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return any(not name.startswith(".") and name != besides for name in names)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process while the block runs (local folders only, by flock).

        Raises UserError where another process holds it. Elsewhere, and where the disk knows no
        locks, two commands do the same work twice: the commit protocol keeps the result right.
        """
        if not self.local:
            yield
            return
        try:
            os.makedirs(self.root, exist_ok=True)
        except OSError as error:
            why = _FULL.get(error.errno or 0) or _REFUSED.get(error.errno or 0) or error.strerror
            raise UserError(f"{self.root}: the folder cannot be made: {why}") from error
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise UserError(
                f"{self.url} is being made by another command; wait for its end, or give another "
                f"place"
            ) from None
        except OSError:
            pass  # no locks on this disk
        try:
            yield
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Errors of the disk as UserError."""
        try:
            yield
        except OSError as error:
            refused = full_disk(error, self.path(name))
            if refused is None and error.errno in _REFUSED:
                refused = UserError(f"{self.path(name)} cannot be written: {_REFUSED[error.errno]}")
            if refused is None:
                raise
            raise refused from error

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[str]:
        """A temporary name beside the file; no file is left there."""
        target = self.path(name)
        temporary = f"{target}.{secrets.token_hex(6)}.tmp"
        with self._writing(name):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                yield temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)

    @staticmethod
    def _link(temporary: str, target: str) -> None:
        """Exclusive create of a whole file; on disks without links its name comes first, then its
        content.
        """
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            os.replace(temporary, target)

    @staticmethod
    def _write_local(path: str, data: bytes, durable: bool) -> None:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())


def open_place(url: str) -> Place:
    """The folder at a path or URL."""
    return Place(url)


def free_bytes(url: str) -> int | None:
    """Free bytes on the disk of a local place, which need not be there yet."""
    place = Place(url)
    if not place.local:
        return None
    folder = Path(place.root)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
