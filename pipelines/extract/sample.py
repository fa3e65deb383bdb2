"""A sample of the images that are to be described: listed ones, and the first ones of archives."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.estimate.probe import SEED, Round
from pipelines.sources.archive_images import ArchiveImages
from pipelines.sources.archives import ArchiveDamaged, entries
from pipelines.stores.image_plan import images_file
from schemas.errors import UserError
from schemas.image_list import ImageReference, references_of
from schemas.layout import IMAGES_NAME
from schemas.manifest import sha256_text
from schemas.plan import ListedImages, Unit

SECONDS = 12.0  # of counting, over all archives
AT_LEAST = 0.5  # of one archive
A_TURN = 8  # images that are taken of an archive before the next has its turn


@dataclass
class Counted:
    """Images of each archive, and how that is known. `rate` is bytes read a second."""

    images: list[float]
    whole: int  # archives that were read to their end
    looked: int  # archives that were read at all
    rate: float
    damaged: str = ""


def count_images(archives: Sequence[ArchiveImages], sizes: Sequence[int]) -> Counted:
    """Images (or of a list those that it names) of each archive; `sizes` in bytes, 0 where not
    known.

    Raises UserError where an archive is absent.
    """
    each = max(AT_LEAST, SECONDS / max(1, len(archives)))
    begun, damaged = time.monotonic(), ""
    images, share = np.zeros(len(archives)), np.zeros(len(archives))
    for number in np.random.default_rng(SEED).permutation(len(archives)):
        if share.any() and time.monotonic() - begun > SECONDS:
            break
        images[number], share[number], problem = _count(archives[number], each)
        damaged = damaged or problem

    taken = time.monotonic() - begun
    size, looked = np.array(sizes, float), share > 0
    read = float((share * size).sum())
    by_bytes = (1 - share) * size * images.sum() / max(1.0, read)
    by_number = np.where(looked, 0.0, images[looked].mean())
    images += np.where(size > 0, by_bytes, by_number)
    whole = int((share >= 1).sum())
    return Counted(images.tolist(), whole, int(looked.sum()), read / max(1e-6, taken), damaged)


def _count(archive: ArchiveImages, seconds: float) -> tuple[int, float, str]:
    """(images, share of the bytes read, what is wrong with it)."""
    begun, images, position = time.monotonic(), 0, 0.0
    try:
        for entry in entries(archive.url, lambda _: False):
            if time.monotonic() - begun > seconds and entry.position > position:
                return images, entry.position, ""
            position = entry.position
            images += archive.record_id(entry.name) is not None
    except ArchiveDamaged as error:
        if archive.keep:
            return images + 1, 1.0, f"{archive.url}: {error.reason}; a failed row is for the rest"
        return images, 1.0, str(error)
    return images, 1.0, ""


@dataclass
class Sample:
    """Images in a seeded order, as units of a listing.

    listed    the plan's rows of listed images
    archives  images of archives; the first ones of some are copied into the folder
    share     of the sample, what is from archives
    """

    listed: pa.Table
    archives: Sequence[ArchiveImages]
    share: float
    folder: Path
    copied: list[ImageReference] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)  # of the copies
    taken: int = 0
    parts: int = 0

    def __post_init__(self) -> None:
        chance = np.random.default_rng(SEED)
        self.order = chance.permutation(len(self.listed))
        turns = chance.permutation(len(self.archives))
        self.streams = deque(self._copies(self.archives[turn]) for turn in turns)
        self.folder.mkdir()

    def units(self, number: int, images: int) -> Round:
        """A number of units of so many images, each image once before any comes again; the plan's
        table.

        Raises UserError where no image can be sampled.
        """
        last = self.taken + number * images
        packed = [round(place * self.share) for place in (self.taken, last)]

        references = self._of_archives(*packed) + self._of_listing(
            self.taken - packed[0], last - packed[1]
        )
        if not references:
            raise UserError(
                "the archives hold no image for a probe, so that nothing can be estimated"
            )

        references = [
            references[i] for i in np.random.default_rng(SEED).permutation(len(references))
        ]
        self.taken = last

        units = []
        for start in range(0, len(references), images):
            ids = [reference.record_id for reference in references[start : start + images]]
            digest = sha256_text("\n".join(ids))
            work = ListedImages(self.parts, start, digest, ())
            units.append(Unit(f"part-{self.parts:05}", work, len(ids)))
            self.parts += 1
        return units, {IMAGES_NAME: images_file(references)}

    def _of_listing(self, first: int, last: int) -> list[ImageReference]:
        rows = self.order[np.arange(first, last) % max(1, len(self.order))]
        return list(references_of(self.listed.take(rows)))

    def _of_archives(self, first: int, last: int) -> list[ImageReference]:
        while self.streams and len(self.copied) < last:
            some = list(islice(self.streams[0], A_TURN))
            self.copied += some
            self.streams.rotate(-1)
            if len(some) < A_TURN:
                self.streams.pop()
        return [self.copied[i % len(self.copied)] for i in range(first, last) if self.copied]

    def _copies(self, images: ArchiveImages) -> Iterator[ImageReference]:
        """The archive's images as files in the folder; of a damaged one those before the damage."""
        with contextlib.suppress(ArchiveDamaged):
            for item in images:
                if item.data is not None:
                    path = self.folder / f"{next(self.numbers):05}"
                    path.write_bytes(item.data)
                    yield replace(item.reference, location=os.fsencode(path))
