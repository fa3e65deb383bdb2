"""How much memory a tree of processes takes, looked at while it works.

PSS where the system tells it (Linux): pages that processes share are counted once over all.
Elsewhere USS, or RSS.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import psutil

PAUSE = 0.2  # seconds between two looks
STEP = 1.02  # PSS, which takes the kernel milliseconds, is asked for only where RSS rose by so much


@dataclass(frozen=True)
class Peaks:
    """The most that was seen, in bytes: of one worker process with its children, and of the whole
    tree.
    """

    worker: int = 0
    total: int = 0

    def __or__(self, other: Peaks) -> Peaks:
        return Peaks(max(self.worker, other.worker), max(self.total, other.total))


class MemoryWatch:
    """Looks at a process (this one) and those below it while a block runs; `peaks` tells the most
    that was seen.
    """

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
            try:
                trees = [[child, *child.children(recursive=True)] for child in own.children()]
            except psutil.Error:
                continue
            held = _resident(own) + sum(_resident(one) for tree in trees for one in tree)
            if held <= seen * STEP:
                continue
            seen = held
            workers = [sum(map(_bytes, tree)) for tree in trees]
            self.peaks |= Peaks(max(workers, default=0), sum(workers) + _bytes(own))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _bytes(process: psutil.Process) -> int:
    try:
        told: Any = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(told, "pss", 0) or getattr(told, "uss", 0) or told.rss)
