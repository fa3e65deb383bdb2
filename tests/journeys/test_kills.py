"""What a kill leaves behind: nothing that runs, nothing that is wrong; and the same command goes on
from there.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.watching import EXTRACTOR, Running, wait_for, words

SLOW = ("--extractor", EXTRACTOR, "--extractor-option", "seconds=0.1")
QUICK = ("--extractor", EXTRACTOR, "--workers", "1")
JOBS = (
    "gallery",
    "queries",
    "index/search",
    "run/labelled/scores",
    "run/labelled/counts",
    "run/labelled/places",
    "run/shortlist",
    "run/scores",
    "run/ranking",
    "run/evaluation",
    "run/report",
)
Start = Callable[..., Running]


def contents(out: Path) -> dict[str, Any]:
    """The content hash of each job's manifest, and all metrics."""
    found: dict[str, Any] = {
        job: json.loads((out / job / "manifest.json").read_bytes())["content"] for job in JOBS[:-1]
    }
    found["metrics"] = json.loads((out / "run/evaluation/metrics.json").read_bytes())
    return found


def leftovers(out: Path) -> list[Path]:
    """Scratch, attempts, errors and temporary files."""
    return [
        path
        for path in out.rglob("*")
        if path.name in ("scratch", "attempts", "errors") or path.suffix == ".tmp"
    ]


def _there(out: Path, pattern: str) -> bool:
    return any(out.glob(pattern))


@pytest.fixture(scope="module")
def undisturbed(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run gives when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    running = Running(
        ["run", "--config", str(configuration), "--set", f"out={folder}/all"], {}, folder
    )
    assert running.end() == 0, running.text
    assert "Traceback" not in running.text
    assert not any(word in running.text for word in ("WARNING", "grpc", "apache_beam")), (
        running.text
    )
    return contents(folder / "all")


def test_kill_of_everything_at_many_moments(
    start: Start, configuration: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "all"
    command = ("run", "--config", configuration, "--set", f"out={out}")
    moments = [
        "gallery/plan/images.parquet",
        "gallery/done/part-*.json",
        "gallery/parts.parquet",
        "index/search/plan",
        "run/shortlist/manifest.json",
        "run/scores/done/part-*.json",
    ]
    for moment in moments:
        running = start(*command)
        running.until(functools.partial(_there, out, moment), moment)
        running.kill_all()
        assert not running.orphans()
    running = start(*command)
    assert running.end() == 0, running.text
    assert contents(out) == undisturbed
    assert not leftovers(out)


KILLED_BEFORE_MARKER = """
import os, signal
link = os.link
def killing(source, target, **more):
    job, mark, _ = str(target).rpartition("/done/")
    if mark and "pipelines.engines.local.worker" in open("/proc/self/cmdline").read():
        try:
            os.close(os.open(job.rstrip("/").replace("/", "+").join((FOLDER, "")), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return link(source, target, **more)
os.link = killing
"""  # noqa: E501


@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="the fault is injected by way of /proc"
)
def test_a_worker_killed_in_each_stage(
    start: Start, configuration: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """In each job the first worker that would drop a marker is killed, its data files being in
    place.
    """
    out, injected = tmp_path / "all", tmp_path / "injected"
    flags = injected / "flags"
    flags.mkdir(parents=True)
    (injected / "sitecustomize.py").write_text(
        f"FOLDER = {str(flags) + '/'!r}\n{KILLED_BEFORE_MARKER}"
    )
    running = start(
        "run", "--config", configuration, "--set", f"out={out}", PYTHONPATH=str(injected)
    )
    assert running.end() == 0, running.text
    killed = {path.name for path in flags.iterdir()}
    assert killed == {str(out / job).replace("/", "+") for job in JOBS}
    assert contents(out) == undisturbed
    assert not leftovers(out)


def test_kill_of_one_worker_from_outside(start: Start, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    running = start(
        "extract",
        "--images",
        photographs,
        "--out",
        out,
        *SLOW,
        "--workers",
        2,
        "--rows-per-part",
        3,
    )
    running.until(
        lambda: any(out.glob("done/*.json")) and len(running.workers()) == 2,
        "two workers and a marker",
    )
    victim = running.workers()[0]
    victim.kill()
    assert running.end() == 0, running.text
    assert json.loads((out / "manifest.json").read_bytes())["counts"] == {
        "inputs": 30,
        "succeeded": 30,
        "failed": 0,
    }
    assert not running.orphans() and not leftovers(out)


def test_workers_that_always_die_end_the_job(
    start: Start, photographs: Path, tmp_path: Path
) -> None:
    """Killed whenever they appear: one sentence after three tries, the log is kept."""
    running = start(
        "extract", "--images", photographs, "--out", tmp_path / "store", *SLOW, "--workers", 2
    )
    while running.process.poll() is None:
        for worker in running.workers():
            worker.kill()
        time.sleep(0.02)
    assert running.end() == 1
    assert (
        "failed 3 times" in running.text
        and "0 of" in running.text
        and "Traceback" not in running.text
    )
    log = Path(running.text.split("log: ")[1].split(")")[0])
    assert log.exists()
    assert not running.orphans()


def test_kill_of_the_driver_alone_leaves_no_orphan(
    start: Start, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    running = start(
        "extract",
        "--images",
        photographs,
        "--out",
        out,
        *SLOW,
        "--workers",
        2,
        RRT_TEST_CRASH_ON="05_1",
    )
    # The crash, thrice tried, brings the child process of the isolated unit into the tree.
    running.until(
        lambda: (
            len(running.tree())
            and any("multiprocessing.spawn" in " ".join(words(p)) for p in running.tree())
        ),
        "the child that describes one by one",
    )
    assert running.workers()
    running.process.kill()
    wait_for(lambda: not running.orphans(), "the end of workers and their children", 10)


def _handles(running: Running, number: int) -> bool:
    """Whether the command has its signal handlers (Linux)."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


MOMENTS = {
    "import": lambda running, out: _handles(
        running, signal.SIGHUP
    ),  # the last of ours; coverage handles SIGTERM too
    "plan": lambda running, out: (out / "plan/plan.json").exists(),
    "work": lambda running, out: any(out.glob("done/*.json")),
}


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="the moment of the imports is seen in /proc"
)
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "import"),
        (signal.SIGINT, "work"),
        (signal.SIGTERM, "plan"),
        (signal.SIGTERM, "work"),
        (signal.SIGHUP, "plan"),
    ],
)
def test_signals(number: int, moment: str, start: Start, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "with space and 'quotes'" / "store"
    before = signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # under nohup it is ignored, and that is inherited
    running = start(
        "extract",
        "--images",
        photographs,
        "--out",
        out,
        *SLOW,
        "--workers",
        2,
        "--rows-per-part",
        3,
    )
    signal.signal(signal.SIGHUP, before)
    running.until(lambda: (running.tree() or True) and MOMENTS[moment](running, out), moment)
    running.process.send_signal(number)
    sent = time.monotonic()
    code = running.end(30)
    assert time.monotonic() - sent < 10
    assert "Traceback" not in running.text
    assert code == 128 + number
    assert running.text.count("Stopped:") == 1
    if moment != "import":
        assert (
            "of 10 parts of" in running.text
            and "the same command goes on from there" in running.text
        )
    wait_for(lambda: not running.orphans(), "the end of the workers", 10)
    attempts = [*out.glob("attempts/*.json")]
    assert not attempts, "nothing speaks against units that were stopped"


def test_nohup_is_respected(start: Start, photographs: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = start("extract", "--images", photographs, "--out", tmp_path / "store", *SLOW)
    finally:
        signal.signal(signal.SIGHUP, before)
    running.until(lambda: any((tmp_path / "store").glob("attempts/*.json")), "an attempt")
    running.process.send_signal(signal.SIGHUP)
    assert running.end() == 0, running.text


def test_two_commands_at_once(start: Start, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    command = ("extract", "--images", photographs, "--out", out, *SLOW)
    first = start(*command)
    first.until((out / "plan/plan.json").exists, "the plan")
    second = start(*command)
    assert second.end() == 2
    assert "another command" in second.text and "Traceback" not in second.text
    assert first.end() == 0, first.text


def test_an_overwrite_killed_at_many_moments(
    start: Start, photographs: Path, tmp_path: Path
) -> None:
    """The old store stays whole until the new one is; done parts of the new one are not redone."""
    out, fresh = tmp_path / "store", tmp_path / "fresh"
    first = ("extract", "--images", photographs, "--out", out, *QUICK, "--rows-per-part", 9)
    assert start(*first).end() == 0
    old = _files(out)
    second = ("extract", "--images", photographs, *SLOW, "--workers", 1, "--rows-per-part", 4)

    running = start(*second, "--out", out, "--overwrite")
    running.until(lambda: len([*out.glob("next/done/*.json")]) > 1, "parts of the new store")
    running.kill_all()
    now = _files(out)
    assert {name: now[name] for name in old} == old
    verified = start("verify", out)
    assert verified.end() == 0 and "next: what an interrupted --overwrite" in verified.text
    again = start(*first)  # the old one's own command
    assert again.end() == 0 and "already made" in again.text

    done = {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in out.glob("next/done/*.json")
    }
    running = start(*second, "--out", out, "--overwrite")
    assert running.end() == 0, running.text
    assert {
        name: ((out / "done" / name).stat().st_mtime_ns, (out / "done" / name).read_bytes())
        for name in done
    } == done
    assert start(*second, "--out", fresh).end() == 0
    assert _content(out) == _content(fresh) and not leftovers(out)
    assert {*_files(out)} == {*_files(fresh)}
    assert start("verify", out).end() == 0


KILLED_IN_SWAP = """
import os, signal
seen = [0]
def counted(function):
    def killing(*arguments, **more):
        if os.path.exists(SWAP):
            seen[0] += 1
            if seen[0] == NUMBER:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return killing
for name in ("remove", "replace", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
"""


def test_a_report_whose_overwrite_fails_or_is_killed_in_the_swap(
    start: Start, configuration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    assert start("run", "--config", configuration, "--set", f"out={out}").end() == 0
    truth = json.loads(configuration.read_text())["ground_truth"]
    report = ("report", "--out", out / "run", "--ground-truth", truth)
    before = _files(out / "run/report")

    (out / "queries").rename(out / "away")  # the pictures of the queries are read from its plan
    (out / "gallery").rename(out / "gone")
    failed = start(*report, "--title", "Another", "--overwrite")
    assert failed.end() in (1, 2) and "Traceback" not in failed.text
    now = _files(out / "run/report")
    assert {name: now[name] for name in before} == before
    (out / "away").rename(out / "queries")
    (out / "gone").rename(out / "gallery")

    injected = tmp_path / "injected"
    injected.mkdir()
    for number in (2, 20):
        swap = out / "run/report/next/swap.json"
        (injected / "sitecustomize.py").write_text(
            f"SWAP, NUMBER = {str(swap)!r}, {number}\n{KILLED_IN_SWAP}"
        )
        title = f"Title {number}"
        killed = start(*report, "--title", title, "--overwrite", PYTHONPATH=str(injected))
        assert killed.end() == -signal.SIGKILL, killed.text
        again = start(*report, "--title", title)
        assert again.end() == 0 and "already made" in again.text, again.text
        page = (out / "run/report/report.html").read_text()
        assert title in page and start("verify", out / "run/report").end() == 0


def _content(out: Path) -> str:
    return str(json.loads((out / "manifest.json").read_bytes())["content"])


def _files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
