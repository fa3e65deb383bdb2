"""Some images of a store whose archives are at hand, for people to look at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from itertools import islice

from pipelines.jobs.plan import planned_units
from pipelines.report.whereabouts import Whereabouts
from pipelines.sources.archive_images import archive_url, open_archive
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.plan import ArchivedImages

MOST_BYTES = 4_000_000_000  # of archives that are read; pictures in further ones are not shown


def archived_pictures(
    store: Store, record_ids: Collection[str], places: Whereabouts
) -> Iterator[tuple[str, bytes]]:
    """(record id, file) of the images that lie in local archives, as far as these are not large.

    places: where the archives may lie now.
    """
    left = MOST_BYTES
    for work, wanted in _by_archive(store, record_ids):
        # One that is damaged, changed or not to be read: the rest is not shown.
        with contextlib.suppress(UserError, OSError):
            url, size = archive_url(store.place, work.archive), work.bytes
            if "://" in url or size > left:
                continue
            at = next(filter(os.path.exists, map(os.fsdecode, places.of(os.fsencode(url)))), None)
            if at is None:
                continue
            left -= size
            for item in islice(open_archive(store.place, work, wanted, url=at), len(wanted)):
                if item.data is not None:
                    yield item.reference.record_id, item.data


def _by_archive(
    store: Store, record_ids: Collection[str]
) -> Iterator[tuple[ArchivedImages, frozenset[str]]]:
    """The archives, each with those of the records that its first parts hold."""
    makers = store.makers(planned_units(store.place)) if record_ids else {}
    archives, wanted = dict[int, ArchivedImages](), dict[int, set[str]]()
    for part in store.parts:
        work = makers[part.number].work if part.number in makers else None
        if isinstance(work, ArchivedImages) and not work.again:
            archives[work.archive] = work
            held = wanted.setdefault(work.archive, set())
            held.update(set(record_ids).intersection(store.read_ids(part).record_ids))

    for row, ids in sorted(wanted.items()):
        if ids:
            yield archives[row], frozenset(ids)
