"""A process of the driver (``python -m pipelines.engines.beam.submitter``) that submits shares.

Each share is a pipeline on a Beam runner. On Prism the process has a worker pool of its own, which
stays for its next share. It, and whatever a runner started for it, dies with the driver.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from typing import Any

from pipelines.engines.local.pool import exit_words
from pipelines.engines.local.worker import serve
from pipelines.engines.processes import PARENT_VARIABLE, die_with_parent, kill_group_at_end
from pipelines.engines.workers.stall_watch import stood_still
from pipelines.jobs.attempts import forget_processes
from pipelines.storage.place import open_place
from schemas.plan import Job

DEATH_SECONDS = 2.0  # from a runner's word that a worker is lost to the end of its process


class Submitter:
    """Shares one after the other, and the worker pool that does them."""

    def __init__(self) -> None:
        self._workers: subprocess.Popen[bytes] | None = None
        self._endpoint = ""

    def do(self, share: dict[str, Any]) -> dict[str, Any]:
        """Run a share's pipeline to its end; gives what the driver reads (`Ended`)."""
        if share["own_workers"]:
            self._start_workers()  # beside the imports here, which take as long as its own
        from pipelines.engines.beam.submission import explained, run_share

        options = list(share["options"])
        if share["own_workers"]:
            options += ["--environment_type=EXTERNAL", f"--environment_config={self._listening()}"]

        job = Job.from_json(share["job"])
        try:
            run_share(job, share["threads"], options, share["ticket"])
        except Exception as error:  # noqa: BLE001  as in `serve`
            traceback.print_exc()
            return {**explained(error), **self._end_workers(job)}

        return {"problem": ""}

    def close(self) -> None:
        """End the worker pool."""
        if self._workers is not None:
            self._workers.kill()
            self._workers.wait()

    def _start_workers(self) -> None:
        """Start the worker pool, where none lives."""
        if self._workers is None or self._workers.poll() is not None:
            self._endpoint = ""
            self._workers = subprocess.Popen(
                [sys.executable, "-m", "pipelines.engines.beam.worker_pool"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            )

    def _listening(self) -> str:
        """Where the worker pool listens, when it does."""
        assert self._workers is not None and self._workers.stdout is not None
        if not self._endpoint:
            with self._workers.stdout as answer:
                self._endpoint = answer.readline().decode().strip()
            if not self._endpoint:
                raise RuntimeError(f"a worker pool ended with code {self._workers.wait()}")

        return self._endpoint

    def _end_workers(self, job: Job) -> dict[str, Any]:
        """After a pipeline that failed: what became of the worker pool, which may still be at it.

        Nothing speaks against the units of one that lives, and is killed here.
        """
        workers, self._workers = self._workers, None
        if workers is None:
            return {}

        try:
            code = workers.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            workers.kill()
            workers.wait()
            forget_processes(open_place(job.output), {workers.pid})
            return {}

        stalled = stood_still(tempfile.gettempdir(), workers.pid)
        what = "stood still" if stalled else f"ended with {exit_words(code)}"
        return {
            "problem": f"a worker process {what}",
            "dead": [workers.pid],
            "killed": code == -signal.SIGKILL and not stalled,
            "stalled": stalled,
        }


if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")) or None)
    kill_group_at_end()
    submitter = Submitter()
    try:
        serve(submitter.do)
    finally:
        submitter.close()
