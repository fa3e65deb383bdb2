"""Units of `extract` over samples of what is to be described: listed images, and the first images
of archives.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import time
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.archive_images import Listed
from pipelines.sources.archives import ArchiveDamaged, Entry, entries
from pipelines.stores.image_plan import images_file
from schemas.image_list import encode_name, references_of
from schemas.layout import ARCHIVES, ARCHIVES_NAME, IMAGES_NAME, ROWS_A_PART
from schemas.manifest import sha256_text
from schemas.plan import ArchivedImages, ListedImages, Unit

SECONDS = 12.0  # of counting, over all archives
AT_LEAST = 0.5  # of one archive
SEED = 0


@dataclass
class Counted:
    """Images of each archive, and how that is known. `rate` is bytes read a second."""

    images: list[float]
    whole: int  # archives that were read to their end
    looked: int  # archives that were read at all
    rate: float
    damaged: str = ""


def count_images(
    urls: Sequence[str], sizes: Sequence[int], listed: Sequence[Listed | None]
) -> Counted:
    """Images (or of a list those that it names) of each archive; `sizes` in bytes, 0 where not
    known.

    Raises UserError where an archive is not there.
    """
    order = np.random.default_rng(SEED).permutation(len(urls))
    each = max(AT_LEAST, SECONDS / max(1, len(urls)))
    begun, images, share = time.monotonic(), np.zeros(len(urls)), np.zeros(len(urls))
    told = Counted([], 0, 0, 0.0)
    for place in order:
        if told.looked and time.monotonic() - begun > SECONDS:
            break
        count, part, problem = _count(urls[place], each, listed[place])
        images[place], share[place] = count, part
        told.damaged = told.damaged or problem
        told.looked += 1
        told.whole += part >= 1.0
    read = share * np.array(sizes, float)
    told.rate = float(read.sum() / max(1e-6, time.monotonic() - begun))
    partial = share < 1.0
    density = images[share > 0].sum() / max(1.0, read.sum())
    mean = images[share > 0].mean() if (share > 0).any() else 0.0
    sized = np.array(sizes, float) > 0
    rest = np.where(
        sized, (1 - share) * np.array(sizes, float) * density, np.where(share > 0, 0.0, mean)
    )
    told.images = [float(value) for value in images + np.where(partial, rest, 0.0)]
    return told


def _count(url: str, seconds: float, listed: Listed | None) -> tuple[int, float, str]:
    """(images, share of the bytes read, what is wrong with it)."""
    begun, count, position = time.monotonic(), 0, 0.0
    try:
        with contextlib.closing(_stream(url, lambda _: False)) as stream:
            for entry in stream:
                if time.monotonic() - begun > seconds and entry.position > position:
                    return count, entry.position, ""
                position = entry.position
                count += wanted(entry, listed)
    except ArchiveDamaged as error:
        return count, 1.0, str(error)
    return count, 1.0, ""


def _stream(url: str, keep: Callable[[bytes], bool] | None) -> Generator[Entry, None, None]:
    yield from entries(url, keep)


def wanted(entry: Entry, listed: Listed | None) -> bool:
    """Whether an entry is an input."""
    return listed is None or listed.name(encode_name(entry.name)) is not None


def first_images(url: str, count: int, listed: Listed | None) -> list[tuple[bytes, bytes]]:
    """(path, bytes) of an archive's first images that are inputs; fewer where it holds no more or
    is damaged.
    """
    names: set[bytes] = set()
    found: list[tuple[bytes, bytes]] = []
    try:
        with contextlib.closing(_stream(url, None)) as stream:
            for entry in stream:
                if entry.data is not None and entry.name not in names and wanted(entry, listed):
                    names.add(entry.name)
                    found.append((entry.name, entry.data))
                if len(found) == count:
                    break
    except ArchiveDamaged:
        pass
    return found


def write_archive(path: Path, members: Sequence[tuple[bytes, bytes]]) -> Path:
    """An archive of the kind that its name tells, of these members; gives where it lies.

    A zip file whose names are no UTF-8 becomes a tar, which holds any bytes; the names stay what a
    list says.
    """
    if path.name.lower().endswith(".zip"):
        if not all(_is_text(name) for name, _ in members):
            return write_archive(path.with_name(f"{path.name}.tar"), members)
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in members:
                packed.writestr(name.decode(), data)
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name.decode(errors="surrogateescape"))
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    pack = packers.get(path.name.lower().rpartition(".")[2].replace("tgz", "gz"), bytes)
    path.write_bytes(pack(buffer.getvalue()))
    return path


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class ListSample:
    """Listed images in a seeded order, `left` being the rows of the table that are still to be
    described.
    """

    table: pa.Table
    left: np.ndarray
    taken: int = 0

    def __post_init__(self) -> None:
        self.order = np.random.default_rng(SEED).permutation(self.left)

    def round(self, parts: Sequence[int], images: int) -> tuple[list[Unit], dict[str, bytes]]:
        """A unit of so many images for each part number, each image once before any comes again;
        the plan's table.
        """
        rows = self.order.take(range(self.taken, self.taken + len(parts) * images), mode="wrap")
        self.taken += len(rows)
        references = references_of(self.table.take(rows))
        units = []
        for number, part in enumerate(parts):
            start = number * images
            ids = "\n".join(reference.record_id for reference in references[start : start + images])
            work = ListedImages(part, start, sha256_text(ids), ())
            units.append(Unit(f"part-{part:05}", work, images))
        return units, {IMAGES_NAME: images_file(references)}


@dataclass
class ArchiveSample:
    """First images of some archives, as small archives of the same kind in a folder."""

    archives: Sequence[ArchivedImages]  # in a seeded order
    urls: Sequence[str]
    listed: Sequence[Listed | None]
    folder: Path
    taken: dict[int, int] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    names: int = 0  # archives that a unit was made of

    def round(self, parts: Sequence[int], images: int) -> tuple[list[Unit], dict[str, bytes]]:
        """A unit of at most so many images for each part number; the plan's table of archives."""
        units = []
        for part in parts:
            ordinal = self.names % len(self.archives)
            self.names += 1
            members = self._members(ordinal, images)
            archive = self.archives[ordinal]
            path = self.folder / f"{len(self.made):05}" / archive.name
            path.parent.mkdir(parents=True)
            path = write_archive(path, members)
            work = msgspec.structs.replace(
                archive,
                archive=len(self.made),
                bytes=path.stat().st_size,
                part=part,
                stride=1,
                rows=ROWS_A_PART,
            )
            units.append(Unit(f"archive-{part:05}", work, 0))
            self.made.append(str(path))
        buffer = io.BytesIO()
        pq.write_table(pa.table({"url": self.made}, schema=ARCHIVES), buffer)
        return units, {ARCHIVES_NAME: buffer.getvalue()}

    def _members(self, ordinal: int, images: int) -> list[tuple[bytes, bytes]]:
        """The next images of an archive; from its first on where it holds no more."""
        begin = self.taken.get(ordinal, 0)
        there = first_images(self.urls[ordinal], begin + images, self.listed[ordinal])
        fresh = list(islice(there, begin, None)) or there[:images]
        self.taken[ordinal] = begin + images
        return fresh


def images_a_unit(batch: int, seconds_an_image: float, wished: float, most: int) -> int:
    """Whole batches that take the wished seconds; at least one, and not above `most` images where
    that is more.
    """
    batches = round(wished / max(1e-9, seconds_an_image) / batch)
    return int(np.clip(batches * batch, batch, max(batch, most)))
