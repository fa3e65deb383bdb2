"""Which tries count against a unit, and what a sweep leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs import attempts
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.worker_process import at_task, process_start, who, work_as
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from tests.support.faulty_worker import faulty_job


@pytest.fixture(autouse=True)
def worker() -> Iterator[None]:
    work_as(run="this", engine="spark", worker="app/1")
    yield
    work_as(run="", engine="local")


@pytest.fixture(scope="module")
def dead() -> dict[str, Any]:
    """A process of this machine that has ended."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    began = process_start(process.pid)
    process.communicate()
    return {"pid": process.pid, "began": began}


def left(place: Place, name: str, about: dict[str, Any] | bytes) -> str:
    """An attempt's file and scratch folder."""
    data = about if isinstance(about, bytes) else json.dumps(about).encode()
    place.write(f"attempts/{name}.json", data)
    place.write(f"attempts/{name}.json.progress", b"{}")
    place.write(f"scratch/{name}/data.bin", b"x")
    return name


def number(place: Place) -> tuple[int, int]:
    """(number, kills) of a new attempt at the unit."""
    job = faulty_job(place.url, "ok")
    attempt = Attempt(place, job, job.units[0])
    attempt.close()
    return attempt.number, attempt.killed


def test_three_attempts_under_way_are_all_the_first(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place = open_place(job.output)
    under_way = [Attempt(place, job, job.units[0]) for _ in range(3)]
    assert [attempt.number for attempt in under_way] == [1, 1, 1]
    about = json.loads(place.read(under_way[0].name))
    assert {"run": "this", "engine": "spark", "worker": "app/1", "pid": os.getpid()}.items() <= (
        about.items()
    )
    assert about["host"] and about["began"] == process_start(os.getpid())
    under_way[0].close(failed=True)
    under_way[1].close()
    assert number(place) == (2, 0), "one has failed, one has ended well, one is under way"


WAYS = {
    "died here": ({}, True),
    "another host's": ({"host": "far.away"}, False),
    "of an id that is another process now": ({"pid": os.getpid()}, True),
    "of another boot or container": ({"began": "a/b/3"}, False),
    "another run's on a cluster, cancelled with it": ({"run": "other"}, False),
    "another run's, and noted as dead": ({"run": "other", "dead": True}, True),
    "another run's local worker": ({"run": "other", "engine": "local", "host": "far.away"}, True),
    "an older version's": ({"run": None}, True),
    "a former try at the same task": (
        {"host": "far.away", "task": "app/1/3", "task_attempt": 0},
        True,
    ),
    "a later try at the same task": (
        {"host": "far.away", "task": "app/1/3", "task_attempt": 2},
        False,
    ),
    "a try at another task": ({"host": "far.away", "task": "app/1/4", "task_attempt": 0}, False),
}


@pytest.mark.parametrize(("changes", "counts"), WAYS.values(), ids=WAYS)
def test_what_counts(
    changes: dict[str, Any], counts: bool, dead: dict[str, Any], tmp_path: Path
) -> None:
    at_task("app/1/3", 1)
    place = open_place(str(tmp_path))
    about = {**who().to_record(), "task": "", **dead, **changes}
    if about["run"] is None:
        about = {"pid": dead["pid"], "host": about["host"]}
    left(place, "part-00000.0123456789ab", about)
    left(place, "part-000000.0123456789ab", {**about, "failed": True})  # another unit's
    assert number(place) == (1 + counts, 0)
    place.write("attempts/part-00000.0123456789ab.json", json.dumps({"killed": True}).encode())
    assert number(place) == (1, 1)


def test_a_sweep_leaves_what_may_be_in_use(dead: dict[str, Any], tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    me = who().to_record()
    far = {**me, "run": "other", "host": "far.away", "at": time.time()}
    kept = {
        left(place, "part-00000.000000000001", far),
        left(place, "part-00000.000000000002", {**me, "run": "other", "at": time.time()}),
    }
    left(place, "part-00000.000000000003", {**far, "at": time.time() - 25 * 3600})
    left(place, "part-00000.000000000004", {**far, "run": "mine"})
    left(place, "part-00000.000000000005", {**far, "engine": "local"})
    left(place, "part-00000.000000000006", {**far, "failed": True})
    left(place, "part-00000.000000000007", b"no JSON")
    (tmp_path / "scratch/part-00000.000000000008").mkdir()
    place.write("scratch/part-00000.000000000009/x/y", b"")
    place.write("scratch/notes/mine.txt", b"")
    place.write("attempts/notes.txt", b"")
    attempts.sweep_attempts(place, "mine")
    assert {*place.folders("scratch")} == {*kept, "notes"}
    files = {name for one in kept for name in (f"{one}.json", f"{one}.json.progress")}
    assert {*place.names("attempts")} == {*files, "notes.txt"}


def test_a_cancelled_run_forgets_what_was_under_way(dead: dict[str, Any], tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    far = {**who().to_record(), "host": "far.away"}
    left(place, "part-00000.000000000001", far)
    left(place, "part-00000.000000000002", {**far, "failed": True})
    left(place, "part-00000.000000000003", {**far, "run": "other"})
    left(place, "part-00000.000000000004", {**who().to_record(), **dead, "run": "x"})
    attempts.forget(place, "this", {dead["pid"]})
    ends = [name.removesuffix(".json")[-1] for name in place.names("attempts") if name[-1] == "n"]
    assert ends == ["2", "3"]


def test_scratch_in_temporary_folders_goes_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = attempts.temporary_scratch()
    script = "import sys; from pipelines.jobs import attempts; print(attempts.temporary_scratch())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "rrt-attempt-mine").mkdir()
    assert Path(done.stdout.strip()).is_dir() and Path(own).is_dir(), "a living one's stays"
    attempts._remove_old_scratch.cache_clear()
    attempts.temporary_scratch()
    assert not Path(done.stdout.strip()).exists()
    assert Path(own).is_dir() and (tmp_path / "rrt-attempt-mine").is_dir()
