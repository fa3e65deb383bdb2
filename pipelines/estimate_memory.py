"""How much memory a tree of processes takes, looked at while it works.

PSS where the system tells it (Linux): pages that processes share are counted once over all. Elsewhere USS, or RSS.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import psutil

PAUSE = 0.2  # seconds between two looks


@dataclass(frozen=True)
class Peaks:
    """The most that was seen, in bytes: of one worker process with its children, and of the whole tree."""

    worker: int = 0
    total: int = 0

    def __or__(self, other: Peaks) -> Peaks:
        return Peaks(max(self.worker, other.worker), max(self.total, other.total))


class MemoryWatch:
    """Looks at a process (this one) and those below it while a block runs; `peaks` tells the most that was seen."""

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
        own = psutil.Process(self.process)
        while not self._end.wait(PAUSE):
            try:
                workers = [_tree(child) for child in own.children()]
                self.peaks |= Peaks(max(workers, default=0), sum(workers) + _bytes(own))
            except psutil.Error:
                continue


def _tree(process: psutil.Process) -> int:
    try:
        return _bytes(process) + sum(map(_bytes, process.children(recursive=True)))
    except psutil.Error:
        return 0


def _bytes(process: psutil.Process) -> int:
    try:
        told: Any = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(told, "pss", 0) or getattr(told, "uss", 0) or told.rss)
