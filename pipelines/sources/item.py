"""An image on its way to the describer: where it lies, or its bytes, or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from pipelines.storage.local import read_file
from pipelines.storage.place import read_url
from rrt_core.images import DecodeError
from schemas.image_list import ImageReference

MOST_BYTES = 400_000_000  # of an image file: 100 megapixels of four bytes


@dataclass(frozen=True)
class Item:
    """An image of a unit: where it lies, its bytes where they were streamed, or its refusal."""

    reference: ImageReference
    data: bytes | None = None
    refusal: DecodeError | None = None
    expected: str = ""  # SHA-256 that the file must have, where it was described before

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the bytes that came from a stream; "" where none did."""
        return "" if self.data is None else sha256(self.data).hexdigest()


def read_location(location: bytes) -> bytes:
    """The bytes of a file by local path or URL; a device or a pipe is never waited for.

    Raises OSError, and UserError where a remote place does not answer: no image is failed for that.
    """
    if not location.startswith(b"/"):
        return read_url(location.decode(), MOST_BYTES)

    return read_file(location, MOST_BYTES)
