"""What image lists name and no archive held; and what two archives hold under one name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.markers import marker_name
from pipelines.jobs.plan import planned_units
from pipelines.sources.archive_images import hashes, holds, short_hash
from pipelines.storage.blocks import BlockFile
from pipelines.storage.byte_sources import open_bytes
from pipelines.storage.protocol import Place
from pipelines.stores.store import part_columns
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, make_record_id
from schemas.layout import LISTED_NAME
from schemas.manifest import Marker


def missing_images(place: Place) -> Iterator[ImageReference]:
    """The listed images of which the archives' parts have no row, each once, in the lists' order.

    Raises UserError where the archives hold none of a list's images, or two archives hold the same.
    """
    found = np.sort(
        np.concatenate([np.zeros(0, np.uint64), *(hashes(ids) for ids in _ids_of_archives(place))])
    )
    _refuse_repeated(place, found)
    absent: set[int] = set()
    listed: dict[str, bool] = {}  # source -> whether the archives hold any of its list
    with contextlib.closing(BlockFile(open_bytes(f"{place.url}/{LISTED_NAME}"))) as stream:
        for batch in pq.ParquetFile(pa.PythonFile(stream, "r")).iter_batches():
            for row in batch.to_pylist():
                record_id = make_record_id(row["source"], decode_name(row["name"]))
                there = holds(found, record_id)
                listed[row["source"]] = listed.get(row["source"], False) or there
                if not there and short_hash(record_id) not in absent:
                    absent.add(short_hash(record_id))
                    yield ImageReference(record_id, row["source"], b"")
    for source, held in listed.items():
        if not held:
            raise UserError(
                f"{place.url}: the archives of the source {source!r} hold none of the images that "
                f"the list names; give "
                "the right list"
            )


def _ids_of_archives(place: Place) -> Iterator[set[str]]:
    """The record ids of each archive, those of a retry left out."""
    for unit in planned_units(place):
        if "archive" not in unit.payload or unit.payload.get("again"):
            continue
        marker = Marker.from_bytes(place.read(marker_name(unit)))
        ids: set[str] = set()
        for entry in marker.files if marker else ():
            if entry.name.startswith("global/"):
                ids.update(
                    part_columns(place, entry.name, ["record_id"]).column("record_id").to_pylist()
                )
        yield ids


def _refuse_repeated(place: Place, found: np.ndarray) -> None:
    repeated = found[1:][found[1:] == found[:-1]]
    if not len(repeated):
        return
    seen: set[str] = set()
    for ids in _ids_of_archives(place):
        here = {record_id for record_id in ids if holds(repeated, record_id)}
        if here & seen:
            raise UserError(
                f"{place.url}: the image {min(here & seen)} stands in two archives; without the "
                f"list, images are told "
                "apart by their archive's name"
            )
        seen |= here
