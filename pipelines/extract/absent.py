"""What image lists name and no archive held; and what two archives hold under one name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.jobs.markers import marker_name
from pipelines.jobs.plan import planned_units
from pipelines.sources.archive_images import hashes, holds, short_hash
from pipelines.storage.byte_sources import open_table, read_columns
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.image_list import ImageReference, decode_name, make_record_id
from schemas.layout import LISTED_NAME
from schemas.manifest import Marker
from schemas.plan import ArchivedImages


def missing_images(place: Place) -> Iterator[ImageReference]:
    """The listed images of which the archives' parts have no row, each once, in the lists' order.

    Raises UserError where the archives hold none of a list's images, or two archives hold the same.
    """
    held = [hashes(ids) for ids in _ids_of_archives(place)]
    archived = np.sort(np.concatenate([np.zeros(0, np.uint64), *held]))
    _refuse_repeated(place, archived)

    absent: set[int] = set()
    of_use: dict[str, bool] = {}  # source -> whether the archives hold any of its list
    with open_table(place, LISTED_NAME) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                source = row["source"]
                record_id = make_record_id(source, decode_name(row["name"]))
                is_held = holds(archived, record_id)
                of_use[source] = of_use.get(source, False) or is_held
                if not is_held and short_hash(record_id) not in absent:
                    absent.add(short_hash(record_id))
                    yield ImageReference(record_id, source, b"")

    for source, any_held in of_use.items():
        if not any_held:
            raise UserError(
                f"{place.url}: the archives of the source {source!r} hold none of the images that "
                f"the list names; give the right list"
            )


def _ids_of_archives(place: Place) -> Iterator[set[str]]:
    """The record ids of each archive, those of a retry left out."""
    for unit in planned_units(place):
        if not isinstance(unit.work, ArchivedImages) or unit.work.again:
            continue
        marker = Marker.from_bytes(place.read_record(marker_name(unit)))
        names = [entry.name for entry in marker.files] if marker else []
        yield {
            record_id
            for name in names
            if name.startswith("global/")
            for record_id in read_columns(place, name, ["record_id"])["record_id"].to_pylist()
        }


def _refuse_repeated(place: Place, archived: np.ndarray) -> None:
    repeated = archived[1:][archived[1:] == archived[:-1]]
    if not len(repeated):
        return

    seen: set[str] = set()
    for ids in _ids_of_archives(place):
        here = {record_id for record_id in ids if holds(repeated, record_id)}
        if here & seen:
            raise UserError(
                f"{place.url}: the image {min(here & seen)} stands in two archives; without the "
                f"list, images are known apart by their archive's name"
            )
        seen |= here
