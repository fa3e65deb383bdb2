"""Ctrl-C and SIGTERM: the workers are killed, one sentence is said, the exit code is 130 or 143.

Every output is safe at any moment by the commit protocol, so that nothing is left to clean.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_state: dict[str, Callable[[], str] | None] = {"stop": None}


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _handle)


def during(stop: Callable[[], str] | None) -> None:
    """Set what is called on a signal: it kills the workers and gives the sentence to be said."""
    _state["stop"] = stop


def _handle(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    stop = _state["stop"]
    sentence = stop() if stop else "nothing was under way; the same command starts again"
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    sys.stderr.write(f"Stopped: {sentence}.\n")
    sys.stderr.flush()
    os._exit(128 + number)
