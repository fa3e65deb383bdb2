"""The work of one job: assigns unfinished units to workers until all are done."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from pipelines.engines.assignments import Assignments
from pipelines.engines.choice import make_engine
from pipelines.engines.counts import Shortfall
from pipelines.engines.engine import Ended, Engine
from pipelines.engines.judge import Judge
from pipelines.engines.progress import Progress
from pipelines.engines.settings import LOCAL, RunSettings
from pipelines.engines.under_way import Watch
from pipelines.engines.workers.samples import sample_inputs
from pipelines.engines.workers.ticket import Ticket
from pipelines.engines.workers.versions import own_versions
from pipelines.jobs import attempts
from pipelines.jobs.lease import Lease
from pipelines.storage.protocol import Place
from schemas.errors import JobFailed, Unreachable, UserError
from schemas.manifest import Marker, Note
from schemas.plan import Job, Unit


class Loop:
    """Workers at one job: assigns, looks, and leaves to the judge what failures mean."""

    def __init__(
        self, job: Job, place: Place, settings: RunSettings, title: str, lease: Lease
    ) -> None:
        self.job, self.place, self.settings, self.title = job, place, settings, title
        self.lease = lease
        self.assignments, self.totals = Assignments(place, job), Shortfall(job)
        self.made = make_engine(job, place, settings)  # not started: it refuses wrong settings
        self.engine: Engine | None = None
        self.notes: dict[str, Note] = {}  # deaths and stalls of workers, for the manifest

    def run(self) -> list[Marker]:
        """Work until all is done; gives the markers in the order of the units.

        Raises UserError or JobFailed.
        """
        self._collect(self.job.units)
        first = self.totals.done + self.assignments.done_in_pieces()
        progress = Progress(self.title, self.totals.total, self.job.noun, first)
        try:
            self._work(progress)
        except BaseException as error:
            progress.clear()
            if self.engine is not None:
                killed = self.engine.cancel()
                self.engine.close(keep_log=isinstance(error, JobFailed))
                if not isinstance(error, Unreachable):  # else it would be waited for once more
                    attempts.forget(self.place, self.lease.run, killed)

            raise

        failed = self.totals.counts.failed
        progress.finish(self.totals.done, f", {failed:,} failed" if failed else "")
        return [self.assignments.finished[unit.name] for unit in self.job.units]

    def _work(self, progress: Progress) -> None:
        judge = Judge(self.assignments, self.totals)
        if self.assignments.waiting or self.assignments.last:
            if self.place.url.startswith("memory://"):
                raise UserError(
                    f"{self.place.url}: no worker process sees what is in this one's memory; name "
                    f"a folder, or a place on S3 or GCS"
                )
            for name in self.place.names("errors"):
                self.place.remove(f"errors/{name}")

            self.engine = self.made
            self.engine.ticket = self._ticket().to_json()
            self.engine.start()
            judge.log = self.engine.log
            self._watch(self.engine, judge, progress)
            self.engine.rest()

        judge.end_at_many_failures({})
        judge.end_at_bad_inputs()

    def _ticket(self) -> Ticket:
        """What this job's workers must prove."""
        stall_seconds = 60 * self.settings.stall_minutes
        if self.settings.engine_name == LOCAL:  # they are children of this process, and end with it
            return Ticket(self.lease.run, LOCAL, stall_seconds=stall_seconds)

        return Ticket(
            run=self.lease.run,
            engine=self.settings.engine_name,
            lease=self.lease.place.url,
            versions=own_versions(),
            inputs=sample_inputs(self.job),
            lease_seconds=0.0 if self.settings.detach else self.lease.seconds,
            stall_seconds=stall_seconds,
        )

    def _watch(self, engine: Engine, judge: Judge, progress: Progress) -> None:
        """Until nothing waits and nothing is under way."""
        watch = Watch(self.place)
        pause = 0.5 if self.place.local else 3.0
        looked = 0.0
        while self._assign(engine):
            for ended in engine.wait(pause):
                if ended.dead or ended.excused:
                    self._say_end(ended, progress)
                judge.share_ended(ended, self._collect(ended.share))

            if time.monotonic() - looked >= pause:
                under_way = watch.look(engine.under_way())
                progress.show(*self.totals.progress(under_way))
                self.lease.check()
                judge.end_at_mistakes()
                judge.end_at_many_failures(under_way)
                engine.look()
                looked = time.monotonic()

    def _say_end(self, ended: Ended, progress: Progress) -> None:
        """Say and count that a worker, or a server, ended with a share, which is assigned again."""
        if ended.dead:
            what = "workers_stalled" if ended.stalled else "workers_ended"
            self.notes[what] = int(self.notes.get(what, 0)) + 1
        more = f" and {len(ended.share) - 1:,} more" if len(ended.share) > 1 else ""
        progress.clear()
        print(
            f"{self.title}  {ended.problem} at {ended.share[0].name}{more}; what it has not done "
            f"is assigned again",
            file=sys.stderr,
        )

    def _collect(self, units: Sequence[Unit]) -> list[Unit]:
        """Take over the markers of units, and add them up; gives the units that are not done."""
        unfinished = self.assignments.collect(units)
        for unit in units:
            if unit.name in self.assignments.finished:
                self.totals.add(unit, self.assignments.finished[unit.name])

        return unfinished

    def _assign(self, engine: Engine) -> bool:
        """Give the engine shares of what waits, as many as it takes; whether any is under way."""
        self.assignments.release_last()
        while size := engine.share_size(len(self.assignments.waiting)):
            engine.begin(self.assignments.next_share(size))

        return bool(engine.under_way())

    def stop(self) -> str:
        """For a signal, in a thread of its own: end the work, say what is in place."""
        goes_on = self.settings.detach and self.engine is not None
        if self.engine is not None:
            killed = self.engine.cancel()
            if not goes_on:
                attempts.forget(self.place, self.lease.run, killed)
            self.engine.remove_leftovers()

        if goes_on:
            self.lease.detach()
        else:
            self.lease.release()

        units = {unit.name for unit in self.job.units}
        done = {name.removesuffix(".json") for name in self.place.names("done")} & units
        then = (
            f"workers go on; when they are done, 'finish {self.place.url}' writes the manifest"
            if goes_on
            else "the same command goes on from there"
        )
        return f"{self.assignments.in_place(len(done))}; {then}"
