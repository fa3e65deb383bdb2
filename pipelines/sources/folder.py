"""The images below a folder, or of a glob, by suffix or by content; and what is passed over."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import cache
from urllib.parse import unquote

from pipelines.storage.protocol import Place
from pipelines.storage.remote import RemotePlace
from rrt_core.image_formats import HEAD_BYTES, advice, has_image_suffix, looks_like_image
from schemas.errors import UserError

OTHERS = "others"  # files passed over of which nothing is known that would help
PASSED_OVER = "passed_over"  # how a note of an archive's files begins; their suffix follows

# File systems of the kernel's own: what lies there is no file on any disk, and may have no end.
_SYSTEM = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"),
        *("efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "securityfs", "selinuxfs"),
        *("sysfs", "tracefs"),
    )
)


def names_below(place: Place, pattern: str, passed_over: Counter[str]) -> Iterator[str]:
    """Names of all images below a folder, hidden files and folders left out; of a glob `pattern`
    in it, where there is one, what it matches.

    Where the suffix is of no format, a local file's first bytes decide; of a remote place it would
    be a request a file. `passed_over` counts the others, by suffix or as OTHERS.
    """
    names: Iterable[str]
    if pattern:
        names = place.glob(pattern)
    elif isinstance(place, RemotePlace):
        below = (unquote(name) if place.http else name for name in place.files_below())  # of links
        names = (name for name in below if not name.startswith(".") and "/." not in name)
    else:
        names = (os.path.relpath(path, place.root) for path in _walk(place.root))

    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        other_format = bool(advice(suffix))  # raw photographs begin as a TIFF does
        looked_at = place.local and not has_image_suffix(name) and not other_format
        if has_image_suffix(name) or (looked_at and _begins_as_image(place.path(name))):
            yield name
        else:
            passed_over[suffix if other_format else OTHERS] += 1


def words_for(passed_over: Counter[str]) -> str:
    """What was passed over, and what would help, such as "37 files: 30 .heic (...), 7 others"."""
    total = passed_over.total()
    named = [
        f"{count:,} {suffix}" + (f" ({fix})" if (fix := advice(suffix)) else "")
        for suffix, count in passed_over.most_common()
        if suffix != OTHERS
    ]
    if others := passed_over[OTHERS]:
        named.append(f"{others:,} other{'s' * (others > 1)}")
    return f"{total:,} file{'s' * (total != 1)}: {', '.join(named)}"


def _begins_as_image(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return False
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return regular and bool(looks_like_image(os.pread(descriptor, HEAD_BYTES, 0)))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _walk(root: str) -> Iterator[str]:
    """Files below a folder that are not hidden, links followed: each folder once, by its own path
    where it lies below too.

    Raises UserError for a folder that cannot be listed: a store without its images would look
    complete.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = deque([root]), deque[str]()
    while folders or links:
        # what links lead to comes after all that lies here, so that its name is its own
        folder = (folders or links).popleft()
        try:
            about = os.stat(folder)
            here = (about.st_dev, about.st_ino)
            if here in seen:
                continue
            seen.add(here)
            if about.st_dev in _system_devices():
                if folder == root:
                    raise UserError(f"{folder}: it is a part of the system, no folder of images")
                continue
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be listed: {error.strerror}") from None

        for entry in listed:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to what cannot be looked at
        return False


@cache
def _system_devices() -> frozenset[int]:
    """Devices of the mounted file systems of the kernel; none where that cannot be known."""
    devices = set()
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            place, _, kind = line.partition(b" - ")
            if kind.split()[0].decode() in _SYSTEM:
                major, minor = place.split()[2].split(b":")
                devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)
