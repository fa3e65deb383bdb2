"""Beam's own runner of one machine, Prism: where its program is, and the server that we start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from apache_beam.version import __version__ as beam_version

from pipelines.engines.processes import PARENT_VARIABLE
from schemas.errors import JobFailed, UserError

VARIABLE = "RRT_PRISM"
START_SECONDS = 30.0
MOST_STARTS = 4  # for one job: what ends it so often will end it again


def find_prism(location: str = "") -> str:
    """The path of Prism's program: `location` (--prism_location), else RRT_PRISM, else the PATH.

    It is never downloaded. Raises UserError where there is none.
    """
    named = location or os.environ.get(VARIABLE, "")
    program = shutil.which(named or "prism")
    if program is not None:
        return os.path.abspath(program)

    what = f"{named} is no program" if named else "no program prism is on the PATH"
    raise UserError(
        f"PrismRunner needs Prism, and {what}: "
        f"`GOBIN=$HOME/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}` "
        f"makes it in some minutes; then set {VARIABLE}=$HOME/bin/prism"
    )


class Prism:
    """A server of Prism that dies with this process; another one is started where it has ended.

    log          file that its messages are added to
    environment  of its process, and of what it starts
    """

    def __init__(self, program: str, log: str, environment: dict[str, str]) -> None:
        self.program, self.log, self.environment = program, log, environment
        self.starts = 0
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def endpoint(self) -> str:
        """Where it listens, as HOST:PORT. Raises UserError or JobFailed where it does not start."""
        while not self.alive:
            if self.starts >= MOST_STARTS:
                raise JobFailed(f"Prism ended {self.starts} times; its log: {self.log}")
            self._start()

        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it; fit for any thread."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self.starts += 1
        self.port = _free_port()
        options = [f"--job_port={self.port}", "--serve_http=false", "--log_kind=text"]
        options.append("--log_level=warn")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.engines.processes", self.program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**self.environment, PARENT_VARIABLE: str(os.getpid())},
            )

        until = time.monotonic() + START_SECONDS
        while self.alive and not answers("127.0.0.1", self.port, 0.2):
            if time.monotonic() > until:
                self.stop()
            time.sleep(0.02)

        if not self.alive and self.starts >= 2:
            last = Path(self.log).read_text(errors="replace").strip().rpartition("\n")[2]
            raise UserError(
                f"{self.program} does not start as Prism ({last[:200]}); correct {VARIABLE}"
            )


def answers(host: str, port: int, seconds: float) -> bool:
    """Whether something accepts a connection there, within the time."""
    try:
        socket.create_connection((host, port), seconds).close()
    except (OSError, ValueError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
