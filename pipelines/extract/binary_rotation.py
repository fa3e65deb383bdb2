"""The rotation of a store's binary local descriptors: learned once, when the store is planned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.extract.batches import isolated
from pipelines.extract.isolated import DescribingFailed
from pipelines.sources.archive_images import ArchiveImages
from pipelines.sources.item import Item
from pipelines.storage.protocol import Place
from pipelines.storage.tables import parse_table
from pipelines.stores.image_plan import Planned
from rrt_core.binary import learn_rotation
from rrt_core.extractors import create
from schemas.errors import UserError
from schemas.image_list import references_of
from schemas.layout import ARCHIVES_NAME, IMAGES_NAME, PLAN_NAME, ROTATION_NAME

SAMPLE = 64  # images, evenly spaced in the listing


def make_rotation(
    place: Place,
    planned: Planned,
    files: Mapping[str, bytes],
    options: dict[str, Any],
    settings: RunSettings,
) -> tuple[bytes, bool]:
    """The rotation of the store's plan, or one learned from a sample of its images, and if new.

    It is float32 [W, W] as bytes. The sample is described one by one in a child process: an image
    that kills it does not kill the driver. Raises UserError where the extractor fails on all of it.
    """
    dimension = create(options["extractor"], **options["extractor_option"]).local_dim
    # Without a plan another extractor may have left it.
    if not settings.overwrite and place.exists(PLAN_NAME):
        with contextlib.suppress(FileNotFoundError):
            before = place.read(ROTATION_NAME)
            if len(before) == 4 * dimension * dimension:
                return before, False

    items = _sample(place, planned, files)
    described = isolated({**options, "locals": "all"}, settings.threads_per_worker, items)
    try:
        rows = [one.description.descriptors for one in described if one.description is not None]
    except (DescribingFailed, RuntimeError) as error:
        raise UserError(
            f"extract: --local-dtype binary learns from a sample of the images, and the extractor "
            f"{options['extractor']} fails on it: {error}; fix the extractor or its options"
        ) from error

    samples = np.concatenate([np.zeros((0, dimension), np.float32), *rows])
    return np.ascontiguousarray(learn_rotation(samples), "<f4").tobytes(), True


def _sample(place: Place, planned: Planned, files: Mapping[str, bytes]) -> Iterable[Item]:
    name = IMAGES_NAME if planned.ids else ARCHIVES_NAME
    table = parse_table(files.get(name) or place.read(name), f"{place.url}/{name}")
    if planned.ids:
        chosen = np.unique(np.linspace(0, len(table) - 1, SAMPLE).astype(int))
        return [Item(reference) for reference in references_of(table.take(chosen))]

    return islice(ArchiveImages(table.column("url")[0].as_py(), "sample", "", keep="rest"), SAMPLE)
