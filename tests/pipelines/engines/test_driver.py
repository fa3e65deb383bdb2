"""The driver's loop: what it does with units that fail, workers that die, and outputs that were
tampered with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.storage.place import open_place
from schemas.errors import JobFailed, UserError
from schemas.manifest import Manifest
from schemas.plan import Job
from tests.support.faulty_worker import faulty_job

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = RunSettings(workers=2)


@pytest.fixture(scope="module", autouse=True)
def end_of_the_workers() -> Iterator[None]:
    """The workers stay for the tests of this module."""
    yield
    pool.close_pool()


def made(tmp_path: Path, *behaviours: str) -> tuple[Job, Manifest]:
    """A job's manifest."""
    job = faulty_job(f"{tmp_path}/out", *behaviours)
    return job, run_job(job, SETTINGS)


def test_all_units_are_done_once_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, manifest = made(tmp_path, *["ok"] * 40)
    assert (manifest.counts.inputs, manifest.counts.succeeded, manifest.parts["files"]) == (
        120,
        120,
        80,
    )
    assert sorted(os.listdir(job.output)) == [
        "data",
        "done",
        "manifest.json",
        "parts.parquet",
        "plain",
        "plan",
    ]
    assert run_job(job, SETTINGS) == manifest
    assert "already made" in capsys.readouterr().err
    assert (
        pool._pool is not None
        and len(pool._pool.members) == 2
        and not any(m.share for m in pool._pool.members)
    )


def test_only_files_of_ours_are_swept(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    run_job(job, SETTINGS)
    out = tmp_path / "out"
    for folder in ("pieces", "scratch/part-00000.0123456789ab"):
        (out / folder).mkdir(parents=True)
    left = [
        "manifest.json",
        "plan/plan.json",
        "done/part-00000.json",
        "pieces/part-00000.00000.json",
    ]
    for name in (
        *(f"{name}.0123456789ab.tmp" for name in left),
        "scratch/part-00000.0123456789ab/x",
        "draft.tmp",
    ):
        (out / name).write_text("")
    os.remove(out / "done/part-00000.json")
    run_job(job, SETTINGS, again=True)
    left_over = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert "draft.tmp" in left_over and [name for name in left_over if name.endswith(".tmp")] == [
        "draft.tmp"
    ]
    assert not (out / "scratch").exists()


def test_an_exception_and_a_death_are_tried_again(tmp_path: Path) -> None:
    _, manifest = made(tmp_path, "ok", "raise_once", "ok", "die_once", "die_once", "ok")
    assert manifest.counts.succeeded == 18


def test_deaths_of_workers_are_said_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, manifest = made(tmp_path, "ok", "die_once", "die_once", "ok")
    lines = [line for line in capsys.readouterr().err.splitlines() if "is assigned again" in line]
    assert len(lines) == manifest.facts["notes"]["workers_ended"] == 2, lines
    assert "a worker process ended with" in lines[0] and "SIGKILL" in lines[0], lines
    assert made(tmp_path / "calm", "ok", "ok")[1].facts.get("notes") is None


def test_a_unit_that_fails_three_times_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        JobFailed
    ) as failure:  # one worker: with two, the others' units may not be done by then
        run_job(faulty_job(f"{tmp_path}/out", "ok", "ok", "raise", "ok"), RunSettings(workers=1))
    said = str(failure.value)
    assert said.startswith(
        "test: part-00002 failed 3 times: ValueError: no good: part-00002 (3 of 4 parts of "
    )
    log = Path(said.split("log: ")[1].rstrip(")"))
    assert log.read_text().count("ValueError: no good") >= 3
    shutil.rmtree(log.parent)


def test_a_unit_that_crashes_its_worker_three_times_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(
        JobFailed, match="part-00001 failed 3 times: a worker process ended with signal SIGSEGV"
    ):
        made(tmp_path, "ok", "crash")


def test_a_unit_whose_worker_the_system_kills_has_further_tries(tmp_path: Path) -> None:
    said = "part-00001 failed 6 times: a worker process ended with signal SIGKILL, most likely"
    with pytest.raises(JobFailed, match=said):
        made(tmp_path, "ok", "die")
    left = [json.loads(path.read_text()) for path in (tmp_path / "out/attempts").glob("*.json")]
    assert len(left) == 6 and all(about["killed"] for about in left)


def test_a_users_mistake_ends_the_job_at_once(tmp_path: Path) -> None:
    run_job(faulty_job(f"{tmp_path}/warm", *["ok"] * 4), SETTINGS)
    started = time.monotonic()
    with pytest.raises(UserError, match="part-00001: mend your settings"):
        made(tmp_path, "wait", "user_error")
    assert time.monotonic() - started < 30, "the unit that waits an hour is not waited for"
    assert list((tmp_path / "out/attempts").iterdir()) == [], (
        "nothing speaks against the unit that was killed"
    )


@pytest.mark.parametrize("ended_by", ["retired as too large", "killed while idle"])
def test_workers_that_ended_between_two_jobs_are_not_given_shares(
    ended_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(workers=4)
    monkeypatch.setattr(pool, "LARGE", 1 if ended_by.startswith("retired") else pool.LARGE)
    run_job(faulty_job(f"{tmp_path}/first", *["ok"] * 12), settings)
    assert pool._pool is not None
    if ended_by.startswith("retired"):
        assert pool._pool.members == []
    for member in pool._pool.members:
        os.kill(member.pid, signal.SIGKILL)
        member.process.wait()
    assert run_job(faulty_job(f"{tmp_path}/second", *["ok"] * 12), settings).counts.succeeded == 36


def test_a_worker_that_stands_still_is_replaced(tmp_path: Path) -> None:
    started = time.monotonic()
    job = faulty_job(f"{tmp_path}/out", "wait_once", "ok")
    manifest = run_job(job, RunSettings(workers=2, stall_minutes=0.1))
    assert manifest.counts.succeeded == 6 and manifest.facts["notes"] == {"workers_stalled": 1}
    assert time.monotonic() - started < 600, "the unit would wait for an hour"


def test_a_worker_that_cannot_be_made_ends_the_job(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    with pytest.raises(JobFailed, match="3 times: AttributeError: .*NoSuchWorker"):
        run_job(Job(**{**job.__dict__, "worker": "tests/absent"}), SETTINGS)


def _first(folder: str, pattern: str) -> Path:
    return sorted(Path(folder).glob(pattern))[0]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda out: _first(out, "data/*").unlink(),
        lambda out: os.truncate(_first(out, "data/*"), 5),
        lambda out: (Path(out) / "parts.parquet").unlink(),
        lambda out: (Path(out) / "parts.parquet").write_bytes(b"PAR1"),
        lambda out: (Path(out) / "manifest.json").write_bytes(b'{"schema'),
        lambda out: (Path(out) / "manifest.json").unlink(),
        lambda out: (_first(out, "data/*").unlink(), _first(out, "done/*").write_bytes(b"{}")),
    ],
)
def test_what_was_taken_from_a_finished_output_is_made_again(
    tamper: Callable[[str], None], tmp_path: Path
) -> None:
    job, manifest = made(tmp_path, "ok", "ok", "ok")
    kept = os.stat(sorted(Path(job.output).glob("data/*"))[2]).st_mtime_ns
    tamper(job.output)
    again = run_job(job, SETTINGS)
    assert again.content == manifest.content
    assert again == run_job(job, SETTINGS), "whole again: skipped"
    assert os.stat(sorted(Path(job.output).glob("data/*"))[2]).st_mtime_ns == kept


def test_an_output_behind_http_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="nothing can be written there"):
        run_job(faulty_job("http://127.0.0.1:9/out", "ok"), SETTINGS)


def test_another_recipe_is_refused_or_made_over(tmp_path: Path) -> None:
    job, manifest = made(tmp_path, "ok")
    other = faulty_job(job.output, "ok", "ok", recipe={"colour": {"hue": 2}})
    with pytest.raises(UserError, match="hue was 1, is now 2"):
        run_job(other, SETTINGS)
    shutil.rmtree(f"{job.output}/plan")
    with pytest.raises(UserError, match="hue was 1, is now 2"):
        run_job(other, SETTINGS)
    plan_files = {"plan/more": b"more"}
    again = run_job(other, RunSettings(workers=2, overwrite=True), plan_files)
    assert again.counts.inputs == 6 and again.content != manifest.content
    assert open_place(job.output).read("plan/more") == b"more"


PROGRAM = """
import resource, sys
from tests.support.faulty_worker import faulty_job
from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from schemas.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    run_job(faulty_job(sys.argv[1], *["ok"] * 3, "large"), RunSettings(workers=1))
except UserError as error:
    print("said:", error)
"""


def test_a_disk_that_takes_no_more_is_said_at_once(tmp_path: Path) -> None:
    """A limit of file sizes stands for a full disk; afterwards the same command goes on."""
    out = tmp_path / "out"
    # Coverage would write its own file under the limit.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    for limit in (10, 1_000_000):
        command = [sys.executable, "-c", PROGRAM, str(out), str(limit)]
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
        )
        assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
        assert (
            run.stdout.startswith("said:")
            and "cannot be written" in run.stdout
            and str(out) in run.stdout
        )
        assert run.stdout.count("\n") == 1
    assert len(list(out.glob("done/*.json"))) == 3
    assert json.loads((out / "plan/plan.json").read_bytes())["units"]
    assert run_job(faulty_job(str(out), *["ok"] * 3, "large"), SETTINGS).counts.inputs == 12
