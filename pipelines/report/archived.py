"""Some images of a store whose archives are at hand, for people to look at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from itertools import islice

from pipelines.jobs.plan import planned_units
from pipelines.sources.archive_images import ArchiveImages, Listed, archive_url
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.plan import ArchivedImages, Unit

MOST_BYTES = (
    4_000_000_000  # of archives that are streamed for it; pictures in further ones are not shown
)


def archived_pictures(store: Store, record_ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(record id, file) of those of the images that lie in local archives, as far as these are not
    too large.
    """
    units = [
        unit
        for unit in planned_units(store.place)
        if isinstance(unit.work, ArchivedImages) and not unit.work.again
    ]
    left = MOST_BYTES
    for unit, wanted in _by_archive(store, units, record_ids):
        with contextlib.suppress(
            UserError, OSError
        ):  # damaged, changed, not to be read: the rest is not shown
            work = unit.of(ArchivedImages)
            url, size = archive_url(store.place, work.archive), work.bytes
            if "://" in url or not os.path.exists(url) or size > left:
                continue
            left -= size
            listed = Listed(store.place, work.source) if work.listed else None
            images = iter(ArchiveImages(url, work.source, work.prefix, listed, wanted))
            for item in islice(images, len(wanted)):
                if item.data is not None:
                    yield item.reference.record_id, item.data


def _by_archive(
    store: Store, units: list[Unit], record_ids: Collection[str]
) -> Iterator[tuple[Unit, frozenset[str]]]:
    """The archives' units, each with those of the records that its parts hold."""
    if not units or not record_ids:
        return
    named, wanted = frozenset(record_ids), dict[int, set[str]]()
    for part in store.parts:
        ordinal = part.number % (len(units) + 1)
        if ordinal < len(units):
            wanted.setdefault(ordinal, set()).update(
                named.intersection(store.read_ids(part).record_ids)
            )
    for ordinal, found in sorted(wanted.items()):
        if found:
            yield units[ordinal], frozenset(found)
