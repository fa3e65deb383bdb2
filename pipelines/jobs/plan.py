"""A job's plan: written once; another recipe's output is refused, saying what differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipelines.stages import worker_class
from pipelines.storage.protocol import Place
from schemas.errors import Damaged, UserError
from schemas.layout import JOB_NAME, PLAN_NAME
from schemas.manifest import canonical_json
from schemas.plan import Job, Plan, Unit


def write_plan(place: Place, job: Job, files: Mapping[str, bytes]) -> None:
    """Write the job's plan, and first the `files` that belong to it, unless it stands there
    already.

    A plan that only grew, by units that do failed inputs again, is written anew. Raises UserError
    where the folder holds another recipe's output.
    """
    data = Plan(job.identity, job.recipe_hash, job.units).to_bytes()
    planned = read_plan(place)
    if planned is None:
        _write_files(place, files)
        place.write(JOB_NAME, job.to_json().encode())
        if place.create(PLAN_NAME, data):
            return
        planned = read_plan(place) or Plan({})
    refuse_other_recipe(place, job, planned.recipe)
    before, more = len(planned.units), job.units[len(planned.units) :]
    same = [unit.slice for unit in planned.units] == [unit.slice for unit in job.units[:before]]
    if not same or not all(unit.work.again for unit in more):
        raise UserError(
            f"{place.url} was planned for other units by the same recipe; give --overwrite or "
            f"another place"
        )
    _write_files(place, files)  # listed anew, with the same names: the files may have moved
    if not _holds(place, job):
        place.write(JOB_NAME, job.to_json().encode())
    if more:
        place.write(PLAN_NAME, data)


def _write_files(place: Place, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        if place.size(name) != len(content) or place.read(name) != content:
            place.write(name, content)


def _holds(place: Place, job: Job) -> bool:
    """Whether the job stands there already.

    That of an older output is left as it is: it may name its worker as was usual then, and lack
    options that are new since.
    """
    try:
        there = Job.from_json(place.read_record(JOB_NAME).decode())
        if worker_class(there.worker) != worker_class(job.worker):
            return False
    except (FileNotFoundError, ValueError, UserError):  # lost, damaged, of a worker that is unknown
        return False

    now = replace(Job.from_json(job.to_json()), units=there.units)  # as it is after a file
    lacking = {key: value for key, value in now.settings.items() if key not in there.settings}
    return now == replace(there, worker=now.worker, settings={**there.settings, **lacking})


def planned_units(place: Place) -> tuple[Unit, ...]:
    """The units of the folder's plan; none where there is no plan. Raises as `read_plan`."""
    planned = read_plan(place)
    return planned.units if planned else ()


def read_plan(place: Place) -> Plan | None:
    """The folder's plan, or None where there is none. Raises UserError where it is damaged."""
    try:
        return Plan.from_bytes(place.read_record(PLAN_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Damaged(
            f"{place.url}/{PLAN_NAME}: {error}; {PLAN_NAME} is damaged; give --overwrite or "
            f"another place"
        ) from error


def refuse_other_recipe(place: Place, job: Job, made_by: Any) -> None:
    """Raise UserError where `made_by`, the recipe of what is there, is not the job's."""
    changed = list(differences(made_by, json.loads(canonical_json(job.identity))))
    if changed:
        raise UserError(
            f"{place.url} was made by another recipe ({'; '.join(changed)}); give --overwrite to "
            f"make it again, "
            "or another place"
        )


def differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    """What differs between two recipes, a phrase an entry; inner mappings with dotted names below
    `name`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{name} was {_short(old)}, is now {_short(new)}"


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 40 else text[:37] + "..."
