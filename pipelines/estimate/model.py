"""What an estimate holds, and what a probe measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.engines.settings import RunSettings


@dataclass
class Probe:
    """What an estimate rests on."""

    inputs: int
    seconds_an_input: float  # of one worker, with all workers busy
    spread: float  # standard deviation of the units' seconds an input, as a share of their mean
    start_seconds: float
    workers: int
    seconds: float  # that the probe itself took


@dataclass
class Estimate:
    """What a stage would take.

    Bytes and seconds; `known` says how the number of inputs is known.
    """

    stage: str
    place: str
    noun: str
    inputs: int
    known: str
    done: int = 0
    disk: dict[str, int] = field(default_factory=dict)
    disk_there: int = 0  # of it, what is there already
    free: int | None = None  # on the place's disk; None where it is not a local one
    memory_worker: int = 0
    memory_total: int = 0
    workers: int = 0
    seconds: float = 0.0
    elsewhere: dict[int, float] = field(default_factory=dict)
    probe: Probe | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def disk_total(self) -> int:
        """Bytes of the finished output."""
        return sum(self.disk.values())

    def to_json(self) -> dict[str, Any]:
        """All of it, with the sums."""
        return {**asdict(self), "disk_total": self.disk_total}


def elsewhere(settings: RunSettings, seconds: Callable[[int], float]) -> dict[int, float]:
    """Seconds with each number of workers that --on names."""
    return {count: seconds(count) for count in settings.on}
