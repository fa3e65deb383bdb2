"""How many bytes a worker's images may take: read, in decoding, or waiting for the model."""

from __future__ import annotations

import contextlib
import ctypes
import threading

READ, DECODED = 1, 2  # the two times at which an image takes memory
LARGE = 200_000_000  # bytes of an image, or of a batch, that are worth a call to give them back
_FILES = 8  # files that wait to be decoded may take this part of the whole


def give_back() -> None:
    """Give the system back what large images took: the C library keeps it where it can."""
    with contextlib.suppress(AttributeError, OSError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


class Budget:
    """Bytes that images take in turn, in the order in which they are given to the model.

    An image waits until those before it have taken theirs, and until there is room beside them;
    where none before it holds anything, nothing would make room, and it goes on at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.changed = threading.Condition()
        self._steps: dict[int, int] = {}  # turn -> what it has taken; those that were not let go
        self._held: dict[int, int] = {}  # turn -> bytes
        self._waiting: set[int] = set()
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return sum(self._held.values())

    def begin(self, turn: int) -> None:
        """An image is to come; turns grow."""
        with self.changed:
            self._steps[turn], self._held[turn] = 0, 0

    def take(self, turn: int, step: int, more: int) -> None:
        """Take bytes, for its file (READ) or for decoding it (DECODED); waits for room."""
        with self.changed:
            self._waiting.add(turn)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._may(turn, step, more))
            self._waiting.discard(turn)
            self._steps[turn] = step
            self._held[turn] += more
            self.changed.notify_all()

    def settle(self, turn: int, held: int) -> None:
        """The image is decoded, or failed: from now on it holds so much."""
        with self.changed:
            self._steps[turn], self._held[turn] = DECODED, held
            self.changed.notify_all()

    def let_go(self, turn: int) -> None:
        """The image is described."""
        with self.changed:
            del self._steps[turn], self._held[turn]
            self.changed.notify_all()

    def close(self) -> None:
        """Nothing waits any more."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def notify(self, _: object = None) -> None:
        """Something else has changed that is waited for."""
        with self.changed:
            self.changed.notify_all()

    def waits(self, turn: int) -> bool:
        """Whether an image waits for room."""
        return turn in self._waiting

    def _may(self, turn: int, step: int, more: int) -> bool:
        if self._closed:
            return True
        before = [other for other in self._steps if other < turn]
        if any(self._steps[other] < step for other in before):
            return False
        most = self.most if step == DECODED else self.most // _FILES
        return self.held + more <= most or not any(self._held[other] for other in before)
