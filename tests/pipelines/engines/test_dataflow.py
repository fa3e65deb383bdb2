"""A job for Dataflow, written without a call to its service: what it holds, and that a worker with
our package alone can load it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import command
from tests.support.watching import EXTRACTOR

pytest.importorskip("google.cloud.dataflow", reason="packages of the extra gcp are missing")

ROOT = Path(__file__).resolve().parents[3]
OURS = ("pipelines", "rrt_core", "schemas")
IMAGE = "europe-docker.pkg.dev/mine/rrt/worker:1"
GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
# What a worker does with a DoFn: it is unpickled, as by Beam's own worker.
LOAD = """
import sys
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as api
pickler.set_library("cloudpickle")
pipeline = api.Pipeline.FromString(open(sys.argv[1], "rb").read())
for name, one in pipeline.components.transforms.items():
    if one.spec.urn == "beam:transform:pardo:v1":
        payload = api.ParDoPayload.FromString(one.spec.payload)
        fn = pickler.loads(payload.do_fn.payload)[0]
        print(type(fn).__module__, type(fn).__name__)
import pipelines
print(pipelines.__path__[0])
"""


@pytest.fixture(scope="module")
def job(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an extraction's job, with workers that have a GPU and an image of their own."""
    folder = tmp_path_factory.mktemp("dataflow")
    (folder / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='own', version='1')\n"
    )
    ended = command(
        *("extract", "--images", photographs, "--out", folder / "store", "--rows-per-part", 10),
        *("--extractor", EXTRACTOR, "--runner", "DataflowRunner", "--detach"),
        *("--project=mine-1", "--region=europe-west1", "--temp_location=gs://mine-bucket/tmp"),
        *("--dry_run=True", "--no_auth", f"--dataflow_job_file={folder}/job.json"),
        *("--experiments=disable_logging_submission_environment", "--job_name=describe"),
        *(f"--sdk_container_image={IMAGE}", f"--dataflow_service_options={GPU}"),
        *("--machine_type=g2-standard-4", "--num_workers=2", f"--setup_file={folder}/setup.py"),
    )
    assert ended.code == 0, ended.said
    assert f"is written to {folder}/job.json" in ended.said
    assert f"`finish {folder}/store` writes the manifest" in ended.said
    assert not (folder / "store/done").exists() and not (folder / "store/lease").exists()
    return folder / "job.json"


def test_what_the_job_holds(job: Path) -> None:
    text = job.read_text()
    record: dict[str, Any] = json.loads(text)
    assert record["name"] == "describe" and record["type"] in ("JOB_TYPE_BATCH", 1)
    environment = record["environment"]
    (workers,) = environment.get("workerPools", environment.get("worker_pools"))
    assert IMAGE in json.dumps(workers) and "g2-standard-4" in json.dumps(workers)
    options = json.dumps(environment)
    assert "nvidia-l4" in options and "mine-bucket/tmp" in options
    staged = sorted(path.name for path in Path(f"{job}.staged").iterdir())
    assert "pipeline.pb" in staged and "workflow.tar.gz" in staged, staged


def test_each_dofn_loads_where_our_package_alone_is_installed(job: Path, tmp_path: Path) -> None:
    for name in OURS:
        shutil.copytree(ROOT / name, tmp_path / "site" / name)

    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COV_", "COVERAGE"))
    }
    paths = os.pathsep.join([str(tmp_path / "site"), sysconfig.get_path("purelib")])
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", LOAD, f"{job}.staged/pipeline.pb"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    lines = loaded.stdout.splitlines()
    assert "pipelines.engines.beam.transform _DoUnits" in lines, lines
    assert lines[-1] == str(tmp_path / "site/pipelines")
