"""Archives that tests make: of any kind, of any members."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.sources.archives import ArchiveDamaged, Entry, entries

CHANCE = random.Random(5)
FILES = {
    f"jpg/{n % 3}/{n:03}.jpg": CHANCE.randbytes(CHANCE.choice((0, 1, 511, 512, 513, 40_000)))
    for n in range(40)
}
SUFFIXES = ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip")


def info(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    """A member's header."""
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar(*members: tuple[tarfile.TarInfo, bytes], **settings: int) -> bytes:
    """A tar file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **settings) as archive:  # type: ignore[call-overload]
        for about, data in members:
            archive.addfile(about, io.BytesIO(data))
    return made.getvalue()


def packed(files: dict[str, bytes], suffix: str) -> bytes:
    """An archive of files, of the kind that its suffix says."""
    if suffix == "zip":
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return made.getvalue()
    plain = tar(*((info(name, len(data)), data) for name, data in files.items()))
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "tgz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "tar": bytes,
    }
    return pack[suffix.rpartition(".")[2]](plain)


def damaged(path: Path) -> tuple[list[Entry], str]:
    """The entries before the damage, and what is said of it."""
    found: list[Entry] = []
    with pytest.raises(ArchiveDamaged) as told:
        found.extend(entries(str(path)))
    return found, str(told.value)
