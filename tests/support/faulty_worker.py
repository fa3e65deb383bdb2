"""A unit worker that does what a unit's payload says: writes a file, raises, dies, waits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker
from schemas.errors import UserError
from schemas.manifest import Counts
from schemas.plan import Job, OtherWork, Unit


class FaultyWorker(UnitWorker):
    """`behaviour` of the payload: ok, raise, raise_once, user_error, die, die_once, crash,
    wait, wait_once, large.
    """

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Misbehave, or write one small file whose bytes follow from the unit's name."""
        behaviour = unit.payload.get("behaviour", "ok")
        if behaviour == "raise" or (behaviour == "raise_once" and attempt.number == 1):
            raise ValueError(f"no good: {unit.name}")
        if behaviour == "user_error":
            raise UserError(f"{unit.name}: mend your settings")
        first = attempt.number == 1 and not attempt.killed
        if behaviour == "die" or (behaviour == "die_once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if behaviour == "wait" or (behaviour == "wait_once" and attempt.number == 1):
            time.sleep(3600)
        path = attempt.path("data.bin")
        Path(path).write_bytes(unit.name.encode() * (1_000_000 if behaviour == "large" else 100))
        attempt.add(path, f"data/{unit.name}.bin", unit.inputs)
        with open(attempt.path("plain.json"), "w") as file:
            file.write("{}")
        attempt.add(attempt.path("plain.json"), f"plain/{unit.name}.json", 1, plain_name=True)
        attempt.summary = {"name": unit.name}
        return Counts(unit.inputs, unit.inputs)


def faulty_job(output: str, *behaviours: str, recipe: dict[str, object] | None = None) -> Job:
    """A job with a unit for each behaviour."""
    units = tuple(
        Unit(f"part-{n:05}", OtherWork({"behaviour": behaviour}), 3)
        for n, behaviour in enumerate(behaviours)
    )
    return Job(
        stage="test",
        output=output,
        worker="tests/faulty",
        recipe={"colour": {"hue": 1}} if recipe is None else recipe,
        inputs={"images": {"url": "anywhere", "content": "abc"}},
        units=units,
    )
