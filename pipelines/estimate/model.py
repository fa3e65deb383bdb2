"""What an estimate holds: one class for all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelines.engines.settings import RunSettings
from pipelines.estimate.probe import Probe
from pipelines.storage.place import free_bytes, open_place


@dataclass
class Estimate:
    """What a stage would take.

    Bytes and seconds; `known` says how the number of inputs is known. The names of the fields are
    those of --json.
    """

    stage: str
    place: str
    noun: str
    inputs: int
    known: str
    done: int = 0
    disk: dict[str, int] = field(default_factory=dict)
    disk_there: int = 0  # of it, what is in place already
    free: int | None = None  # on the place's disk; None where it is not a local one
    memory_worker: int = 0
    memory_total: int = 0
    workers: int = 0
    seconds: float = 0.0
    elsewhere: dict[int, float] = field(default_factory=dict)  # by numbers of workers, of --on
    probe: Probe | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls, stage: str, url: str, noun: str, inputs: int, known: str = "counted", done: int = 0
    ) -> Estimate:
        """An estimate for an output that is, or will be, at a path or URL."""
        return cls(stage, open_place(url).url, noun, inputs, known, done, free=free_bytes(url))

    def nothing_left(
        self, settings: RunSettings, before: float, note: str, size: int = 0
    ) -> Estimate:
        """Say that all is done: of `size` bytes, in the seconds that the command takes anyway."""
        self.done, self.workers = self.inputs, settings.worker_count
        self.notes = [note]
        if size:
            self.disk, self.disk_there = {"in place": size}, size
        return self.takes(settings, lambda _: before)

    def takes(self, settings: RunSettings, seconds: Callable[[int], float]) -> Estimate:
        """Set the time, from what it is by the number of workers."""
        self.seconds = seconds(settings.worker_count)
        self.elsewhere = {count: seconds(count) for count in settings.on}
        return self

    def rests_on(
        self,
        probe: Probe,
        settings: RunSettings,
        before: float,
        lengths: Sequence[float],
        growth: float = 0.0,
    ) -> None:
        """Set time and memory from a probe.

        before   seconds until the job begins;  lengths  seconds of each unit that is left
        growth   bytes that a worker of the whole job holds more than one of the probe
        """
        self.takes(settings, lambda workers: before + probe.wall(lengths, workers))
        self.probe, self.workers = probe, probe.workers
        self.memory_worker = probe.peaks.worker + round(growth)
        self.memory_total = probe.peaks.total + probe.workers * round(growth)

    @property
    def disk_total(self) -> int:
        """Bytes of the finished output."""
        return sum(self.disk.values())

    def to_json(self) -> dict[str, Any]:
        """All of it, with the sums."""
        probe = self.probe.to_json() if self.probe else None
        fields = asdict(replace(self, probe=None))
        return {**fields, "probe": probe, "disk_total": self.disk_total}
