"""Images in tar and zip archives, read as a stream: a member at a time is in memory."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.sources.member import Broken, Member, Unreadable
from pipelines.sources.tar_archive import tar_members
from pipelines.sources.zip_archive import zip_members
from pipelines.storage.blocks import BlockFile
from pipelines.storage.byte_sources import open_bytes
from pipelines.storage.place import open_place
from pipelines.storage.protocol import is_http
from pipelines.storage.remote import RemotePlace
from rrt_core.image_formats import advice, has_image_suffix
from schemas.errors import UserError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
MOST_NAME = 4096  # bytes, Linux's own bound of a path
MOST_ARCHIVES = 100_000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ArchiveDamaged(UserError):
    """An archive that cannot be read to its end. What came before is right.

    `reason` says what is damaged, from which byte, and how much was read.
    """

    at_once = False

    def __init__(self, url: str, error: Broken, images: int) -> None:
        at = "" if error.byte is None else f" at byte {error.byte:,}"
        self.reason = (
            f"the archive is damaged or cut off{at}: {error}; {images:,} images before were read"
        )
        super().__init__(
            f"{url}: {self.reason}; fetch it again, or take these with --damaged-archives keep"
        )


@dataclass(frozen=True)
class Entry:
    """A member of an archive whose name is an image's."""

    name: bytes  # path in the archive, leading "./" stripped
    position: float  # share of the archive's bytes read so far, 0..1; 0 where the size is unknown
    data: bytes | None  # None where it was not wanted, or refused
    reason: str = ""  # why it was refused, a sentence
    # unsafe_name | link | special | sparse | encrypted | too_large | unreadable
    error_class: str = ""


def is_archive(url: str) -> bool:
    """Whether a path, URL, glob or brace range names archives."""
    return path_of(url).lower().endswith(ARCHIVE_SUFFIXES)


def path_of(url: str) -> str:
    """A URL without what stands behind its path (a signature, for one), as http(s) URLs have it."""
    return re.split(r"[?#]", url)[0] if is_http(url) else url


def find_archives(pattern: str) -> list[str]:
    """The archives that a path, a glob or a range like ``revisitop1m.{1..100}.tar.gz`` names.

    A range counts as it is written, with its leading zeros; a glob's matches are sorted with
    numbers by their value. What http(s) URLs name is not looked at. Raises UserError where
    something is not there.
    """
    if is_http(pattern):
        archives = _expanded(pattern)
    else:
        whole = _file(pattern)
        names = [] if whole else _expanded(pattern)
        archives = [whole] if whole else [url for name in names for url in _archives_at(name)]

    for url in archives:
        if not is_archive(url):
            raise UserError(
                f"{url}: an archive's name must end with one of {', '.join(ARCHIVE_SUFFIXES)}"
            )
    return archives


def _archives_at(url: str) -> list[str]:
    """The file of a name, or what it matches as a glob."""
    one, pattern = _file(url), glob.has_magic(url)
    archives = [one] if one else _matches(url) if pattern else []
    if archives:
        return archives

    what = "no archive is there" if pattern else "there is no such archive"
    if "://" not in url and os.path.isdir(url):
        what = "it is a folder, not an archive"
    elif "{" in url:
        what += "; a range is written as in name.{1..100}.tar"
    raise UserError(f"{url}: {what}")


def _file(url: str) -> str | None:
    """The URL, or absolute path, of a file; None where none is there."""
    place = open_place(url)
    if not isinstance(place, RemotePlace):
        return place.root if os.path.isfile(place.root) else None
    about = place.info()
    return url if about is not None and about.get("type") != "directory" else None


def _matches(url: str) -> list[str]:
    """The archives that a glob matches."""
    place = open_place(url)
    if isinstance(place, RemotePlace):
        paths = place.matches()
    else:
        paths = [name for name in glob.glob(place.root, recursive=True) if os.path.isfile(name)]
    return sorted(filter(is_archive, paths), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [
        (int(piece), piece) if piece.isdecimal() else (-1, piece)
        for piece in re.split(r"(\d+)", name)
    ]


def _expanded(pattern: str) -> list[str]:
    """The names of a pattern with its numeric ranges written out, the last one counting fastest."""
    pieces = _BRACES.split(pattern)  # text, first, last, text, ...
    ranges, total = [], 1
    for first, last in zip(pieces[1::3], pieces[2::3], strict=True):
        low, high = int(first), int(last)
        total *= abs(high - low) + 1
        if total > MOST_ARCHIVES:
            raise UserError(
                f"{pattern}: it names more than {MOST_ARCHIVES:,} archives; give the range in "
                f"smaller ones"
            )

        # As in a shell: a 0 alone is no leading zero.
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        step = 1 if high >= low else -1
        ranges.append([str(number).zfill(width) for number in range(low, high + step, step)])
    plain = pieces[::3]
    return [
        plain[0] + "".join(number + text for number, text in zip(numbers, plain[1:], strict=True))
        for numbers in itertools.product(*ranges)
    ]


def archive_size(url: str) -> int:
    """Bytes of an archive; 0 where a server does not say. Raises UserError where it is absent."""
    with contextlib.closing(open_bytes(url)) as source:
        return source.size or 0


def entries(
    url: str,
    wanted: Callable[[bytes], bool] | None = None,
    *,
    most_bytes: int = 1_000_000_000,
    passed_over: Counter[str] | None = None,
) -> Iterator[Entry]:
    """The images of an archive, in its order; the same name as often as the archive has it.

    Files that are no images by their suffix, hidden ones and folders are passed over, as in a
    folder of images. What is no plain file, lies outside by its name or is larger than `most_bytes`
    is refused: an entry with a reason. `wanted` is called once for each other entry, in order; what
    it does not want is passed over without a copy. `passed_over` counts, by suffix, images of
    formats that are not decoded here; texts and labels beside images count for nothing.

    Raises ArchiveDamaged after the entries before the damage; UserError where the archive is not
    there, changes, or its place does not answer (Unreachable).
    """
    yielded = 0
    with contextlib.closing(BlockFile(open_bytes(url))) as file:
        try:
            for member in _members(url, file):
                entry = _entry(member, wanted, most_bytes)
                if entry is not None:
                    yield entry
                    yielded += 1
                elif passed_over is not None:
                    suffix = os.path.splitext(os.fsdecode(member.name[-9:]))[1].lower()
                    passed_over.update([suffix] if advice(suffix) else [])
        except Broken as error:
            raise ArchiveDamaged(url, error, yielded) from error


def _members(url: str, file: BlockFile) -> Iterator[Member]:
    if not path_of(url).lower().endswith(".zip"):
        return tar_members(file)
    if not file.seekable() or file.source.size is None:
        raise UserError(
            f"{url}: the server sends no byte ranges, which a zip file needs; fetch it to a local "
            f"disk"
        )
    return zip_members(file, file.source.size)


def _entry(member: Member, wanted: Callable[[bytes], bool] | None, most_bytes: int) -> Entry | None:
    """None for what is passed over in silence."""
    if not has_image_suffix(os.fsdecode(member.name)):
        return None
    unsafe = _unsafe(member.name)
    if unsafe:
        return Entry(member.name[:MOST_NAME], member.position, None, unsafe, "unsafe_name")

    pieces = [piece for piece in member.name.split(b"/") if piece not in (b"", b".")]
    if any(piece.startswith(b".") or piece == b"__MACOSX" for piece in pieces):
        return None

    name, data, refusal = b"/".join(pieces), None, member.refusal
    if refusal is None and member.size > most_bytes:
        refusal = ("too_large", f"it has {member.size:,} bytes; at most {most_bytes:,} are read")
    if refusal is None and (wanted is None or wanted(name)):
        try:
            data = member.read()
        except Unreadable as error:
            refusal = ("unreadable", str(error))
    error_class, reason = refusal or ("", "")
    return Entry(name, member.position, data, reason, error_class)


def _unsafe(name: bytes) -> str:
    """Why a name leads outside the archive; "" where it does not."""
    if len(name) > MOST_NAME:
        return f"its name has {len(name):,} bytes; at most {MOST_NAME:,} are read"
    if name.startswith(b"/") or re.match(rb"[A-Za-z]:[/\\]", name):
        return "its name is an absolute path"
    if b".." in re.split(rb"[/\\]", name):
        return "its name leads out of the archive by '..'"
    return "its name has a zero byte" if b"\0" in name else ""
