"""How long the driver takes for units of known lengths: its dealing (driver.Loop._deal), replayed
without work.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from pipelines.engines.assignments import MOST_A_SHARE, SHARES_A_WORKER


def wall_seconds(units: Sequence[float], workers: int, start: float, share: float) -> float:
    """Seconds until the last of some units ends, dealt in their order to workers that become free.

    units  seconds of each on a worker;  start  seconds until a worker can begin;  share  seconds
           each share costs
    """
    if not units:
        return 0.0
    waiting = deque(units)
    free = [start] * min(workers, len(waiting))
    heapq.heapify(free)
    end = start
    while waiting:
        now = heapq.heappop(free)
        size = min(MOST_A_SHARE, -(-len(waiting) // (workers * SHARES_A_WORKER)))
        now += share + sum(waiting.popleft() for _ in range(size))
        end = max(end, now)
        heapq.heappush(free, now)
    return end
