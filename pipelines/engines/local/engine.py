"""The local engine: shares of units to worker processes of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.engines import signals as stopping
from pipelines.engines.assignments import share_size
from pipelines.engines.engine import Ended, Engine
from pipelines.engines.local.pool import Pool, close_pool, shared_pool
from pipelines.engines.settings import RunSettings
from pipelines.storage.protocol import Place
from schemas.plan import Job, Unit


class LocalEngine(Engine):
    """Worker processes, as many as the settings say, each at one share."""

    def __init__(self, job: Job, place: Place, settings: RunSettings) -> None:
        super().__init__(job, place)
        self.settings = settings
        self.workers = settings.worker_count
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """Its processes, since `start`."""
        assert self._pool is not None
        return self._pool

    def start(self) -> None:
        """Take the process's pool: its idle workers stay from the job before."""
        self._pool = shared_pool(self.settings.threads_per_worker)
        self.log = self._pool.log

    def share_size(self, waiting: int) -> int:
        """Ever smaller shares; nothing while all workers are busy."""
        if len(self.pool.busy()) >= self.workers:
            return 0
        return share_size(waiting, self.workers)

    def begin(self, share: Sequence[Unit]) -> None:
        """Give a share to an idle worker, or to a further one."""
        stopping.pass_or_wait()
        idle = self.pool.idle()
        member = idle[0] if idle else self.pool.start()
        self.pool.give(member, share, self.described(share))

    def described(self, share: Sequence[Unit]) -> dict[str, Any]:
        """A share as a worker process reads it."""
        threads = self.settings.threads_per_worker
        return {
            "job": self.job.to_json(share),
            "threads": threads,
            "ticket": self.ticket,
            "stall_seconds": 60 * self.settings.stall_minutes,
        }

    def under_way(self) -> list[Unit]:
        """Units of the shares that workers have."""
        return [unit for member in self.pool.members for unit in member.share]

    def wait(self, seconds: float) -> list[Ended]:
        """The shares that came to an end, and those of workers that died."""
        return self.pool.wait(seconds)

    def look(self) -> None:
        """Workers look after themselves."""

    def cancel(self) -> set[int]:
        """SIGKILL to all workers with their groups."""
        return self._pool.signal_all() if self._pool else set()

    def rest(self) -> None:
        """The workers stay, but for those that hold much memory."""
        self.pool.retire_large()

    def close(self, *, keep_log: bool = False) -> None:
        """End the workers."""
        close_pool(keep_log=keep_log)

    def remove_leftovers(self) -> None:
        """The pool's folder."""
        if self._pool:
            self._pool.remove_folder()
