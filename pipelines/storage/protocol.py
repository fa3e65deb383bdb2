"""What a folder anywhere offers: the few operations that the commit protocol needs."""

from __future__ import annotations

import contextlib
import errno
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple

from schemas.errors import UserError
from schemas.inside import MOST_BYTES
from schemas.layout import BESIDE_NAME, PLAN_FOLDER, SWAP_NAME
from schemas.manifest import MANIFEST_NAME


def is_http(url: str) -> bool:
    """Whether a URL is a web server's, which is read and never written."""
    return url.lower().startswith(("http://", "https://"))


def refuse_unwritable(place: Place) -> None:
    """Raise UserError where no output can be made at a place, by what it is called."""
    if is_http(place.url):
        raise UserError(
            f"{place.url}: nothing can be written there; name a folder, or a place on S3 or GCS"
        )
    try:
        place.url.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place.url!r}: its name is not UTF-8, which no output can record; give another place"
        ) from None


class Entry(NamedTuple):
    """What lies directly in a folder: its name there, and "file", "directory" or "other"."""

    name: str
    kind: str


class Place(ABC):
    """A folder by path or URL. Names are relative, with forward slashes; "" is the folder itself.

    Where it is remote, each operation raises Unreachable when the place failed in all tries or
    refuses. What writes raises UserError where it cannot.
    """

    local: ClassVar[bool]
    root: str  # on the place's own file system
    url: str

    @property
    def http(self) -> bool:
        """Whether a folder is a page of links, if the server makes one."""
        return is_http(self.url)

    def path(self, name: str) -> str:
        """The path of a name on the place's own file system."""
        return f"{self.root}/{name}" if name else self.root

    @abstractmethod
    def below(self, name: str) -> Place:
        """A folder in this one."""

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """Whether there is a file (or, locally, a folder) of that name."""

    def is_link(self, name: str = "") -> bool:
        """Whether a name is a link to a file or folder elsewhere; links are a local disk's."""
        return False

    def writable(self) -> bool:
        """Whether anything can be written in the folder, as far as that can be known."""
        return True

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether the place itself is a folder; a remote one is where files lie below it."""

    @abstractmethod
    def entries(self, folder: str) -> list[Entry]:
        """What lies directly in a folder, in no order; empty where the folder is absent."""

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty where the folder is absent."""
        return sorted(entry.name for entry in self.entries(folder) if entry.kind == "file")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; empty where the folder is absent."""
        return sorted(entry.name for entry in self.entries(folder) if entry.kind == "directory")

    def has_files(self, besides: Collection[str] = ()) -> bool:
        """Whether the folder holds anything but hidden files and the entries `besides`."""
        return any(
            not entry.name.startswith(".") and entry.name not in besides
            for entry in self.entries("")
        )

    @abstractmethod
    def glob(self, pattern: str) -> list[str]:
        """Names of the files below the folder that a glob matches, as fsspec understands it."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is absent."""

    @abstractmethod
    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Bytes of each file, or None; elsewhere than on a local disk by one listing a folder."""

    @abstractmethod
    def read(self, name: str, *, most: int | None = None) -> bytes:
        """The whole file. Raises FileNotFoundError, and OSError above `most` bytes."""

    def read_record(self, name: str) -> bytes:
        """A file of JSON, which is small.

        Raises FileNotFoundError, and ValueError where it is too large, or cannot be read for what
        it is: a pipe, a link to itself.
        """
        try:
            return self.read(name, most=MOST_BYTES)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            raise ValueError(f"it cannot be read: {error.strerror or error}") from error

    @abstractmethod
    def read_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        """Byte ranges of files, in order; concurrently where the file system can."""

    @abstractmethod
    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write or replace a whole file. What need not outlive a power cut is not `durable`."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless it exists; False where it does. The first of many wins.

        On a remote place also True where exactly these bytes stand there: perhaps they are our own.
        """

    @abstractmethod
    def put(self, local_file: str, name: str) -> None:
        """Bring a finished local file to its name, from the same disk where the place is local."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give a file another name, over what stands there; nothing happens where it is absent."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where it is absent."""

    @abstractmethod
    def remove_all(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it. Raises where that fails."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a folder of leftovers, as far as it can be removed."""

    @abstractmethod
    def remove_empty_folder(self, name: str) -> None:
        """Remove a folder where it holds nothing; elsewhere than on a disk there are none."""

    def empty(self) -> None:
        """Remove all that is in the folder; the folder stays.

        The manifest goes first, so that nobody takes what is left for whole where this is killed,
        and plan/plan.json, or what says that it is made beside another output, last: by it the
        next command knows that the rest is its own to remove.
        """
        order = {MANIFEST_NAME: 0, PLAN_FOLDER: 2, BESIDE_NAME: 3, SWAP_NAME: 4}
        names = [entry.name for entry in self.entries("")]
        for name in sorted(names, key=lambda name: (order.get(name, 1), name)):
            own = name == PLAN_FOLDER and not self.is_link(name)
            for planned in self.names(name) if own else ():
                if planned != "plan.json":
                    self.remove(f"{name}/{planned}")

            self.remove_all(name)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder for this process while the block runs (local folders only, by flock).

        Raises UserError where another process holds it. Elsewhere, and where the disk knows no
        locks, two commands do the same work twice: the commit protocol keeps the result right.
        """
        return contextlib.nullcontext()
