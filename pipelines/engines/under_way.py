"""How far units under way are, seen from outside: their markers, and what their attempts report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.storage.protocol import Place
from schemas.manifest import Marker
from schemas.plan import Unit


@dataclass(frozen=True)
class UnderWay:
    """What an attempt reported last: inputs done and failed, share of an open unit's bytes, why
    the last one failed.
    """

    done: int
    failed: int
    share: float
    reason: str


class Watch:
    """Looks at a job's folder while its workers are at it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._marked: dict[str, UnderWay] = {}  # units of shares under way that have their marker

    def look(self, units: Iterable[Unit]) -> dict[str, UnderWay]:
        """The state of each of the units that has one; attempts report on local places only."""
        names = {unit.name for unit in units}
        marked = {name.removesuffix(".json") for name in self.place.names("done")} & names
        for name in marked - self._marked.keys():
            with contextlib.suppress(OSError):
                marker = Marker.from_bytes(self.place.read_record(f"done/{name}.json"))
                if marker is not None:
                    self._marked[name] = UnderWay(
                        marker.counts.inputs, marker.counts.failed, 1.0, ""
                    )

        states = {name: self._marked[name] for name in marked & self._marked.keys()}
        for name in self.place.names("attempts") if self.place.local else ():
            unit = name.partition(".")[0]
            if name.endswith(".progress") and unit in names - marked:
                with contextlib.suppress(OSError, ValueError, TypeError):
                    state = UnderWay(**json.loads(self.place.read_record(f"attempts/{name}")))
                    if unit not in states or state.done > states[unit].done:
                        states[unit] = state

        return states
