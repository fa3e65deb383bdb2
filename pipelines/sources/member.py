"""What the readers of tar and zip files say of a member, and what they raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Member:
    """A file, link or device in an archive; no folder.

    name      bytes as they stand in the archive
    size      bytes that its header declares
    position  share of the archive's bytes before it, 0 to 1
    refusal   why it is not read (error class, sentence), or None
    read      its data; to be called once at most, before the next member is asked for. Raises
              Unreadable where this member alone is bad
    """

    name: bytes
    size: int
    position: float
    refusal: tuple[str, str] | None
    read: Callable[[], bytes]


class Broken(Exception):
    """The archive cannot be read on from here: why, in a clause, and from which byte, if known.

    Of a compressed tar file it is a byte of what is unpacked.
    """

    def __init__(self, why: str, byte: int | None = None) -> None:
        super().__init__(why)
        self.byte = byte


class Unreadable(Exception):
    """One member cannot be read; the others can. Why, in a sentence."""
