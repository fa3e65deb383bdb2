"""Fixtures of the pipeline's tests: commands that are watched, and pictures made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import end_workers
from tests.support.pictures import save_scenes
from tests.support.s3_server import S3Server
from tests.support.watching import EXTRACTOR, Running


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """`start(*arguments, **environment)` starts a command; whatever lives at the end of the test is
    killed.
    """
    started: list[Running] = []

    def begin(*arguments: object, **environment: str) -> Running:
        running = Running([str(argument) for argument in arguments], environment, tmp_path)
        started.append(running)
        return running

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.kill_all()


@pytest.fixture(scope="module")
def workers_end() -> Iterator[None]:
    """The workers stay for all tests of the module, and end with them."""
    yield
    end_workers()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes with three shots each; ground_truth.json beside the folder asks for the first of
    four scenes.
    """
    folder = tmp_path_factory.mktemp("data") / "photographs"
    folder.mkdir()
    names = save_scenes(folder, [f"{scene:02}" for scene in range(10)])
    queries = [
        {
            "name": f"{scene:02}_0.png",
            "box": None,
            "easy": [3 * scene + 1],
            "hard": [3 * scene + 2],
            "junk": [3 * scene],
        }
        for scene in range(4)
    ]
    record = {
        "schema": "rrt-ground-truth/1",
        "name": "scenes",
        "gallery": names,
        "queries": queries,
    }
    (folder.parent / "ground_truth.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def configuration(photographs: Path) -> Path:
    """A configuration of all stages that needs no network's weights."""
    path = photographs.parent / "all.yaml"
    text = {
        "images": str(photographs),
        "ground_truth": str(photographs.parent / "ground_truth.json"),
        "extract": {"extractor": EXTRACTOR, "rows_per_part": 5},
        "rerank": {"reranker": "mutual_nn", "shortlist": 5, "queries_per_unit": 2},
    }
    path.write_text(json.dumps(text))  # JSON is YAML
    return path


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    """A real S3 server with a bucket; skipped where its packages (extra `dev`) are absent."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, and the environment by which this process and its children find it, through the
    proxy.
    """
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    s3_session.proxy.cut()
    return s3_session
