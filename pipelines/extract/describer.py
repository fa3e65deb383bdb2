"""From an image's bytes to what became of it: described, or failed with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pipelines.sources.item import Item, read_location
from rrt_core.extractors import Description, Extractor, Failure, create
from rrt_core.extractors.answers import checked
from rrt_core.images import DecodeError, Image, decode
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.image_list import ImageReference

STAGE = "extract"
CHANGED = "the file is another one than when its global was described"


@dataclass
class Described:
    """What became of one image; the row of the failures table where it failed."""

    row: GlobalRow
    description: Description | None = None
    failure: FailureRow | None = None


@dataclass
class Decoded:
    """An image or why there is none; the file's bytes and SHA-256."""

    image: Image | DecodeError
    size: int = 0
    digest: str = ""


class Describer:
    """Reads, decodes and describes images: in the worker, or alone in a child process.

    Of `options` (those of the stage) it knows: extractor, extractor_option, max_pixels, min_side,
    decoding, jpeg_rows, locals.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.extractor: Extractor = create(options["extractor"], **options["extractor_option"])
        self.with_locals = options.get("locals") != "none"
        self.decoding: dict[str, Any] = {key: options[key] for key in ("max_pixels", "min_side")}
        self.decoding["min_rows"] = options.get("jpeg_rows", 1.0)
        if options.get("decoding") == "draft" and self.extractor.largest_side:
            self.decoding["largest_side"] = self.extractor.largest_side

    def decoded(self, item: Item, reserve: Callable[[int], None] | None = None) -> Decoded:
        """Read and decode an image; never raises for what its bytes hold.

        reserve  called with the bytes that decoding takes, before it does; it may wait
        """
        if item.refusal is not None:
            return Decoded(item.refusal)

        reference, data = item.reference, item.data
        if data is None:
            try:
                data = read_location(reference.location)
            except (OSError, ValueError) as error:  # ValueError: a name with a null character
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                return Decoded(DecodeError(f"the file cannot be read: {reason}", "unreadable"))

        digest = sha256(data).hexdigest()
        if item.expected and digest != item.expected:
            return Decoded(DecodeError(CHANGED, "changed"), len(data), digest)

        try:
            image = decode(
                data, reference.record_id, reference.box, reserve=reserve, **self.decoding
            )
        except DecodeError as error:
            return Decoded(error, len(data), digest)
        return Decoded(image, len(data), digest)

    def describe(self, items: Sequence[Item], images: Sequence[Decoded]) -> Iterator[Described]:
        """What became of a batch of decoded images, in order."""
        good = [decoded.image for decoded in images if isinstance(decoded.image, Image)]
        work = self.extractor.describe if self.with_locals else self.extractor.describe_globals
        answers = iter(checked(self.extractor, work(good), len(good)) if good else [])
        for item, decoded in zip(items, images, strict=True):
            image = decoded.image
            answer = image if isinstance(image, DecodeError) else next(answers)
            yield _described(item.reference, decoded, answer)

    def describe_alone(self, item: Item) -> Described:
        """One image by itself: the same bytes as in any company."""
        return next(self.describe([item], [self.decoded(item)]))


def file_size(item: Item) -> int:
    """Bytes of a local file that is to be read; 0 where they are at hand, or not known."""
    if item.data is not None or not item.reference.location.startswith(b"/"):
        return 0
    try:
        return os.stat(item.reference.location).st_size
    except (OSError, ValueError):  # what is wrong is said where it is read
        return 0


def _described(
    reference: ImageReference, decoded: Decoded, answer: Description | Failure | DecodeError
) -> Described:
    """What became of an image by what decoder or extractor gave."""
    image, size, digest = decoded.image, decoded.size, decoded.digest
    if isinstance(answer, Failure | DecodeError):
        return failed(reference, answer.reason, answer.error_class, size, digest)

    assert isinstance(image, Image)
    row = GlobalRow(
        reference.record_id,
        reference.source,
        image.width,
        image.height,
        reference.box,
        image.resize_factor,
        size,
        digest,
        answer.global_descriptor,
        image.own_rows,
    )
    return Described(row, answer)


def failed(
    reference: ImageReference, reason: str, error_class: str, size: int = 0, digest: str = ""
) -> Described:
    """A failed image: its row with zeros for a descriptor, and its row of the failures table."""
    row = GlobalRow(
        reference.record_id, reference.source, 0, 0, reference.box, 1.0, size, digest, None
    )
    return Described(row, None, FailureRow(reference.record_id, STAGE, reason, error_class))


def failed_item(item: Item, reason: str, error_class: str) -> Described:
    """As `failed`, with size and SHA-256 of the bytes at hand, which know an archive's members."""
    return failed(item.reference, reason, error_class, len(item.data or b""), item.digest)
