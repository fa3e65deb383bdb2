"""Describing runs of images in a worker: decoded ahead of the model, in batches, or one by one in a child process."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from pipelines.describe import Decoded, Described, Describer, Item, failed
from pipelines.isolation import Crashed, DescribingFailed, Isolated

ISOLATE_FROM = 3  # from this attempt on, images are described one by one in a child process
DECODERS = 2  # threads that read and decode ahead


def batched(describer: Describer, items: Iterable[Item], seconds: float) -> Iterator[Described]:
    """Two threads read and decode up to two batches ahead of the model.

    Where an image takes longer than `seconds` the process ends, with a traceback in the log: the driver deals the unit
    again, and from the third attempt on the image is found out one by one.
    """
    size = describer.extractor.batch
    waiting = iter(items)
    with ThreadPoolExecutor(DECODERS) as pool:

        def ahead(count: int) -> list[tuple[Item, Future[Decoded]]]:
            return [(item, pool.submit(describer.decoded, item)) for item in islice(waiting, count)]

        queue = ahead(2 * size)
        while queue:
            batch, queue = queue[:size], queue[size:]
            with patience(seconds * len(batch)):
                images = [future.result() for _, future in batch]
            queue += ahead(size)
            with patience(seconds * len(batch)):
                described = list(describer.describe([item for item, _ in batch], images))
            yield from described


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the process where the block takes longer: an endless loop of a decoder or a model cannot be interrupted."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def isolated(options: dict[str, Any], threads: int, items: Iterable[Item]) -> Iterator[Described]:
    """One by one in a child process: an image that kills it, or on which it fails, becomes a failed row.

    Raises the last failure where not one image went well: then it is not the images.
    """
    trouble: Exception | None = None
    well = 0
    with Isolated(options, threads, options["image_seconds"]) as child:
        for item in items:
            try:
                described = child.describe(item)
                well += 1
            except Crashed as crash:
                described = failed(item.reference, f"describing it killed the process ({crash})", "crashed")
            except DescribingFailed as error:
                trouble = error
                described = failed(item.reference, f"describing it failed: {error}", "error")
            yield described
    if trouble is not None and not well:
        raise trouble
