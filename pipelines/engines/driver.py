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
from pipelines.engines.settings import Planned, RunSettings
from pipelines.jobs.manifests import is_whole, read_manifest, write_manifest
from pipelines.jobs.plan import is_ours, read_plan, refuse_other_recipe, refuse_to_empty, write_plan
from pipelines.storage.local import full_disk
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place, is_http
from schemas.errors import UserError
from schemas.layout import JOB_NAME, PLAN_NAME
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
    if is_http(job.output):
        raise UserError(
            f"{job.output}: nothing can be written there; name a folder, or a place on S3 or GCS"
        )
    place = open_place(job.output)
    try:
        with place.alone():
            return _run_job(job, place, settings, plan_files or {}, again)
    except OSError as error:
        refused = full_disk(error, error.filename or place.url)
        if refused is None:
            raise
        raise refused from error


def _run_job(
    job: Job, place: Place, settings: RunSettings, plan_files: Mapping[str, bytes], again: bool
) -> Manifest:
    title = f"{job.stage:<9}"
    loop = Loop(
        job, place, settings, title
    )  # refuses what is wrong with the settings before anything is emptied
    try:
        manifest = read_manifest(place)
    except UserError:
        manifest = None  # damaged: it is made again from the markers
    if settings.overwrite:
        refuse_to_empty(place, manifest)
        place.empty()
    elif manifest is not None:
        refuse_other_recipe(place, job, manifest.recipe)
        if again:
            pass
        elif is_whole(place, manifest):
            # Listed anew by another path it is the same, but its files may have moved; a lost plan
            # is written again.
            if plan_files or not (place.exists(PLAN_NAME) and place.exists(JOB_NAME)):
                write_plan(place, job, plan_files)
            made = manifest.made_at.replace("T", " ").replace("+00:00", " UTC")
            print(f"{title}  already made ({made}): {place.url}", file=sys.stderr)
            return manifest
        else:
            print(
                f"{title}  files are missing or damaged, they are made again: {place.url}",
                file=sys.stderr,
            )
    started = time.monotonic()
    stopping.during(loop.stop)
    stopping.pass_or_wait()
    try:
        write_plan(place, job, plan_files)
        if settings.plan_only:
            raise Planned(job)
        markers = loop.run()
        sweep(place)
        return write_manifest(place, job, markers, time.monotonic() - started)
    finally:
        stopping.during(None)


def refuse_other(place: Place, job: Job, settings: RunSettings) -> None:
    """Raise UserError where the run would: another recipe's output is there."""
    if settings.overwrite:
        return
    manifest = read_manifest(place)
    planned = read_plan(place) if manifest is None else None
    if manifest is not None or planned is not None:
        refuse_other_recipe(
            place, job, manifest.recipe if manifest else planned.recipe if planned else None
        )
    elif place.has_files(besides="plan") and not is_ours(place):
        raise UserError(f"{place.url} holds files of something else; give an empty or a new folder")
