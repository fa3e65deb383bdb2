"""The engine of Beam's runners: pipelines of a job's units, submitted by processes of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.engines.local.engine import LocalEngine
from schemas.plan import Unit


class BeamEngine(LocalEngine):
    """All units that wait go to the runner as one pipeline, from a process that submits it.

    That process and what it starts die with the driver.
    """

    def share_size(self, waiting: int) -> int:
        """All, unless a pipeline is under way."""
        return 0 if self.pool.busy() else waiting

    def described(self, share: Sequence[Unit]) -> dict[str, Any]:
        """A share with the runner and its options."""
        return {
            **super().described(share),
            "runner": self.settings.runner,
            "beam_options": list(self.settings.beam_options),
        }

    def look(self) -> None:
        """The submitting process computes nothing: it waits for its runner."""
