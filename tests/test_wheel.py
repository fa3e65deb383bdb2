"""An installed wheel, away from the checkout: it extracts, knows its configurations, starts the
demo.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pipelines", "rrt_core", "schemas", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes beside its source
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run([*build, str(source)], folder)

    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (wheel,) = folder.glob("*.whl")
    python = str(environment / "bin/python")
    install = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--no-index", "--offline"]
    run([*install, "--python", python, str(wheel)], folder)
    (site,) = environment.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder, without the checkout on the path; gives what it said."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COV_", "COVERAGE"))
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_wheel_works_from_another_folder(
    installed: Path, photographs: Path, tmp_path: Path
) -> None:
    program = str(installed / "bin/rrt-pipelines")
    where = "import pipelines, schemas, rrt_core; print(pipelines.__path__[0])"
    assert str(installed) in run([str(installed / "bin/python"), "-c", where], tmp_path)

    (tmp_path / "images").mkdir()
    for path in sorted(photographs.iterdir())[:3]:
        shutil.copy(path, tmp_path / "images")
    sizes = ["--extractor-option", "sizes=96,64", "--extractor-option", "max_locals=8"]
    run(
        [program, "extract", "--images", "images", "--out", "store", "--workers", "1", *sizes],
        tmp_path,
    )
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert manifest["counts"] == {"inputs": 3, "succeeded": 3, "failed": 0}

    # the shipped configurations, by name: the demo's, and one of `run`
    start = (
        "from pipelines.configurations import read_configuration\n"
        "from pipelines.demo.options import Options\n"
        "from pipelines.demo.data import Counts, make_demo\n"
        "from pipelines.engines.settings import RunSettings\n"
        "print(read_configuration(Options().config)['title'])\n"
        "read_configuration('configs/roxford5k.yaml')\n"
        "small = Counts(2, 1, 1, 1, 2, 2)\n"
        "make_demo('data', RunSettings(workers=1), counts=small, size=64)\n"
    )
    assert "Demo" in run([str(installed / "bin/python"), "-c", start], tmp_path)
    assert len(list((tmp_path / "data/images/gallery").iterdir())) == 10
