"""The driver's loop: runs rounds over the units that have no marker until none is missing.

The markers, not Beam, say what is done. A round is a child process group that is watched from outside: when a
worker dies, the group is killed and the next round goes on. After three rounds without a new marker the job
ends with one sentence; all finished units stay in place. The manifest is written here, last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines import stopping
from pipelines.commit import (
    Job,
    Unit,
    marker_name,
    read_manifest,
    read_marker,
    refuse_other_recipe,
    write_manifest,
    write_plan,
)
from pipelines.options import option
from pipelines.processes import PARENT_VARIABLE, thread_environment
from pipelines.progress import Progress
from pipelines.storage import Place
from schemas.errors import UserError
from schemas.manifest import Manifest

ROUNDS_WITHOUT_MARKER = 3
GRACE_SECONDS = 3.0  # a worker gone for longer, while its round goes on, died
LOCAL = "local"


@dataclass(frozen=True)
class RunSettings:
    """How to run, never what: none of these changes bytes."""

    runner: str = option("local, or a Beam runner such as SparkRunner or DataflowRunner", LOCAL)
    workers: int = option("worker processes of the local runner; 0: one a core", 0)
    threads_per_worker: int = option("threads that torch, faiss and OpenCV get in a worker", 1)
    overwrite: bool = option("make outputs again that another recipe made", False)
    beam_options: tuple[str, ...] = option("Beam's own options (any --flag that is not known here is one)", ())

    @property
    def worker_count(self) -> int:
        """Worker processes of the local runner."""
        if self.workers:
            return self.workers
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class JobFailed(Exception):
    """A job could not be finished: one sentence. Exit code 1; finished units stay."""


def run_job(job: Job, settings: RunSettings) -> Manifest:
    """Fill the job's folder; gives its manifest. Skips at once where it is finished by the same recipe.

    Raises UserError (another recipe's output is there, bad input) and JobFailed.
    """
    place = Place(job.output)
    title = f"{job.stage:<9}"
    manifest = read_manifest(place)
    if manifest is not None and manifest.recipe_hash == job.recipe_hash and not settings.overwrite:
        made = manifest.made_at.replace("T", " ").replace("+00:00", " UTC")
        print(f"{title}  already made ({made}): {place.url}", file=sys.stderr)
        return manifest
    if settings.overwrite and place.exists():
        place.remove_all()
    write_plan(place, job)
    refuse_other_recipe(place, job)
    started = time.monotonic()
    Loop(job, place, settings, title).run()
    markers = [marker for unit in job.units if (marker := read_marker(place, job, unit)) is not None]
    manifest = write_manifest(place, job, markers, time.monotonic() - started)
    for folder in ("scratch", "attempts", "errors"):
        place.below(folder).remove_all()
    return manifest


class Loop:
    """Rounds of one job."""

    def __init__(self, job: Job, place: Place, settings: RunSettings, title: str) -> None:
        self.job, self.place, self.settings, self.title = job, place, settings, title
        self.by_marker = {marker_name(unit).rsplit("/", 1)[-1]: unit for unit in job.units}
        self.total = sum(unit.inputs for unit in job.units)
        self.child: subprocess.Popen[bytes] | None = None
        self.pause = 0.25 if place.local else 3.0
        self.folder = self.log = ""

    def run(self) -> None:
        """Rounds until nothing is missing. Raises UserError or JobFailed."""
        missing = self.missing(deep=True)
        finished = self.total - sum(unit.inputs for unit in missing)
        progress = Progress(self.title, self.total, self.job.noun, finished)
        self.folder = tempfile.mkdtemp(prefix="rrt-job-")
        self.log = str(Path(self.folder, "round.log"))
        keep_log = False
        fruitless = 0
        stopping.during(self._stop)
        try:
            while missing:
                reason = self._round(missing, progress)
                progress.clear()
                left = self.missing(deep=True)
                self._raise_final_errors(left)
                fruitless = fruitless + 1 if len(left) == len(missing) else 0
                missing = left
                if missing and fruitless >= ROUNDS_WITHOUT_MARKER:
                    raise JobFailed(self._failure(missing, reason))
            progress.finish(self.total)
        except JobFailed:
            keep_log = True  # its sentence names the log
            raise
        finally:
            self._kill()
            stopping.during(None)
            if not keep_log:
                shutil.rmtree(self.folder, ignore_errors=True)

    def missing(self, deep: bool = False) -> list[Unit]:
        """Units without a marker; `deep` also reads each marker and looks for its files."""
        there = set(self.place.names("done"))
        return [
            unit
            for name, unit in self.by_marker.items()
            if name not in there or (deep and read_marker(self.place, self.job, unit) is None)
        ]

    def _round(self, missing: list[Unit], progress: Progress) -> str:
        """One round over the missing units; gives why it ended."""
        spec = Path(self.folder, "round.json")
        spec.write_text(
            json.dumps(
                {
                    "job": self.job.to_json(missing),
                    "runner": self.settings.runner,
                    "workers": self.settings.worker_count,
                    "threads": self.settings.threads_per_worker,
                    "beam_options": list(self.settings.beam_options),
                }
            )
        )
        for unit in missing:
            self.place.remove(f"errors/{unit.name}.json")
            self.place.remove(marker_name(unit))  # one that is not valid would hide that the unit is missing
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "pipelines.round", str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment(),
            )
        return self._watch(progress)

    def _environment(self) -> dict[str, str]:
        root = str(Path(__file__).resolve().parent.parent)
        search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            **thread_environment(self.settings.threads_per_worker),
            "PYTHONPATH": os.pathsep.join(search),
            "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "ERROR"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            PARENT_VARIABLE: str(os.getpid()),
        }

    def _watch(self, progress: Progress) -> str:
        """Poll markers and processes until the round ends, a worker dies or all markers are there."""
        assert self.child is not None
        workers: dict[int, psutil.Process] = {}
        gone_since: float | None = None
        while True:
            time.sleep(self.pause)
            left = self.missing()
            progress.show(self.total - sum(unit.inputs for unit in left) + self._partly_done(left))
            if not left and self.settings.runner == LOCAL:
                self._kill()  # Beam's own end takes seconds and has nothing to add
                return ""
            code = self.child.poll()
            if code is not None:
                self._kill()
                return "" if code == 0 else f"its process ended with {_exit_words(code)}"
            if self.settings.runner != LOCAL:
                continue
            self._find_workers(workers)
            dead = [pid for pid, process in workers.items() if not _alive(process)]
            if not dead:
                gone_since = None
            elif gone_since is None:
                gone_since = time.monotonic()
            elif time.monotonic() - gone_since > GRACE_SECONDS:
                self._kill()
                return "a worker process died"

    def _find_workers(self, workers: dict[int, psutil.Process]) -> None:
        assert self.child is not None
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.child.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in workers and "pipelines.worker" in process.cmdline():
                        workers[process.pid] = process

    def _partly_done(self, left: list[Unit]) -> int:
        """Inputs done in units under way, as their attempts tell (local places only)."""
        if not self.place.local:
            return 0
        names = {unit.name: unit.inputs for unit in left}
        done = 0
        for name in self.place.names("attempts"):
            if name.endswith(".progress") and name.split(".")[0] in names:
                with contextlib.suppress(OSError, ValueError):
                    done += min(int(self.place.read(f"attempts/{name}")), names[name.split(".")[0]])
        return done

    def _kill(self) -> None:
        """Kill the round's process group, and forget the attempts of those who did not die by themselves."""
        if self.child is None:
            return
        alive = {self.child.pid} if self.child.poll() is None else set()
        with contextlib.suppress(psutil.Error):
            alive |= {process.pid for process in psutil.Process(self.child.pid).children(recursive=True) if _alive(process)}
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.child = None
        for name in self.place.names("attempts"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                if name.endswith(".json") and json.loads(self.place.read(f"attempts/{name}"))["pid"] in alive:
                    self.place.remove(f"attempts/{name}")
                    self.place.remove(f"attempts/{name}.progress")

    def _stop(self) -> str:
        """For a signal: kill the round, say what is in place."""
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        done = len(self.job.units) - len(self.missing())
        return (
            f"{done:,} of {len(self.job.units):,} parts of {self.place.url} are in place; "
            "the same command goes on from there"
        )

    def _errors(self, units: list[Unit]) -> list[dict[str, object]]:
        records = []
        for unit in units:
            with contextlib.suppress(FileNotFoundError, ValueError):
                records.append(json.loads(self.place.read(f"errors/{unit.name}.json")))
        return records

    def _raise_final_errors(self, left: list[Unit]) -> None:
        for record in self._errors(left):
            if record["final"]:
                raise UserError(str(record["sentence"]))

    def _failure(self, missing: list[Unit], reason: str) -> str:
        errors = self._errors(missing)
        why = str(errors[0]["sentence"]) if errors else reason or "no marker appeared"
        done = len(self.job.units) - len(missing)
        return (
            f"{self.job.stage}: {missing[0].name} failed {ROUNDS_WITHOUT_MARKER} times in a row: {why} "
            f"({done:,} of {len(self.job.units):,} parts of {self.place.url} are in place; log: {self.log})"
        )


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
