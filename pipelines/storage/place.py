"""Opens a place by its path or URL: local, or on any file system that fsspec reaches."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.local import LocalPlace
from pipelines.storage.protocol import Place as Place
from pipelines.storage.remote import ABSENT, RemotePlace, TooLarge, file_system
from pipelines.storage.retries import words
from schemas.errors import UserError

URL = re.compile(r"([a-z0-9]+::)*[A-Za-z][A-Za-z0-9+.-]*://")
# fsspec's URL chains; any other "::" belongs to a name
CHAIN = re.compile(r"^[a-z0-9]+::|::[a-z0-9]+://")
# protocol -> the extra that brings its package
LONGEST, LONGEST_STEP = 4096, 255  # bytes of a path and of a name in it, on Linux's disks
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcp", "gcs": "gcp"}


def open_place(url: str) -> Place:
    """The folder at a path or URL. Raises UserError for a protocol that cannot be opened."""
    fs, path = _file_system(url)
    return LocalPlace(path) if isinstance(fs, LocalFileSystem) else RemotePlace(fs, path)


def read_url(url: str, most: int | None = None) -> bytes:
    """The whole file at a remote URL, retried: one that may be bad by itself, such as an image.

    Raises OSError for what is wrong with this file alone (absent, not allowed, more than `most`
    bytes), and UserError where its place does not answer.
    """
    return RemotePlace(*_file_system(url)).read("", (*ABSENT, PermissionError, TooLarge), most)


def free_bytes(url: str) -> int | None:
    """Free bytes on the disk of a local place, which need not exist yet; None of a remote one."""
    place = open_place(url)
    if not place.local:
        return None

    folder = place.root
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)

    return shutil.disk_usage(folder).free


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if "\0" in url:
        raise UserError(f"{url}: a name holds no null character")
    if not URL.match(url):  # a local path, whatever is in its names
        if len(os.fsencode(url)) >= LONGEST or any(
            len(os.fsencode(step)) > LONGEST_STEP for step in url.split("/")
        ):
            raise UserError(f"{url}: the name is longer than a disk takes")
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))

    try:
        if CHAIN.search(url):
            return fsspec.core.url_to_fs(url, use_listings_cache=False)

        kind = fsspec.get_filesystem_class(url.partition("://")[0])
        settings: dict[str, Any] = kind._get_kwargs_from_urls(url)
        # without a cache of listings, in which others' markers would stay unseen
        fs = file_system(kind, {**settings, "use_listings_cache": False})
        return fs, str(kind._strip_protocol(url))
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        fix = "; give RRT_EXTRAS={} to run_pipeline.sh once, or install the package"
        more = fix.format(extra) if extra else ""
        raise UserError(f"{url}: cannot be opened: {error}{more}") from error
    except Exception as error:  # a protocol's own: it may need a server's answer, or more than this
        raise UserError(f"{url}: cannot be opened: {words(error)}") from error
