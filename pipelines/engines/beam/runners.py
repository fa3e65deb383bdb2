"""What each Beam runner needs: refused in a sentence before anything is written or started."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    SparkRunnerOptions,
)

from pipelines.engines.beam.dataflow import only_writes
from pipelines.engines.beam.prism import answers, find_prism
from pipelines.engines.settings import RunSettings
from pipelines.storage.protocol import Place
from schemas.errors import UserError

ANSWER_SECONDS = 10.0
PORTABLE = ("portable", "prism", "spark", "flink")  # they speak Beam's job protocol
CLUSTERS = ("portable", "spark", "flink", "dataflow")  # they live on without the command
ENVIRONMENTS = ("LOOPBACK", "PROCESS", "EXTERNAL", "DOCKER")


def short_name(runner: str) -> str:
    """A runner as the rules here name it: prism for PrismRunner, and for Prism."""
    return runner.lower().removesuffix("runner")


def parse(settings: RunSettings) -> PipelineOptions:
    """Beam's own flags, as the command was given them."""
    return PipelineOptions(list(settings.beam_options))


def refuse_impossible(settings: RunSettings, place: Place) -> None:
    """Raise UserError where the runner cannot work with these options and this output."""
    name, options = short_name(settings.runner), parse(settings)
    if name in PORTABLE:
        _refuse_environment(name, options)
        endpoint = options.view_as(PortableOptions).job_endpoint
        if endpoint:
            if endpoint != "embed":
                _refuse_silent(endpoint, "--job_endpoint", "Beam job server")
        else:
            {"portable": _portable, "prism": _prism, "spark": _spark, "flink": _flink}[name](
                options
            )
    if name == "dataflow":
        _dataflow(options, place)
    if settings.detach and name not in CLUSTERS:
        raise UserError(
            f"--detach is of clusters: {settings.runner} ends with the command; leave it out"
        )
    if name == "dataflow" and only_writes(options) and not settings.detach:
        raise UserError(
            "a Dataflow job that is only written runs without this command: give --detach too, and "
            "`finish` for its output when it has run"
        )


def _refuse_environment(name: str, options: PipelineOptions) -> None:
    portable = options.view_as(PortableOptions)
    kind, config = portable.environment_type, str(portable.environment_config or "")
    if not kind:
        return
    if kind not in ENVIRONMENTS:
        raise UserError(
            f"--environment_type is {kind!r}; it must be one of {', '.join(ENVIRONMENTS)}"
        )
    if kind == "DOCKER" and name == "prism" and shutil.which("docker") is None:
        raise UserError(
            "--environment_type=DOCKER needs a Docker engine on this machine, and no program "
            "docker is on the PATH; leave it out, and Prism gets workers of its own"
        )
    if kind == "EXTERNAL" and config:
        _refuse_silent(config, "--environment_config", "Beam worker pool")
    if kind == "PROCESS" and config:
        _refuse_command(config)
    if kind in ("EXTERNAL", "PROCESS") and not config and name != "prism":
        what = "HOST:PORT of a worker pool" if kind == "EXTERNAL" else '{"command": "PATH"}'
        raise UserError(f"--environment_type={kind} needs --environment_config={what}")


def _refuse_command(config: str) -> None:
    try:
        command = json.loads(config)["command"]
    except (ValueError, KeyError, TypeError):
        command = None
    if not isinstance(command, str):
        raise UserError(
            f"--environment_config is {config[:200]!r}; for PROCESS it must be "
            '{"command": "PATH"}, a program at every worker'
        )


def _refuse_silent(endpoint: str, flag: str, what: str) -> None:
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError(f"{flag} is {endpoint[:200]!r}; it must be HOST:PORT of a {what}")
    if not answers(host, port, ANSWER_SECONDS):
        raise UserError(f"no {what} answers at {host}:{port}: start it, or correct {flag}")


def _portable(_options: PipelineOptions) -> None:
    raise UserError(
        "PortableRunner needs --job_endpoint=HOST:PORT, where a Beam job server listens"
    )


def _prism(options: PipelineOptions) -> None:
    find_prism(options.view_as(PrismRunnerOptions).prism_location or "")


def _spark(options: PipelineOptions) -> None:
    _job_server(
        "SparkRunner",
        "--spark_job_server_jar",
        options.view_as(SparkRunnerOptions).spark_job_server_jar,
        "; on Spark itself, without Beam, the same command works with --engine spark",
    )


def _flink(options: PipelineOptions) -> None:
    _job_server(
        "FlinkRunner",
        "--flink_job_server_jar",
        options.view_as(FlinkRunnerOptions).flink_job_server_jar,
        " (beam-runners-flink-*-job-server of Beam's own release, for the cluster's Flink)",
    )


def _job_server(runner: str, flag: str, jar: str | None, more: str) -> None:
    if not jar:
        raise UserError(
            f"{runner} needs Beam's job server: give {flag}=FILE, or --job_endpoint=HOST:PORT "
            f"where one runs{more}"
        )
    if not urlsplit(jar).scheme and not os.path.isfile(jar):
        raise UserError(f"{flag} is {jar[:200]}, and no such file is there; correct the path")
    if shutil.which("java") is None:
        raise UserError(f"{runner} needs Java 11 or newer, and no program java is on the PATH")


def _dataflow(options: PipelineOptions, place: Place) -> None:
    google = options.view_as(GoogleCloudOptions)
    if importlib.util.find_spec("google.cloud") is None or (
        importlib.util.find_spec("google.cloud.dataflow") is None
    ):
        raise UserError(
            "DataflowRunner needs Google Cloud's packages: RRT_EXTRAS=gcp installs them"
        )

    missing = [
        flag
        for flag, value in (
            ("--project=PROJECT", google.project),
            ("--region=REGION", google.region),
            ("--temp_location=gs://BUCKET/FOLDER", google.temp_location),
        )
        if not value
    ]
    if missing:
        raise UserError(f"DataflowRunner needs {_and(missing)} too")

    for flag in ("temp_location", "staging_location"):
        value = getattr(google, flag)
        if value and not value.startswith("gs://"):
            raise UserError(f"--{flag} is {value[:200]}; Dataflow needs a place on gs:// there")
    if not place.url.startswith(("gs://", "gcs://")) and not only_writes(options):
        raise UserError(
            f"{place.url}: workers of Dataflow do not see this machine's folders; give an output "
            f"on gs://"
        )


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
