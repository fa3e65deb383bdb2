"""A child process that describes images one by one: what kills it is known by name."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.engines.processes import (
    PARENT_VARIABLE,
    die_with_parent,
    limit_threads,
    thread_environment,
)
from schemas.errors import Unreachable, UserError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pipelines.extract.describer import Described
    from pipelines.sources.item import Item


# an image that takes longer is given up; shorter than the driver's patience with a worker
ANSWER_SECONDS = 300.0
PAUSES = (1.0, 5.0, 20.0)  # seconds before an image is tried again whose child the system killed


class Crashed(Exception):
    """The child died on an image, or had to be killed; the text says how."""


class KilledBySystem(Exception):
    """The child was killed by SIGKILL, again and again, and not by us: no fault of the image."""


class DescribingFailed(Exception):
    """An exception in the child; the text names it."""


@dataclass(frozen=True)
class _Raised:
    """What the child raised.

    A user's mistake, and a place that does not answer, stay what they are.
    """

    words: str
    kind: type[Exception] = DescribingFailed

    @staticmethod
    def of(error: Exception) -> _Raised:
        if isinstance(error, UserError):
            return _Raised(str(error), Unreachable if isinstance(error, Unreachable) else UserError)
        return _Raised(f"{type(error).__name__}: {error}")


class Isolated:
    """Describes images in a child that is started again after each crash."""

    def __init__(
        self, options: dict[str, Any], threads: int, seconds: float = ANSWER_SECONDS
    ) -> None:
        self.options, self.threads, self.seconds = options, threads, seconds
        self.process: Any = None
        self.pipe: Any = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def describe(self, item: Item) -> Described:
        """What became of the image.

        Raises Crashed where the child died, and what it raised as DescribingFailed; but a
        UserError, such as Unreachable, as itself: it says nothing of the image. Where the system
        kills the child, most likely for want of memory, the image is tried again, and
        KilledBySystem raised in the end.
        """
        for pause in PAUSES:
            with contextlib.suppress(KilledBySystem):
                return self._describe(item)
            time.sleep(pause)
        return self._describe(item)

    def _describe(self, item: Item) -> Described:
        if self.process is None:
            self._start()

        try:
            self.pipe.send(item)
            if not self.pipe.poll(self.seconds):
                self._end()
                raise Crashed(f"no answer for {self.seconds:g} seconds")
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self._end()
            if code == -signal.SIGKILL:
                raise KilledBySystem(
                    f"describing {item.reference.record_id} alone was ended by SIGKILL "
                    f"{len(PAUSES) + 1} times, most likely for want of memory: give fewer --workers"
                ) from None
            raise Crashed(signal.Signals(-code).name if code < 0 else f"exit code {code}") from None

        if isinstance(answer, _Raised):
            raise answer.kind(answer.words)
        described: Described = answer
        return described

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        os.environ.update(thread_environment(self.threads))
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        self.pipe, far = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(far, self.options, self.threads), daemon=True
        )
        self.process.start()
        far.close()

        try:
            problem: _Raised | None = self.pipe.recv()
        except EOFError:
            problem = _Raised("it died while it started")
        if problem is not None:
            self._end()
            if issubclass(problem.kind, UserError):
                raise problem.kind(problem.words)
            raise RuntimeError(f"the process that describes images one by one: {problem.words}")

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = self.pipe = None


def _serve(pipe: Connection, options: dict[str, Any], threads: int) -> None:
    die_with_parent(int(os.environ[PARENT_VARIABLE]))
    from pipelines.extract.describer import Describer

    try:
        describer = Describer(options)
        limit_threads(threads)
    except Exception as error:  # noqa: BLE001  whatever an extractor raises goes to the parent
        pipe.send(_Raised.of(error))
        return

    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return

        try:
            answer: Described | _Raised = describer.describe_alone(item)
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            answer = _Raised.of(error)
        pipe.send(answer)
