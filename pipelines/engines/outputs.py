"""An output's beginning and end outside the driver: a stage's next job, and its manifest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

from pipelines.engines.finish_options import Options as FinishOptions
from pipelines.engines.settings import Planned, RunSettings
from pipelines.jobs.attempts import sweep_attempts
from pipelines.jobs.existing_output import is_beside
from pipelines.jobs.lease import read_lease, remove_lease
from pipelines.jobs.manifests import read_manifest, write_manifest
from pipelines.jobs.markers import read_marker
from pipelines.jobs.plan import planned_units
from pipelines.jobs.replacing import back, swap_in
from pipelines.storage.local import is_temporary
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import JobFailed, UserError
from schemas.layout import JOB_NAME, NEXT, PIECES
from schemas.manifest import Manifest
from schemas.plan import Job

Options = TypeVar("Options")


def next_job(
    run: Callable[[Options, RunSettings], object],
    options: Options,
    settings: RunSettings | None = None,
) -> Job | None:
    """A stage's first job that is not finished, its plan written; None where all are finished.

    `run` is the stage's own, such as `pipelines.index.stage.run`. A stage is a chain of jobs: give
    this again when the job is finished. Where `settings` say overwrite, give them to the first call
    alone: with them a job is planned anew, also one that was just finished. Raises UserError as the
    stage does.
    """
    try:
        run(options, replace(settings or RunSettings(), plan_only=True))
    except Planned as planned:
        return planned.job

    return None


def run(options: FinishOptions, _settings: RunSettings = RunSettings()) -> Manifest:
    """The command `finish`. Raises as `finish` does."""
    return finish(options.output)


def summarise(options: FinishOptions, manifest: Manifest) -> None:
    """Say what is finished."""
    print(f"{open_place(options.output).url}: {manifest.counts.inputs:,} inputs; it is finished")


def finish(url: str, wall_seconds: float = 0.0) -> Manifest:
    """Write the manifest of an output whose units are all done; gives the one that is there then.

    Raises UserError where no job was planned there, and JobFailed where units have no valid marker.
    """
    place = open_place(url)
    with place.alone(), _alone_above(place):
        try:
            header = Job.from_json(place.read_record(JOB_NAME).decode())
        except FileNotFoundError:
            swapped = read_manifest(open_place(url.removesuffix(f"/{NEXT}")))
            if swapped is not None and url.endswith(f"/{NEXT}"):
                return swapped
            raise UserError(f"{place.url}: no job was planned there") from None
        except ValueError as error:
            raise UserError(f"{place.url}/{JOB_NAME} is damaged ({error})") from error

        job = replace(header, units=planned_units(place))
        markers = [read_marker(place, job, unit) for unit in job.units]
        valid = [marker for marker in markers if marker is not None]
        if len(valid) < len(markers):
            first = job.units[markers.index(None)].name
            raise JobFailed(
                f"{job.stage}: {len(markers) - len(valid):,} of {len(markers):,} parts of "
                f"{place.url} are not done, the first is {first}; run the pipeline again"
            )

        leased = open_place(back(replace(job, output=place.url))[1].output)
        lease = read_lease(leased)
        run = lease.run if lease is not None and lease.detached else ""
        manifest = read_manifest(place)
        # a runner may call this more than once, and the first call may have died before the swap
        if manifest is None or manifest.recipe_hash != job.recipe_hash:
            sweep(place, run)
            manifest = write_manifest(place, job, valid, wall_seconds)
        if is_beside(place):
            above, final = back(replace(job, output=place.url))
            swap_in(above, final)
        if run:
            remove_lease(leased)
        return manifest


def _alone_above(place: Place) -> AbstractContextManager[None]:
    """Hold the folder of the old output, too, where a new one is made beside it."""
    if not is_beside(place):
        return nullcontext()
    return open_place(place.url.removesuffix(f"/{NEXT}")).alone()


def sweep(place: Place, run: str) -> None:
    """Remove what this run's attempts, and those that were killed, left behind."""
    sweep_attempts(place, run)
    place.remove_folder("errors")

    for folder in ("", "plan", "done", PIECES):
        for name in () if folder and place.is_link(folder) else place.names(folder):
            if is_temporary(name):  # others' files, of whatever suffix, are their own
                place.remove(f"{folder}/{name}" if folder else name)
