"""A real standalone Spark cluster on loopback: a master and two workers of one core each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipelines.engines.processes import die_with_parent


def missing() -> str:
    """What is missing for Spark here, or ""."""
    try:
        import pyspark  # noqa: F401
    except ImportError:
        return "the package pyspark (RRT_EXTRAS=spark)"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(os.path.join(home, "bin", "java") if home else "java")
    return "" if java else "Java"


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Master and workers, each a JVM of its own process group."""

    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, workers: int = 2) -> None:
        """Start the master and its workers; returns when all are registered."""
        self.port = free_port()
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.master = self._start("master.Master", [*address, "--webui-port", "0"])
        self._until("master.Master", "I have been elected leader")
        for _ in range(workers):
            self.start_worker()

    @property
    def url(self) -> str:
        """For --master."""
        return f"spark://127.0.0.1:{self.port}"

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A further worker of one core."""
        number = len(self.workers)
        work = self.folder / f"work-{number}"
        flags = "--host 127.0.0.1 --cores 1 --memory 2g --webui-port 0 --work-dir"
        process = self._start("worker.Worker", [*flags.split(), str(work), self.url], number)
        self.workers.append(process)
        self._until(f"worker.Worker{number}", "Successfully registered with master")
        return process

    def _start(self, kind: str, arguments: list[str], number: int | str = "") -> subprocess.Popen:
        import pyspark

        home = os.path.dirname(pyspark.__file__)
        environment = {**os.environ, "SPARK_HOME": home, "SPARK_LOCAL_IP": "127.0.0.1"}
        for name in list(environment):
            if name.startswith(
                ("COV_", "COVERAGE_", "AWS_")
            ):  # what executors get is for us to say
                del environment[name]
        environment["SPARK_DAEMON_MEMORY"] = "256m"
        with open(self.folder / f"{kind}{number}.log", "wb") as log:
            return subprocess.Popen(
                [f"{home}/bin/spark-class", f"org.apache.spark.deploy.{kind}", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  a killed suite leaves no cluster
            )

    def _until(self, log: str, words: str) -> None:
        end = time.monotonic() + 60
        path = self.folder / f"{log}.log"
        while words not in path.read_text(errors="replace"):
            assert time.monotonic() < end, path.read_text(errors="replace")
            time.sleep(0.1)

    def executors(self) -> list[psutil.Process]:
        """JVMs of the executors that live."""
        found = []
        for worker in self.workers:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(worker.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if any("CoarseGrainedExecutorBackend" in word for word in child.cmdline()):
                            found.append(child)
        return found

    def pythons(self) -> list[psutil.Process]:
        """Python workers of the executors, their daemons left out."""
        found = []
        for executor in self.executors():
            with contextlib.suppress(psutil.Error):
                for daemon in executor.children():
                    found += daemon.children()
        return found

    def below(self) -> list[psutil.Process]:
        """Executors and their Python, whether their worker lives or not: by where they work."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd().startswith(f"{self.folder}/work-") and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def stop(self) -> None:
        """SIGKILL to all, with their executors."""
        for process in [*self.workers, self.master]:
            below: list[psutil.Process] = []
            with contextlib.suppress(psutil.Error):
                below = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for child in below:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.wait()


@contextlib.contextmanager
def running(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """A cluster while the block runs."""
    cluster = Cluster(folder)
    cluster.start(workers)
    try:
        yield cluster
    finally:
        cluster.stop()


if __name__ == "__main__":  # by hand: python -m tests.support.spark_cluster FOLDER
    with running(Path(sys.argv[1])) as started:
        print(started.url, flush=True)
        signal.pause()
