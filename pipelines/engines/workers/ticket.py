"""What a driver hands its workers: the run, and what each worker process must share with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from schemas.errors import UserError
from schemas.inside import read_json, read_strictly


class Unfit(UserError):
    """A worker process that cannot do the job's units: other versions, or files that it does not
    see. The sentence names its host.
    """


@dataclass(frozen=True)
class Sample:
    """A file of the inputs that the driver sees: path or URL, and bytes where these are known."""

    url: str
    bytes: int | None


@dataclass(frozen=True)
class Ticket:
    """As JSON text, what `be_fit` (fitness.py) needs.

    run      of the driver; also in its lease
    engine   local, spark or beam
    lease    the folder that holds the driver's lease, which every worker must see; "" where none
             is written (local workers of a local folder)
    versions of the driver's software; empty where workers run on the driver's own
    inputs   files that must be seen
    lease_seconds  a worker ends itself when the lease was not renewed for so long; 0: never
    stall_seconds  and when it computed nothing for so long with a unit under way; 0: never
    """

    run: str
    engine: str
    lease: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Sample, ...] = ()
    lease_seconds: float = 0.0
    stall_seconds: float = 0.0

    def to_json(self) -> str:
        """One line of ASCII."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Ticket:
        """The inverse. Raises ValueError."""
        return read_strictly(read_json(text), Ticket)
