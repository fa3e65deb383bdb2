"""Runs of images in a worker: decoded ahead of the model, in batches, or one by one in a child."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import PIL.Image

from pipelines.extract.describer import Decoded, Described, Describer, failed_item, file_size
from pipelines.extract.isolated import Crashed, DescribingFailed, Isolated
from pipelines.extract.memory import DECODED, LARGE, READ, Budget, give_back
from pipelines.sources.item import Item
from rrt_core.images import DecodeError, Image
from schemas.image_list import ImageReference

ISOLATE_FROM = 3  # from this attempt on, images are described one by one in a child process
AHEAD_BYTES = 800_000_000  # of images that wait for the model, decoded or in work
LOOK_SECONDS = 0.05  # between looks at an image that is waited for
USUAL_BYTES = 12_000_000  # of a decoded image, until a larger one was seen


def batched(describer: Describer, items: Iterable[Item], killed: int = 0) -> Iterator[Described]:
    """Threads read and decode up to two batches ahead of the model, as far as memory allows.

    killed  how often the system killed a worker at these images: each time a quarter of the images
            and of the bytes is held at once, down to one image

    Where reading and decoding an image takes longer than `image_seconds`, or the model longer than
    that for each image of a batch, the process ends, with a traceback in the log: the driver
    assigns the unit again, and from the third attempt on images are described one by one. The time
    that `items` takes to give the next image, such as an archive's in which few are wanted, does
    not count.
    """
    seconds = float(describer.options["image_seconds"])
    fewer = 4**killed
    size = max(1, describer.extractor.batch // fewer)
    with ThreadPoolExecutor(max(1, describer.options["decoders"] // fewer)) as pool:
        most = 1 if killed > 1 else 2 * size
        ahead = _Ahead(describer, iter(items), pool, most, AHEAD_BYTES // fewer)
        try:
            while batch := ahead.take(size):
                with patience(seconds * len(batch)):
                    pairs = [(one.item, one.future.result()) for one in batch]
                    described = list(describer.describe(*zip(*pairs, strict=True)))
                del pairs
                large = ahead.budget.held > LARGE
                turns = [one.turn for one in batch]
                batch.clear()
                if large:
                    give_back()
                for turn in turns:
                    ahead.budget.let_go(turn)
                yield from described
        finally:
            ahead.budget.close()  # threads that wait for room would never end


@dataclass
class _Waiting:
    """An image that is being decoded, or waits for the model.

    Its file's bytes go when it is decoded.
    """

    item: Item
    file_bytes: int
    turn: int
    budget: Budget
    largest: int = 0  # bytes that it took at once
    begun: float = math.inf  # when a thread took it up, without what it waited for room
    future: Future[Decoded] = field(default_factory=Future)

    def decoded(self, describer: Describer) -> Decoded:
        """For a thread: the image, or why there is none."""
        held = 0
        try:
            self._take(READ, file_size(self.item))
            decoded = describer.decoded(self.item, partial(self._take, DECODED))
            held = _bytes(decoded)
            self.item = replace(self.item, data=None)
            if self.largest > LARGE:
                give_back()
        finally:
            self.budget.settle(self.turn, held)
        if isinstance(decoded.image, DecodeError):
            # A new one: the frames of a raised one's traceback hold the file's bytes.
            decoded.image = DecodeError(decoded.image.reason, decoded.image.error_class)
        return decoded

    def _take(self, step: int, more: int) -> None:
        self.begun = math.inf
        self.largest = max(self.largest, more)
        self.budget.take(self.turn, step, more)
        self.begun = time.monotonic()

    def held(self, largest: int) -> int:
        """Bytes in memory; while it is in work, with an image as large as the largest seen."""
        return _bytes(self.future.result()) if self.future.done() else self.file_bytes + largest


class _Ahead:
    """What is being decoded and what waits for the model, in order."""

    def __init__(
        self,
        describer: Describer,
        items: Iterator[Item],
        pool: ThreadPoolExecutor,
        most: int,
        most_bytes: int | None = None,
    ) -> None:
        self.describer, self.items, self.pool, self.most = describer, items, pool, most
        self.seconds = float(describer.options["image_seconds"])
        self.queue: deque[_Waiting] = deque()
        self.budget = Budget(AHEAD_BYTES if most_bytes is None else most_bytes)
        self.turns = itertools.count()
        self.largest = USUAL_BYTES
        self.ended = False

    def take(self, size: int) -> list[_Waiting]:
        """The next images, at most `size`; none at the end.

        Fewer where the next one waits for the memory that these take.
        """
        batch: list[_Waiting] = []
        held = 0
        while len(batch) < size and held < self.budget.most:
            self._fill()
            if not self.queue:
                break

            first = self.queue[0]
            if not first.future.done():
                if batch and self.budget.waits(first.turn):
                    break
                self._wait(first, bool(batch))
                continue

            self.queue.popleft()
            held += _bytes(first.future.result())
            batch.append(first)
        self._fill()
        return batch

    def _wait(self, first: _Waiting, held: bool) -> None:
        """A moment, or until the first is decoded, or waits for the room of what is `held`.

        Ends the process where an image takes longer than it may.
        """
        begun = [one.begun for one in self.queue if not one.future.done()]
        left = min(begun) + self.seconds - time.monotonic()
        with patience(min(max(left, 0.001), self.seconds)), self.budget.changed:
            if not (first.future.done() or (held and self.budget.waits(first.turn))):
                self.budget.changed.wait(LOOK_SECONDS)

    def _fill(self) -> None:
        """Submit what fits beside what waits or is in work, with room for one more image."""
        done = [_bytes(one.future.result()) for one in self.queue if one.future.done()]
        self.largest = max([self.largest, *done])
        while not self.ended and len(self.queue) < self.most:
            held = sum(one.held(self.largest) for one in self.queue)
            if self.queue and held + self.largest > self.budget.most:
                return

            item = next(self.items, None)
            if item is None:
                self.ended = True
                return
            turn = next(self.turns)
            self.budget.begin(turn)
            waiting = _Waiting(item, len(item.data or b""), turn, self.budget)
            waiting.future = self.pool.submit(waiting.decoded, self.describer)
            waiting.future.add_done_callback(self.budget.notify)
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
