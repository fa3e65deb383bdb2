"""Units of `extract` over samples of what is to be described: listed images, and the first images of archives."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive_images import ARCHIVES, ARCHIVES_NAME, Listed
from pipelines.commit import Unit
from pipelines.estimate_archives import first_images, write_archive
from pipelines.plan_images import IMAGES_NAME, images_file
from schemas.image_list import references_of
from schemas.manifest import sha256_text
from schemas.shortlist import ROWS_A_PART

SEED = 0


@dataclass
class ListSample:
    """Listed images in a seeded order, `left` being the rows of the table that are still to be described."""

    table: pa.Table
    left: np.ndarray
    taken: int = 0

    def __post_init__(self) -> None:
        self.order = np.random.default_rng(SEED).permutation(self.left)

    def round(self, parts: Sequence[int], images: int) -> tuple[list[Unit], dict[str, bytes]]:
        """A unit of so many images for each part number, each image once before any comes again; the plan's table."""
        rows = self.order.take(range(self.taken, self.taken + len(parts) * images), mode="wrap")
        self.taken += len(rows)
        references = references_of(self.table.take(rows))
        units = []
        for number, part in enumerate(parts):
            start = number * images
            ids = "\n".join(reference.record_id for reference in references[start : start + images])
            payload = {"part": part, "start": start, "ids": sha256_text(ids), "repeated": []}
            units.append(Unit(f"part-{part:05}", payload, images))
        return units, {IMAGES_NAME: images_file(references)}


@dataclass
class ArchiveSample:
    """First images of some archives, as small archives of the same kind in a folder."""

    archives: Sequence[Mapping[str, Any]]  # payloads of the archives' units, in a seeded order
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
            path = self.folder / f"{len(self.made):05}" / str(archive["name"])
            path.parent.mkdir(parents=True)
            path = write_archive(path, members)
            payload = {**archive, "archive": len(self.made), "bytes": path.stat().st_size, "part": part, "stride": 1}
            units.append(Unit(f"archive-{part:05}", {**payload, "rows": ROWS_A_PART}, 0))
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
    """Whole batches that take the wished seconds; at least one, and not above `most` images where that is more."""
    batches = round(wished / max(1e-9, seconds_an_image) / batch)
    return int(np.clip(batches * batch, batch, max(batch, most)))
