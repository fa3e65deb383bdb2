"""Prism, Beam's own portable runner: shares with a worker pool each, and what kills leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.engines.beam.prism import VARIABLE, Prism, answers, find_prism
from schemas.errors import UserError
from tests.support.clusters import (
    PRISM,
    content,
    done,
    extract,
    on_prism,
    pools,
    prisms,
    workers_of,
)
from tests.support.command_line import command
from tests.support.watching import Running, wait_for

needs_prism = pytest.mark.skipif(
    not PRISM, reason=f"Prism is missing: {VARIABLE} names its program, which .ci/run makes"
)
# seconds: a worker whose driver is silent ends itself
LEASE = {"RRT_LEASE_SECONDS": "6"}
ROOT = Path(__file__).resolve().parents[3]
Start = Callable[..., Running]


@pytest.fixture(scope="module")
def local(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The content that the local engine makes."""
    out = tmp_path_factory.mktemp("local") / "store"
    ended = command(*extract(photographs, out, "--workers", "1"))
    assert ended.code == 0, ended.said
    return content(out)


@needs_prism
def test_two_shares_with_a_worker_pool_each(
    start: Start, photographs: Path, local: str, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    running = start(*extract(photographs, out, *on_prism(), seconds=0.2))
    running.until(lambda: len(pools(running)) == 2, "two worker pools")
    assert running.end() == 0, running.text
    assert content(out) == local
    workers = workers_of(out)
    assert len(workers) == 2 and {engine for engine, _ in workers} == {"beam"}
    wait_for(lambda: not running.orphans(), "the end of Prism and of the worker pools", 90)
    assert sorted(path.name for path in out.iterdir() if path.name in ("lease", "attempts")) == []


@needs_prism
def test_kills_of_a_worker_and_of_prism(
    start: Start, photographs: Path, local: str, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    running = start(*extract(photographs, out, *on_prism(), seconds=0.5), **LEASE)
    running.until(lambda: done(out) >= 1 and len(pools(running)) == 2, "a unit, two pools")
    pools(running)[0].kill()
    running.until(lambda: "a worker process ended with signal SIGKILL" in running.text, "its word")
    before = done(out)
    running.until(lambda: done(out) > before, "another unit")
    prisms(running)[0].kill()
    assert running.end() == 0, running.text
    assert "Prism ended at part-" in running.text
    assert "Traceback" not in running.text
    assert content(out) == local
    wait_for(lambda: not running.orphans(), "the end of all that it started", 90)


@needs_prism
def test_kill_of_the_driver(start: Start, photographs: Path, local: str, tmp_path: Path) -> None:
    """Nothing of it lives on, and another engine goes on from there."""
    out = tmp_path / "store"
    running = start(*extract(photographs, out, *on_prism(), seconds=0.5), **LEASE)
    running.until(lambda: done(out) >= 1 and len(pools(running)) == 2, "a unit, two pools")
    assert len(prisms(running)) == 1
    running.process.kill()
    wait_for(lambda: not running.orphans(), "the end of all that it started", 30)
    ended = command(*extract(photographs, out, "--workers", "1", seconds=0.5))
    assert ended.code == 0, ended.said
    assert content(out) == local


@needs_prism
def test_sdk_workers_that_prism_starts(photographs: Path, local: str, tmp_path: Path) -> None:
    """As processes of its own, by a program of ours that stands for Beam's boot."""
    out = tmp_path / "store"
    ended = command(
        *extract(photographs, out, *on_prism("--environment_type=PROCESS", "--workers", "1"))
    )
    assert ended.code == 0, ended.said
    assert content(out) == local
    assert len(workers_of(out)) >= 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[object, ...]]:
    """A job server and a worker pool that nobody's command owns, as options of a command."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts `python`
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    prism = Prism(find_prism(), str(tmp_path / "prism.log"), environment)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    module = "apache_beam.runners.worker.worker_pool_main"
    workers = subprocess.Popen(
        [sys.executable, "-m", module, f"--service_port={port}"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: answers("127.0.0.1", port, 0.2), "the worker pool")
    yield (
        *("--runner", "PortableRunner", f"--job_endpoint={prism.endpoint()}"),
        *("--environment_type=EXTERNAL", f"--environment_config=127.0.0.1:{port}"),
    )
    os.killpg(workers.pid, signal.SIGKILL)
    workers.wait()
    prism.stop()


@needs_prism
def test_a_job_server_of_ones_own_goes_on_detached(
    cluster: tuple[object, ...], start: Start, photographs: Path, local: str, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    running = start(*extract(photographs, out, *cluster, "--detach", seconds=0.2))
    running.until(lambda: done(out) >= 1, "a unit")
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 128 + signal.SIGTERM, running.text
    assert "workers go on; when they are done, 'finish " in running.text
    wait_for(lambda: done(out) == 10, "the units of workers that go on")
    wait_for(lambda: command("finish", out).code == 0, "the manifest")
    assert content(out) == local


@needs_prism
def test_a_cluster_takes_back_a_job_whose_command_is_stopped(
    cluster: tuple[object, ...], start: Start, photographs: Path, local: str, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    running = start(*extract(photographs, out, *cluster, seconds=0.3))
    running.until(lambda: done(out) >= 1, "a unit")
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 128 + signal.SIGTERM, running.text
    stopped = done(out)
    time.sleep(2)  # of units that would take a second each
    assert done(out) <= stopped + 1, "a unit that was under way at most"
    ended = command(*extract(photographs, out, "--workers", "1", seconds=0.3))
    assert ended.code == 0, ended.said
    assert content(out) == local


@needs_prism
def test_what_is_no_prism(
    monkeypatch: pytest.MonkeyPatch, photographs: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "/bin/true")
    out = tmp_path / "store"
    ended = command(*extract(photographs, out, *on_prism()))
    assert ended.code == 2, ended.said
    assert "/bin/true does not start as Prism" in ended.said
    assert not list(out.glob("done/*"))


@pytest.mark.parametrize(
    ("location", "what"), [("", "no program prism"), ("/no/prism", "/no/prism")]
)
def test_where_prism_is_missing(location: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=f"{what}.*go install .*/cmd/prism@v"):
        find_prism(location)


def test_prism_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/bin/true")
    assert find_prism() == "/bin/true"
    assert find_prism("/bin/false") == "/bin/false"
