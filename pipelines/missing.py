"""What image lists name and no archive held; and what two archives hold under one name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive_bytes import BlockFile, open_bytes
from pipelines.archive_images import LISTED_NAME, hashes, holds
from pipelines.storage import Place
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, make_record_id
from schemas.manifest import Marker


def missing_images(place: Place) -> Iterator[ImageReference]:
    """The listed images of which the finished parts have no row, in the lists' order.

    Raises UserError where the archives hold none of a list's images, or two archives hold the same.
    """
    found = np.sort(np.concatenate([np.zeros(0, np.uint64), *(hashes(ids) for ids in _ids_of_parts(place))]))
    _refuse_repeated(place, found)
    with contextlib.closing(BlockFile(open_bytes(f"{place.url}/{LISTED_NAME}"))) as stream:
        file = pq.ParquetFile(pa.PythonFile(stream, "r"))
        absent = there = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                record_id = make_record_id(row["source"], decode_name(row["name"]))
                if holds(found, record_id):
                    there += 1
                else:
                    absent += 1
                    yield ImageReference(record_id, row["source"], b"")
    if absent and not there:
        raise UserError(f"{place.url}: the archives hold none of the images that the list names; give the right list")


def _ids_of_parts(place: Place) -> Iterator[list[str]]:
    for name in sorted(place.names("done")):
        marker = Marker.from_bytes(place.read(f"done/{name}"))
        for entry in marker.files if marker else ():
            if entry.name.startswith("global/"):
                table = pq.read_table(io.BytesIO(place.read(entry.name)), columns=["record_id"])
                yield table.column("record_id").to_pylist()


def _refuse_repeated(place: Place, found: np.ndarray) -> None:
    repeated = found[1:][found[1:] == found[:-1]]
    if not len(repeated):
        return
    seen: set[str] = set()
    for ids in _ids_of_parts(place):
        for record_id in ids:
            if holds(repeated, record_id):
                if record_id in seen:
                    raise UserError(
                        f"{place.url}: the image {record_id} stands in two archives; without the list, images are told "
                        "apart by their archive's name"
                    )
                seen.add(record_id)
