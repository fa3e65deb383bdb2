"""Units on a real standalone cluster of Spark: equal contents, both workers at work, ends and
mistakes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.engines.spark.session import close_session
from schemas.errors import JobFailed, UserError
from schemas.manifest import Manifest
from schemas.plan import Job
from tests.support import spark_cluster
from tests.support.faulty_worker import faulty_job
from tests.support.s3_server import S3Server
from tests.support.spark_cluster import Cluster
from tests.support.watching import EXTRACTOR, Running, wait_for

pytestmark = pytest.mark.skipif(
    bool(spark_cluster.missing()), reason=f"missing: {spark_cluster.missing()}"
)
PLUGINS = str(Path(__file__).resolve().parents[2] / "support" / "plugins")
PATHS = f"spark.executorEnv.PYTHONPATH={PLUGINS}"  # where the tests' own unit workers are named


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of two workers."""
    with spark_cluster.running(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def settings(cluster: Cluster, s3_session: S3Server) -> Iterator[RunSettings]:
    """Of this process's session, whose executors reach the tests' S3."""
    patch = pytest.MonkeyPatch()
    for name, value in s3_session.environment.items():
        patch.setenv(name, value)
    conf = dict([PATHS.split("=", 1)])
    yield RunSettings(engine="spark", master=cluster.url, spark_conf=conf)
    close_session()
    patch.undo()


def made(output: object, settings: RunSettings, *behaviours: str) -> tuple[Job, Manifest]:
    """A job's manifest."""
    job = faulty_job(str(output), *behaviours)
    return job, run_job(job, settings)


def executors_of(output: str) -> set[str]:
    """Which executors did a folder's units, by the facts of its markers."""
    markers = [json.loads(path.read_text()) for path in Path(output, "done").glob("*.json")]
    assert {marker["worker"]["engine"] for marker in markers} == {"spark"}
    return {marker["worker"]["worker"] for marker in markers}


def test_contents_equal_the_local_engines(settings: RunSettings, tmp_path: Path) -> None:
    job, manifest = made(tmp_path / "spark", settings, *["ok"] * 12)
    assert len(executors_of(job.output)) == 2, "both workers"
    _, local = made(tmp_path / "local", RunSettings(workers=1), *["ok"] * 12)
    assert (manifest.content, manifest.counts) == (local.content, local.counts)
    assert sorted(os.listdir(job.output)) == sorted(os.listdir(tmp_path / "local"))


def test_exceptions_and_deaths_are_tried_again(settings: RunSettings, tmp_path: Path) -> None:
    behaviours = ["ok", "raise_once", "ok", "die_once", "ok", "ok"]
    assert made(tmp_path / "out", settings, *behaviours)[1].counts.succeeded == 18


def test_a_users_mistake_ends_the_job(settings: RunSettings, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="part-00001: mend your settings"):
        made(tmp_path / "out", settings, "wait", "user_error")
    assert time.monotonic() - started < 60, "the unit that waits an hour is cancelled"


def test_outputs_on_s3(settings: RunSettings, s3: S3Server, tmp_path: Path) -> None:
    _, manifest = made("s3://bucket/spark-out", settings, *["ok"] * 4)
    assert (
        manifest.content == made(tmp_path / "local", RunSettings(workers=1), *["ok"] * 4)[1].content
    )


def extract(master: str, photographs: Path, out: Path, *more: object) -> list[object]:
    """The words of a command by the cluster, whose cores this process's session holds no more."""
    close_session()
    return [
        *("extract", "--images", photographs, "--out", out, "--rows-per-part", 2),
        *("--extractor", EXTRACTOR, "--engine", "spark", "--master", master, *more),
    ]


SLOW = ("--extractor-option", "seconds=0.3")


def contents(out: Path) -> tuple[str, dict[str, int]]:
    """A finished store's content and counts."""
    manifest = json.loads((out / "manifest.json").read_text())
    return manifest["content"], manifest["counts"]


@pytest.fixture(scope="module")
def locally(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine makes of the same command."""
    out = tmp_path_factory.mktemp("locally") / "store"
    folder = tmp_path_factory.mktemp("said")
    words = ["extract", "--images", photographs, "--out", out, "--rows-per-part", 2, *SLOW]
    running = Running([str(word) for word in [*words, "--extractor", EXTRACTOR]], {}, folder)
    assert running.end() == 0, running.text
    return out


def done(out: Path) -> int:
    """Units that are committed."""
    return len(list(out.glob("done/*.json")))


def nothing_left(driver: Running, cluster: Cluster, seconds: float = 30) -> None:
    """No process of the command's lives on."""
    wait_for(
        lambda: not driver.orphans() and not cluster.executors(),
        f"the end of all {[process.cmdline()[:4] for process in driver.orphans()]}",
        seconds,
    )


@pytest.mark.parametrize("victim", ["executor", "python"])
def test_a_killed_executor_or_python(
    victim: str, cluster: Cluster, photographs: Path, locally: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    words = extract(cluster.url, photographs, out, *SLOW)
    driver = Running([str(word) for word in words], {}, tmp_path)
    driver.until(lambda: done(out) >= 2, "two units")
    of = {"executor": cluster.executors, "python": cluster.pythons}[victim]
    driver.tree()
    psutil.Process(of()[0].pid).send_signal(signal.SIGKILL)
    assert driver.end() == 0, driver.text
    assert contents(out) == contents(locally)
    assert "Traceback" not in driver.text and "WARN" not in driver.text, driver.text
    nothing_left(driver, cluster)


def test_a_killed_driver(
    cluster: Cluster, photographs: Path, locally: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    words = [str(word) for word in extract(cluster.url, photographs, out, *SLOW)]
    driver = Running(words, {}, tmp_path)
    driver.until(lambda: done(out) >= 2 and driver.tree(), "two units")
    driver.tree()
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    nothing_left(driver, cluster)
    assert done(out) < 15 and not (out / "manifest.json").exists()

    again = Running(words, {}, tmp_path)
    assert again.end() == 0, again.text
    assert contents(out) == contents(locally)


def test_ctrl_c(cluster: Cluster, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    words = [str(word) for word in extract(cluster.url, photographs, out, *SLOW)]
    driver = Running(words, {}, tmp_path)
    driver.until(lambda: done(out) >= 1 and driver.tree(), "a unit")
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() == 130, driver.text
    assert "parts of" in driver.text.splitlines()[-1], driver.text
    nothing_left(driver, cluster)


def refused(driver: Running, *words: str, code: int = 2) -> None:
    """A sentence within a minute, and nothing half-made."""
    started = time.monotonic()
    assert driver.end(90) == code, driver.text
    assert time.monotonic() - started < 60
    last = driver.text.splitlines()[-1]
    assert last.startswith(("Error: ", "Failed: ")) and "Traceback" not in driver.text, driver.text
    for word in words:
        assert word in last, driver.text


def test_no_java(photographs: Path, tmp_path: Path) -> None:
    words = map(str, extract("local[2]", photographs, tmp_path / "out"))
    driver = Running([*words], {"JAVA_HOME": f"{tmp_path}/java"}, tmp_path)
    refused(driver, "Java", f"JAVA_HOME is {tmp_path}/java")
    assert not (tmp_path / "out/plan").exists()


def test_a_master_that_is_down(photographs: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"spark://127.0.0.1:{probe.getsockname()[1]}"
    words = map(str, extract(url, photographs, tmp_path / "out"))
    refused(Running([*words], {}, tmp_path), url, "no Spark master answers")
    assert not (tmp_path / "out/plan").exists()


def test_no_executor(
    tmp_path_factory: pytest.TempPathFactory, photographs: Path, tmp_path: Path
) -> None:
    with spark_cluster.running(tmp_path_factory.mktemp("idle"), workers=0) as idle:
        words = map(str, extract(idle.url, photographs, tmp_path / "out"))
        driver = Running([*words], {"RRT_EXECUTOR_SECONDS": "3"}, tmp_path)
        refused(driver, "has had no executor for 3 s", code=1)


OTHERS = [
    path
    for path in (Path.home() / ".pyenv/versions").glob("3.*/bin/python3")
    if not path.parts[-3].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    and int(path.parts[-3].split(".")[1]) >= 10
]


@pytest.mark.parametrize(
    "python",
    [
        pytest.param(
            lambda: str(OTHERS[0]),
            marks=pytest.mark.skipif(not OTHERS, reason="no other Python of pyenv's is here"),
            id="another version",
        ),
        pytest.param(lambda: "/no/such/python3", id="absent"),
    ],
)
def test_executors_with_a_wrong_python(
    python: Callable[[], str], cluster: Cluster, photographs: Path, tmp_path: Path
) -> None:
    more = ("--executor-python", python())
    words = extract(cluster.url, photographs, tmp_path / "out", *more)
    driver = Running([str(word) for word in words], {}, tmp_path)
    refused(driver, "executors have", "--executor-python")


def test_a_session_that_is_there_is_used_and_not_stopped(
    cluster: Cluster, settings: RunSettings, tmp_path: Path
) -> None:
    """As in a notebook: another process, since this one has a session of ours."""
    program = tmp_path / "notebook.py"
    program.write_text(
        "import sys\n"
        "from pyspark import SparkConf, SparkContext\n"
        "from pipelines.engines.driver import run_job\n"
        "from pipelines.engines.settings import RunSettings\n"
        "from tests.support.faulty_worker import faulty_job\n"
        "conf = SparkConf().setMaster('local[2]').set('spark.ui.enabled', 'false')\n"
        "context = SparkContext(conf=conf)\n"
        "run_job(faulty_job(sys.argv[1], *['ok'] * 4), RunSettings(engine='spark'))\n"
        "print('still', context.parallelize([1, 2], 2).sum())\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, PLUGINS]),
        "PYSPARK_PYTHON": sys.executable,
    }
    command = [sys.executable, str(program), str(tmp_path / "out")]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=root
    )
    assert run.returncode == 0 and "still 3" in run.stdout, run.stderr


def test_a_job_that_can_never_end_is_given_up(settings: RunSettings, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="part-00001"):
        made(tmp_path / "out", settings, "ok", "raise")
