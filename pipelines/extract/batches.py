"""Runs of images in a worker: decoded ahead of the model, in batches, or one by one in a child."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image

from pipelines.extract.describer import Decoded, Described, Describer, failed_item
from pipelines.extract.isolated import Crashed, DescribingFailed, Isolated
from pipelines.sources.item import Item
from rrt_core.images import DecodeError, Image
from schemas.image_list import ImageReference

ISOLATE_FROM = 3  # from this attempt on, images are described one by one in a child process
AHEAD_BYTES = 1_000_000_000  # of images that wait for the model, decoded or in work
USUAL_BYTES = 12_000_000  # of a decoded image, until a larger one was seen


def batched(describer: Describer, items: Iterable[Item]) -> Iterator[Described]:
    """Threads read and decode up to two batches ahead of the model, as far as memory allows.

    Where reading and decoding an image takes longer than `image_seconds`, or the model longer than
    that for each image of a batch, the process ends, with a traceback in the log: the driver
    assigns the unit again, and from the third attempt on images are described one by one. The time
    that `items` takes to give the next image, such as an archive's in which few are wanted, does
    not count.
    """
    seconds = float(describer.options["image_seconds"])
    size = describer.extractor.batch
    with ThreadPoolExecutor(describer.options["decoders"]) as pool:
        ahead = _Ahead(describer, iter(items), pool, 2 * size)
        while True:
            batch = ahead.take(size)
            if not batch:
                return
            with patience(seconds * len(batch)):
                described = list(describer.describe(*zip(*batch, strict=True)))
            yield from described


@dataclass
class _Waiting:
    """An image that is being decoded, or waits for the model.

    Its file's bytes go when it is decoded.
    """

    item: Item
    file_bytes: int
    begun: float = math.inf  # when a thread took it up
    future: Future[Decoded] = field(default_factory=Future)

    def decoded(self, describer: Describer) -> Decoded:
        """For a thread: the image, or why there is none."""
        self.begun = time.monotonic()
        decoded = describer.decoded(self.item)
        self.item = replace(self.item, data=None)
        if isinstance(decoded.image, DecodeError):
            # A new one: the frames of a raised one's traceback hold the file's bytes.
            decoded.image = DecodeError(decoded.image.reason, decoded.image.error_class)
        return decoded

    def held(self, largest: int) -> int:
        """Bytes in memory; while it is in work, with an image as large as the largest seen."""
        return _bytes(self.future.result()) if self.future.done() else self.file_bytes + largest


class _Ahead:
    """What is being decoded and what waits for the model, in order."""

    def __init__(
        self, describer: Describer, items: Iterator[Item], pool: ThreadPoolExecutor, most: int
    ) -> None:
        self.describer, self.items, self.pool, self.most = describer, items, pool, most
        self.seconds = float(describer.options["image_seconds"])
        self.queue: deque[_Waiting] = deque()
        self.largest = USUAL_BYTES
        self.ended = False

    def take(self, size: int) -> list[tuple[Item, Decoded]]:
        """The next images, at most `size` and (after the first) AHEAD_BYTES; none at the end."""
        batch: list[tuple[Item, Decoded]] = []
        held = 0
        while len(batch) < size and held < AHEAD_BYTES:
            self._fill()
            if not self.queue:
                break

            first = self.queue[0]
            if not first.future.done():
                working = [one for one in self.queue if not one.future.done()]
                left = min(one.begun for one in working) + self.seconds - time.monotonic()
                with patience(min(max(left, 0.001), self.seconds)):
                    wait([one.future for one in working], return_when=FIRST_COMPLETED)
                continue

            decoded = self.queue.popleft().future.result()
            held += _bytes(decoded)
            batch.append((first.item, decoded))
        self._fill()
        return batch

    def _fill(self) -> None:
        """Submit what fits beside what waits or is in work, with room for one more image."""
        done = [_bytes(one.future.result()) for one in self.queue if one.future.done()]
        self.largest = max([self.largest, *done])
        while not self.ended and len(self.queue) < self.most:
            held = sum(one.held(self.largest) for one in self.queue)
            if self.queue and held + self.largest > AHEAD_BYTES:
                return

            item = next(self.items, None)
            if item is None:
                self.ended = True
                return
            waiting = _Waiting(item, len(item.data or b""))
            waiting.future = self.pool.submit(waiting.decoded, self.describer)
            self.queue.append(waiting)


def _bytes(decoded: Decoded) -> int:
    return decoded.image.pixels.nbytes if isinstance(decoded.image, Image) else 0


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the process where the block takes longer: nothing else stops a decoder's endless loop."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def isolated(options: dict[str, Any], threads: int, items: Iterable[Item]) -> Iterator[Described]:
    """One by one in a child process: an image that kills it, or fails there, becomes a failed row.

    Raises the last failure where not one image went well, nor a picture of ours: then it is not the
    images. Raises UserError where a place does not answer: no image is failed for that.
    """
    trouble: Exception | None = None
    well = 0
    with Isolated(options, threads, options["image_seconds"]) as child:
        for item in items:
            try:
                described = child.describe(item)
                well += 1
            except Crashed as crash:
                reason = f"describing it killed the process ({crash})"
                described = failed_item(item, reason, "crashed")
            except DescribingFailed as error:
                trouble = error
                described = failed_item(item, f"describing it failed: {error}", "error")
            yield described
        if trouble is not None and not well and not _describes(child):
            raise trouble


def _describes(child: Isolated) -> bool:
    """Whether a picture that nothing is wrong with can be described."""
    buffer = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    PIL.Image.fromarray(picture).save(buffer, "PNG")
    try:
        child.describe(Item(ImageReference("picture.png", "", b""), buffer.getvalue()))
    except (Crashed, DescribingFailed):
        return False
    return True
