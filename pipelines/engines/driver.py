"""Runs a job: its plan, its unfinished units (loop.py), last its manifest.

The markers, not a runner, say what is done. Locally the work is assigned in shares to worker
processes; a Beam runner gets all unfinished units at once, from a single process that submits them.
When a worker dies, its share is assigned again. A unit that failed three times ends the job with
one sentence; all finished units stay in place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from pipelines.engines import signals as stopping
from pipelines.engines.loop import Loop
from pipelines.engines.outputs import sweep
from pipelines.engines.settings import LOCAL, Planned, RunSettings
from pipelines.jobs.errors import gone
from pipelines.jobs.existing_output import is_beside, made_before, readable_manifest, say_made
from pipelines.jobs.inputs import with_new_places
from pipelines.jobs.lease import Lease
from pipelines.jobs.manifests import write_manifest
from pipelines.jobs.memory import say_memory
from pipelines.jobs.plan import write_plan
from pipelines.jobs.replacing import at, begin_beside, finish_swap, place_for, swap_in
from pipelines.storage.exclusive_creates import refuse_careless_place
from pipelines.storage.local import full_disk
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place, refuse_unwritable
from schemas.errors import Unreachable, UserError
from schemas.layout import JOB_NAME, NEXT, PIECES, PLAN_FOLDER, PLAN_NAME, SWAP_NAME
from schemas.manifest import Manifest
from schemas.plan import Job


def run_job(
    job: Job,
    settings: RunSettings,
    plan_files: Mapping[str, bytes] | None = None,
    *,
    again: bool = False,
) -> Manifest:
    """Fill the job's folder; gives its manifest. Skips at once where it is finished by the same
    recipe.

    `plan_files` (name -> bytes) are what the job's workers read of the plan. `again` looks for
    missing units in a finished folder too: where the plan grew, or markers were removed. Raises
    UserError (another recipe's output is there, bad input, a disk that takes no more) and
    JobFailed.
    """
    place = open_place(job.output)
    refuse_unwritable(place)
    lease = Lease(place, settings.engine_name)
    try:
        with place.alone():
            try:
                return _run_job(job, place, settings, plan_files or {}, again, lease)
            finally:
                lease.release()
    except OSError as error:
        refused = full_disk(error, error.filename or place.url)
        if refused is None:
            raise
        raise refused from error


def _run_job(
    job: Job,
    place: Place,
    settings: RunSettings,
    plan_files: Mapping[str, bytes],
    again: bool,
    lease: Lease,
) -> Manifest:
    title = f"{job.stage:<9}"
    if place.exists(f"{NEXT}/{SWAP_NAME}"):
        _hold(place, lease)
        finish_swap(place)
    new = place_for(place, settings.overwrite, (entry["url"] for entry in job.inputs.values()))
    beside = new.url != place.url
    inner = at(job, new) if beside else job
    # It refuses wrong settings before anything is written.
    loop = Loop(inner, new, settings, title, lease)
    if beside:
        _hold(place, lease)
        begin_beside(new, job)
        manifest = _make(loop, inner, new, settings, plan_files)
        swap_in(place, job)
        return manifest

    made = made_before(place, job)
    if made is not None and not again:
        # By another path it is the same, but files and inputs may have moved; a lost plan is
        # written again.
        now = with_new_places(place, job, made) if place.writable() else made
        lost = not (place.exists(PLAN_NAME) and place.exists(JOB_NAME))
        if place.writable() and (plan_files or lost or now is not made):
            write_plan(place, job, plan_files)
        say_made(title, place, made)
        return now

    if not again and readable_manifest(place) is not None:
        text = "files are missing or damaged, they are made again"
        print(f"{title}  {text}: {place.url}", file=sys.stderr)
    return _make(loop, job, place, settings, plan_files)


def _make(
    loop: Loop, job: Job, place: Place, settings: RunSettings, plan_files: Mapping[str, bytes]
) -> Manifest:
    """Do what is missing of a job, and write the manifest. Raises Planned where that is all."""
    started = time.monotonic()
    stopping.during(loop.stop)
    stopping.pass_or_wait()
    new = False
    try:
        _hold(loop.lease.place, loop.lease)
        new = not place.exists(PLAN_NAME)
        write_plan(place, job, plan_files)
        if settings.plan_only:
            raise Planned(job)
        if settings.engine_name == LOCAL:
            workers = min(settings.worker_count, len(job.units))
            say_memory(f"{job.stage:<9}", workers, settings.work_bytes)
        markers = loop.run()
        if place.local and not place.exists(PLAN_NAME):
            raise gone(place)
        sweep(place, loop.lease.run)
        return write_manifest(place, job, markers, time.monotonic() - started, loop.notes)
    except Unreachable:
        raise
    except UserError as error:
        begun = any(place.names(folder) for folder in ("done", PIECES))
        if new and not begun and error.exit_code == 2 and settings.engine_name != LOCAL:
            _take_back(place, plan_files, loop.lease.run)
        raise
    finally:
        stopping.during(None)


def _hold(place: Place, lease: Lease) -> None:
    """Before anything is written: the place must be honest, and no other driver's."""
    refuse_careless_place(place)
    lease.take()


def _take_back(place: Place, plan_files: Mapping[str, bytes], run: str) -> None:
    """Remove what was written for a job that no worker can do as it was set up."""
    sweep(place, run)
    for name in (*plan_files, JOB_NAME, PLAN_NAME):
        place.remove(name)

    place.remove_empty_folder(PLAN_FOLDER)
    if is_beside(place):
        place.empty()
        place.remove_empty_folder("")
