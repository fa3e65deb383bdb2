"""One unit from its attempt to its marker: what every engine calls; exceptions go to `errors/`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pipelines.jobs.attempt import Attempt
from pipelines.jobs.errors import final_error, gone, write_error
from pipelines.jobs.markers import read_marker
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.plan import Unit


def do_unit(worker: UnitWorker, unit: Unit) -> bool:
    """Do a unit from attempt to marker; an exception goes to `errors/`. Whether it is done."""
    return begin_unit(worker, unit)()


def begin_unit(worker: UnitWorker, unit: Unit) -> Callable[[], bool]:
    """Do a unit's work; what is given back commits it, and says whether the unit is done.

    The commit may run in a thread while the next unit is begun. Exceptions are written to
    `errors/`, here as there.
    """
    place = open_place(worker.job.output)
    if read_marker(place, worker.job, unit) is not None:
        return lambda: True

    attempt: Attempt | None = None
    try:
        attempt = Attempt(place, worker.job, unit)
        counts = worker.do(unit, attempt)
    except Exception as error:  # noqa: BLE001  whatever a stage raises, the driver judges it
        _fail(place, unit, attempt, error)
        return lambda: False
    begun = attempt

    def commit() -> bool:
        try:
            begun.commit(counts)
            begun.close()
        except Exception as error:  # noqa: BLE001  as above
            _fail(place, unit, begun, error)
            return False
        return True

    return commit


def _fail(place: Place, unit: Unit, attempt: Attempt | None, error: Exception) -> None:
    if attempt is not None and attempt.removed:
        error = gone(place)
    if attempt is not None:
        with contextlib.suppress(UserError):  # a place that does not answer: its first error counts
            attempt.close(failed=not final_error(error, place))
    write_error(place, unit.name, error)
