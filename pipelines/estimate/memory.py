"""How much memory a tree of processes takes, sampled while it works.

PSS where the system reports it (Linux): pages that processes share are counted once over all.
Elsewhere USS, or RSS.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Any

import psutil

PAUSE = 0.2  # seconds between two looks
STEP = 1.02  # PSS, which takes the kernel milliseconds, is read only where RSS rose by so much


@dataclass(frozen=True)
class Peaks:
    """The most memory that was seen, in bytes.

    worker  of one worker process with its children;  total  of the whole tree
    """

    worker: int = 0
    total: int = 0

    def __or__(self, other: Peaks) -> Peaks:
        return Peaks(max(self.worker, other.worker), max(self.total, other.total))


class MemoryWatch:
    """Samples a process (this one) and those below it while a block runs, into `peaks`."""

    def __init__(self, process: int | None = None) -> None:
        self.process = process
        self.peaks = Peaks()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        own, seen = psutil.Process(self.process), 0.0
        while not self._end.wait(PAUSE):
            with contextlib.suppress(psutil.Error):  # one ended meanwhile: the next look counts
                trees = [[child, *child.children(recursive=True)] for child in own.children()]
                held = sum(one.memory_info().rss for tree in [[own], *trees] for one in tree)
                if held > seen * STEP:
                    workers = [sum(map(_bytes, tree)) for tree in trees]
                    self.peaks |= Peaks(max(workers, default=0), sum(workers) + _bytes(own))
                    seen = held


def _bytes(process: psutil.Process) -> int:
    sizes: Any = process.memory_full_info()
    return int(getattr(sizes, "pss", 0) or getattr(sizes, "uss", 0) or sizes.rss)
