"""The rotation of a store's binary local descriptors: learned once, when the store is planned."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.archive_images import ARCHIVES_NAME, ArchiveImages
from pipelines.describe import Describer, Item
from pipelines.describe_units import ROTATION_NAME
from pipelines.driver import RunSettings
from pipelines.plan_images import IMAGES_NAME, Planned
from pipelines.processes import limit_threads
from pipelines.storage import Place
from rrt_core.rotation import learn_rotation
from schemas.image_list import references_of

SAMPLE = 64  # images, evenly spaced in the listing


def make_rotation(
    place: Place, planned: Planned, files: Mapping[str, bytes], options: dict[str, Any], settings: RunSettings
) -> bytes:
    """The rotation of the store's plan, or one learned from a sample of its images, as float32 bytes [W, W]."""
    describer = Describer({**options, "locals": "all"})
    dimension = describer.extractor.local_dim
    if not settings.overwrite and not files:
        try:
            return place.read(ROTATION_NAME)
        except FileNotFoundError:
            pass
    limit_threads(settings.threads_per_worker)
    items = _sample(place, planned, files)
    found = [describer.decoded(item) for item in items]
    descriptions = describer.describe(items, found)
    rows = [one.description.descriptors for one in descriptions if one.description is not None]
    samples = np.concatenate([np.zeros((0, dimension), np.float32), *rows])
    return np.ascontiguousarray(learn_rotation(samples), "<f4").tobytes()


def _sample(place: Place, planned: Planned, files: Mapping[str, bytes]) -> list[Item]:
    if planned.ids:
        data = files.get(IMAGES_NAME) or place.read(IMAGES_NAME)
        table = pq.read_table(io.BytesIO(data))
        chosen = np.unique(np.linspace(0, len(table) - 1, SAMPLE).astype(int))
        return [Item(reference) for reference in references_of(table.take(chosen))]
    data = files.get(ARCHIVES_NAME) or place.read(ARCHIVES_NAME)
    url = pq.read_table(io.BytesIO(data)).column("url")[0].as_py()
    return list(islice(ArchiveImages(url, "sample", ""), SAMPLE))
