"""What a Beam runner needs is refused in one sentence, before anything is written."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.engines.beam import RunUnits
from pipelines.engines.beam.engine import BeamEngine
from pipelines.engines.beam.submission import explained
from pipelines.engines.beam.transform import unfit_sentence
from pipelines.engines.choice import make_engine
from pipelines.engines.settings import RunSettings
from pipelines.engines.workers.ticket import Sample, Ticket
from pipelines.storage.place import open_place
from schemas.errors import UserError
from tests.support.command_line import command
from tests.support.faulty_worker import faulty_job
from tests.support.watching import EXTRACTOR

DATAFLOW = ("--project=mine", "--region=europe-west1", "--temp_location=gs://mine/tmp")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that is bound, and where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def listening() -> Iterator[str]:
    """Where something accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(out: str, runner: str, *options: str, detach: bool = False) -> str:
    """The sentence with which an engine refuses its options."""
    settings = RunSettings(runner=runner, beam_options=options, detach=detach)
    with pytest.raises(UserError) as error:
        make_engine(faulty_job(out, "ok"), open_place(out), settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("runner", "options", "words"),
    [
        ("SparkRunner", (), "--spark_job_server_jar=FILE.*--engine spark"),
        ("spark", ("--spark_master_url=spark://h:1",), "--engine spark"),
        ("SparkRunner", ("--spark_job_server_jar=/no/such.jar",), "no such file is there"),
        ("FlinkRunner", (), "--flink_job_server_jar=FILE, or --job_endpoint=HOST:PORT"),
        ("FlinkRunner", ("--flink_job_server_jar=/no.jar",), "/no.jar, and no such file"),
        ("PortableRunner", (), "--job_endpoint=HOST:PORT, where a Beam job server listens"),
        ("PortableRunner", ("--job_endpoint=nowhere",), "must be HOST:PORT of a Beam job server"),
        ("PortableRunner", ("--job_endpoint=h:99999999",), "must be HOST:PORT"),
        ("PrismRunner", ("--prism_location=/no/prism",), "/no/prism is no program.*go install"),
        ("PrismRunner", ("--environment_type=CLOUD",), "LOOPBACK, PROCESS, EXTERNAL, DOCKER"),
        (
            "PrismRunner",
            ("--environment_type=PROCESS", "--environment_config=boot"),
            "a program at every worker",
        ),
        ("DataflowRunner", (), "--project=PROJECT, --region=REGION and --temp_location=gs://"),
        ("DataflowRunner", DATAFLOW[:2], "needs --temp_location=gs://BUCKET/FOLDER too"),
        ("DataflowRunner", DATAFLOW, "give an output on gs://"),
        ("DataflowRunner", (*DATAFLOW[:2], "--temp_location=/tmp"), "needs a place on gs:// there"),
        (
            "DataflowRunner",
            (*DATAFLOW, "--template_location=/tmp/job.json"),
            "give --detach too",
        ),
    ],
)
def test_what_is_missing(runner: str, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    if runner.startswith("Dataflow"):
        pytest.importorskip("google.cloud.dataflow", reason="packages of the extra gcp")
    said = refused(f"{tmp_path}/out", runner, *options)
    assert "\n" not in said
    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--job_endpoint", "--environment_config"])
def test_what_does_not_answer(flag: str, silent: int, listening: str, tmp_path: Path) -> None:
    options = [f"{flag}=127.0.0.1:{silent}"]
    if flag != "--job_endpoint":
        options += ["--environment_type=EXTERNAL", f"--job_endpoint={listening}"]
    assert f"answers at 127.0.0.1:{silent}" in refused(
        f"{tmp_path}/out", "PortableRunner", *options
    )


@pytest.mark.parametrize("kind", ["EXTERNAL", "PROCESS"])
def test_environments_need_their_config(kind: str, listening: str, tmp_path: Path) -> None:
    options = (f"--job_endpoint={listening}", f"--environment_type={kind}")
    said = refused(f"{tmp_path}/out", "PortableRunner", *options)
    assert f"--environment_type={kind} needs --environment_config=" in said


def test_programs_that_are_missing(
    listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.jar").touch()
    monkeypatch.setenv("PATH", "/nowhere")
    out, jar = f"{tmp_path}/out", f"--flink_job_server_jar={tmp_path}/server.jar"
    assert "no program java is on the PATH" in refused(out, "FlinkRunner", jar)
    docker = refused(out, "PrismRunner", "--environment_type=DOCKER")
    assert "no program docker is on the PATH" in docker
    assert "PrismRunner ends with the command" in refused(
        out, "PrismRunner", f"--job_endpoint={listening}", detach=True
    )


def test_a_command_ends_with_the_sentence(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    ended = command(
        *("extract", "--images", photographs, "--out", out, "--extractor", EXTRACTOR),
        *("--engine", "beam", "--runner", "SparkRunner"),
    )
    assert ended.code == 2 and ended.said.count("\n") == 1, ended
    assert "--engine spark" in ended.said and not out.exists()


def test_real_clusters_get_one_pipeline(listening: str, tmp_path: Path) -> None:
    settings = RunSettings(
        runner="PortableRunner", beam_options=(f"--job_endpoint={listening}",), workers=3
    )
    job = faulty_job(f"{tmp_path}/out", *["ok"] * 7)
    engine = make_engine(job, open_place(job.output), settings)
    assert isinstance(engine, BeamEngine)
    engine.start()
    try:
        assert engine.share_size(7) == 7
        share = engine.described(job.units)
        assert not share["own_workers"] and share["options"][-1] == "--runner=PortableRunner"
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"numpy": "0.1"}}, "(the driver: 0.1); workers need the driver's own"),
        ({"inputs": (Sample("/no/such/photos/a.jpg", 5),)}, "does not see /no/such/photos/a.jpg"),
    ],
)
def test_a_worker_that_is_not_fit(change: dict[str, object], words: str, tmp_path: Path) -> None:
    """Its sentence travels within the runner's words for a bundle that failed."""
    job = faulty_job(f"{tmp_path}/out", "ok")
    ticket = Ticket(run="r", engine="beam", **change).to_json()  # type: ignore[arg-type]
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | RunUnits(job, 1, ticket)
    with pytest.raises(Exception, match="rrt-unfit") as error:
        pipeline.run()
    ended = explained(error.value)
    assert ended["final"] and words in ended["problem"] and "rrt-unfit" not in ended["problem"]


def test_what_failures_of_a_job_mean() -> None:
    lacks = explained(RuntimeError("Traceback\nModuleNotFoundError: No module named 'pipelines'"))
    assert lacks["final"] and "--setup_file" in lacks["problem"]
    other = explained(RuntimeError("bundle failed:\n ValueError: 7\n"))
    assert other == {"problem": "the Beam job failed: ValueError: 7"}
    assert explained(RuntimeError())["problem"] == "the Beam job failed: RuntimeError"
    assert unfit_sentence("nothing of ours") == ""
