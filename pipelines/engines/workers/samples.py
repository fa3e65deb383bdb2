"""Files of a job's inputs that the driver sees, and that each worker must see, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pipelines.engines.workers.ticket import Sample
from pipelines.storage.byte_sources import open_bytes, open_table
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.layout import ARCHIVES_NAME, IMAGES_NAME
from schemas.manifest import MANIFEST_NAME
from schemas.plan import Job

MOST_INPUTS = 8  # outputs that a job reads, of which a manifest each is looked at
TABLES = {IMAGES_NAME: "location", ARCHIVES_NAME: "url"}  # of a store's plan


def sample_inputs(job: Job) -> tuple[Sample, ...]:
    """Manifests of what the job reads; of a store's images and archives the first and the last.

    What the driver does not see itself is left out: it is for its unit to say.
    """
    opened = (_opened(url) for url in dict.fromkeys(_urls(job)))
    return tuple(sample for sample in opened if sample is not None)


def _urls(job: Job) -> Iterator[str]:
    settings: dict[str, Any] = job.settings
    stores = settings.get("stores")
    entries = [*job.inputs.values(), *(stores if isinstance(stores, list | tuple) else ())]
    urls = [entry["url"] for entry in entries if isinstance(entry, dict) and "url" in entry]
    for url in dict.fromkeys(urls[:MOST_INPUTS]):
        with contextlib.suppress(UserError, OSError):
            place = open_place(url)
            yield f"{place.url}/{MANIFEST_NAME}" if place.exists(MANIFEST_NAME) else place.url

    for url in (job.output, settings.get("store")):
        if isinstance(url, str) and url:
            place = open_place(url)
            for name, column in TABLES.items():
                yield from _ends(place, name, column)


def _ends(place: Place, name: str, column: str) -> Iterator[str]:
    """The first and the last value of a table's column; none where the table is absent."""
    with contextlib.suppress(UserError, OSError), open_table(place, name) as file:
        for group in dict.fromkeys((0, file.num_row_groups - 1)) if file.num_row_groups else ():
            values = file.read_row_group(group, columns=[column]).column(column)
            yield from (os.fsdecode(values[end].as_py()) for end in (0, -1) if len(values))


def _opened(url: str) -> Sample | None:
    try:
        with contextlib.closing(open_bytes(url)) as source:
            return Sample(url, source.size)
    except (UserError, OSError, ValueError):
        return None
