"""Progress for people: one live line in a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from pipelines.quantities import duration

PLAIN_SECONDS = 10.0


class Progress:
    """done/total, rate and ETA of one job.

    The rate counts what was done since the start of this run.
    """

    def __init__(
        self, title: str, total: int, noun: str, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.title, self.total, self.noun, self.first = title, total, noun, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = time.monotonic()
        self._last = 0.0 if self.live else self.started
        self._shown = False
        # when the first were done: start-up is no part of the rate
        self._begun: tuple[float, int] | None = None

    def show(self, done: int, total: int | None = None) -> None:
        """Show the state, and a total that is known better now; plain lines at most every 10 s."""
        self.total = self.total if total is None else total
        now = time.monotonic()
        if self._begun is None and done > self.first:
            self._begun = now, done

        if now - self._last < (0.2 if self.live else PLAIN_SECONDS):
            return

        self._last = now
        self._write(self._line(done, now))

    def _line(self, done: int, now: float) -> str:
        since, count = self._begun or (now, done)
        rate = (done - count) / (now - since) if now > since else 0.0
        line = f"{self.title}  {done:,}{f'/{self.total:,}' if self.total else ''} {self.noun}"
        if rate > 0 and not self.total:
            line += f"  {rate:,.1f}/s"

        if rate > 0 and done < self.total:
            line += f"  {rate:,.1f}/s  ETA {duration((self.total - done) / rate)}"

        return line

    def _write(self, line: str) -> None:
        if self.live:
            self.stream.write(f"\r\033[K{line}")
            self._shown = True
        else:
            self.stream.write(line + "\n")

        self.stream.flush()

    def clear(self) -> None:
        """Remove the live line."""
        if self.live and self._shown:
            self.stream.write("\r\033[K")
            self.stream.flush()
            self._shown = False

    def finish(self, done: int, remark: str = "") -> None:
        """The last line: what was done and how long it took."""
        self.clear()
        passed = time.monotonic() - self.started
        fresh = max(0, done - self.first)
        rate = f", {fresh / passed:,.1f}/s" if fresh and passed > 0 else ""
        self.stream.write(
            f"{self.title}  {done:,} {self.noun} in {duration(passed)}{rate}{remark}\n"
        )
        self.stream.flush()
