"""Ctrl-C and SIGTERM: the workers are killed, one sentence is said, the exit code is 130 or 143.

A thread of its own does it, woken by the interpreter's signal pipe: the main thread may be anywhere
(in an import, in a long call of C, in `Popen`), and nothing of its state is touched. Every output
is safe at any moment by the commit protocol, so that nothing is left to clean.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SENTENCE_SECONDS = 5.0  # a remote place may answer slowly, or never
SENTENCE = "what was finished is in place; the same command goes on from there"

_state: dict[str, Callable[[], str] | None] = {"stop": None, "last": None}
_ending = threading.Event()


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP from now on, those aside that are ignored (nohup)."""
    near, far = socket.socketpair()
    far.setblocking(False)
    signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(near, far), daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def during(stop: Callable[[], str] | None) -> None:
    """Set what is called on a signal: it kills the workers first, then gives the sentence."""
    _state["stop"] = stop


def at_the_end(last: Callable[[], str] | None) -> None:
    """Set what is called on a signal after that: it cleans up, and its sentence counts instead."""
    _state["last"] = last


def pass_or_wait() -> None:
    """To be called before new work begins: once a signal has come, nothing begins any more."""
    while _ending.is_set():
        time.sleep(1.0)


def _listen(near: socket.socket, _far: socket.socket) -> None:
    while True:
        for number in near.recv(16):
            if number in SIGNALS:
                _end(number)


def _end(number: int) -> None:
    _ending.set()
    said: list[str] = []
    speaker = threading.Thread(
        target=lambda: said.extend(call() for call in _state.values() if call), daemon=True
    )
    speaker.start()
    speaker.join(SENTENCE_SECONDS)
    sentence = said[-1] if said else SENTENCE
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        os.write(2, f"{clear}Stopped: {sentence}.\n".encode(errors="backslashreplace"))

    os._exit(128 + number)
