"""How long the driver takes for units of known lengths: it assigns them in shares, as
engines/assignments.py does, without work.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from pipelines.engines.assignments import MOST_A_SHARE, SHARES_A_WORKER


def wall_seconds(units: Sequence[float], workers: int, start: float, share: float) -> float:
    """Seconds until the last of some units ends, assigned in their order to workers that become
    free.

    units  seconds of each on a worker;  start  seconds until a worker can begin;  share  seconds
           each share costs
    """
    if not units:
        return 0.0
    waiting = deque(units)
    free = [start] * min(workers, len(waiting))
    end = start
    while waiting:
        now = heapq.heappop(free)
        size = min(MOST_A_SHARE, -(-len(waiting) // (workers * SHARES_A_WORKER)))
        now += share + sum(waiting.popleft() for _ in range(size))
        end = max(end, now)
        heapq.heappush(free, now)
    return end


def busy_seconds(begins: Sequence[float], ends: Sequence[float], workers: int) -> float:
    """Seconds of workers between the begins and ends of units.

    A unit is committed while the worker is at the next: where more are under way than there are
    workers, those that are only being committed do not count.
    """
    return min(sum(ends) - sum(begins), workers * (max(ends) - min(begins)))
