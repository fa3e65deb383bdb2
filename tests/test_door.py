"""run_pipeline.sh: which environment it takes, when it makes one, what happens when it is killed or
started twice.

The script under test is the real one, in a copy of the project that has a space in its path. What
stands in is the installer alone: a `uv` on the PATH that makes real, empty virtual environments,
writes an empty `faiss.py` instead of fetching gigabytes, and waits where a test asks it to. .ci/run
begins with the real installation.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

UV = """import os, pathlib, subprocess, sys, time
here = pathlib.Path({state!r})
arguments = sys.argv[1:]
with open(here / "calls", "a") as calls:
    print(*arguments, file=calls)
if arguments[0] == "venv":
    subprocess.run([{python!r}, "-m", "venv", "--without-pip", arguments[-1]], check=True)
elif arguments[:2] == ["pip", "install"]:
    if (here / "fail").exists():
        sys.exit((here / "fail").read_text())
    while (here / "wait").exists():
        time.sleep(0.02)
    python = arguments[arguments.index("--python") + 1]
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    pathlib.Path(site.strip(), "faiss.py").touch()
"""  # noqa: E501

# Stands for the package that the door starts.
MAIN = """import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "cwd": os.getcwd(), "prefix": sys.prefix, "path": sys.path}), flush=True)
while os.path.exists(os.environ.get("STAY", "")):
    __import__("time").sleep(0.02)
"""  # noqa: E501


class Door:
    """A copy of the project's door with its own installer and settings."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project with spaces"
        self.state = folder / "state"
        (self.root / "pipelines").mkdir(parents=True)
        self.state.mkdir()
        for name in ("run_pipeline.sh", "setup.py", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "pipelines" / "__main__.py").write_text(MAIN)
        commands = folder / "commands"
        commands.mkdir()
        # Started through sh, since the path of this Python may hold a space, and a #! line may not.
        (self.state / "uv.py").write_text(UV.format(python=sys.executable, state=str(self.state)))
        (commands / "uv").write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{self.state}/uv.py" "$@"\n'
        )
        (commands / "uv").chmod(0o755)
        foreign = ("RRT_", "COV", "PYTHON")
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith(foreign)
        } | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",  # nothing is ever fetched
            "RRT_PYTHON": sys.executable,
            "RRT_ACCELERATOR": "cpu",
        }

    def start(
        self, *arguments: str, script: Path | None = None, cwd: Path | None = None, **settings: str
    ):
        process = subprocess.Popen(
            [script or self.root / "run_pipeline.sh", *arguments],
            cwd=cwd or self.root.parent,
            env=self.environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog = threading.Timer(60, process.kill)
        watchdog.daemon = True
        watchdog.start()
        return process

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def explain(self, **settings: str) -> dict[str, str]:
        done = self.run("--explain-environment", **settings)
        assert done.returncode == 0, done.stderr
        return dict(line.split(": ", 1) for line in done.stdout.splitlines())

    def calls(self, kind: str) -> list[str]:
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(kind)]

    def environments(self) -> list[Path]:
        return sorted(self.root.glob(".venv-[0-9]*"))

    def until_installing(self, times: int = 1) -> None:
        for _ in range(1000):
            if len(self.calls("pip install")) >= times:
                return
            time.sleep(0.02)
        raise AssertionError("the installer was not started")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_first_use_makes_the_environment_and_later_starts_only_hand_over(door, tmp_path):
    first = door.run("search", "--out", "a b", cwd=tmp_path)
    calls = len(door.calls(""))
    assert first.returncode == 0, first.stderr
    assert '"arguments": ["search", "--out", "a b"]' in first.stdout
    assert f'"cwd": "{tmp_path}"' in first.stdout
    assert f'"prefix": "{door.environments()[0]}"' in first.stdout
    assert "making the Python environment" in first.stderr
    assert (door.root / ".venv" / "bin" / "python").exists()

    second = door.run("search", "--out", "a b", cwd=tmp_path)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert len(door.calls("")) == calls


def test_it_is_found_through_links_and_the_callers_folder_hides_nothing(door, tmp_path):
    inner, outer = tmp_path / "links" / "inner", tmp_path / "outer"
    inner.parent.mkdir()
    inner.symlink_to("../a project with spaces/run_pipeline.sh")
    outer.symlink_to(inner)
    decoy = tmp_path / "decoy" / "pipelines"
    decoy.mkdir(parents=True)
    (decoy / "__main__.py").write_text("print('the wrong one')")
    done = door.run("index", script=outer, cwd=decoy.parent)
    assert '"arguments": ["index"]' in done.stdout, done.stderr
    assert f'"{decoy.parent}"' not in done.stdout.split('"path"')[1]


def test_explaining_changes_nothing(door):
    before = sorted(door.root.iterdir())
    assert door.explain()["state"] == "to be made"
    assert sorted(door.root.iterdir()) == before
    assert not door.calls("")


@pytest.mark.parametrize("name", ["setup.py", "constraints.txt"])
def test_a_changed_file_makes_a_new_environment_and_removes_the_old(door, name):
    door.run("demo")
    (old,) = door.environments()
    with open(door.root / name, "a") as file:
        file.write("# changed\n")
    assert door.explain()["state"] == "to be made"
    assert door.run("demo").returncode == 0
    (new,) = door.environments()
    assert new != old
    assert (door.root / ".venv").resolve() == new


def test_extras_are_carried_over_to_the_next_environment(door):
    door.run("demo", RRT_EXTRAS="gcp")
    with open(door.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    door.run("demo", RRT_EXTRAS="dev")
    assert door.calls("pip install")[-1].endswith("[cpu,dev,gcp]")


def test_a_moved_project_does_not_use_the_environment_it_came_with(door, tmp_path):
    door.run("demo")
    door.root = door.root.rename(tmp_path / "moved")
    assert door.explain()["state"] == "to be made"


def test_an_environment_in_use_is_not_removed(door, tmp_path):
    stay = tmp_path / "stay"
    stay.touch()
    door.run("demo")
    (old,) = door.environments()
    job = door.start("extract", STAY=str(stay))
    assert job.stdout.readline()
    with open(door.root / "constraints.txt", "a") as file:
        file.write("# changed\n")
    done = door.run("demo")
    assert f"keeping {old} for now" in done.stderr
    stay.unlink()
    job.communicate(timeout=20)
    assert old.exists()
    with open(door.root / "constraints.txt", "a") as file:
        file.write("# changed again\n")
    door.run("demo")
    assert not old.exists()


def test_extras_are_added_to_the_environment_and_stay(door):
    door.run("demo")
    assert door.explain(RRT_EXTRAS="gcp")["state"] == "whole, to be added: gcp"
    assert door.run("demo", RRT_EXTRAS="gcp").returncode == 0
    assert door.run("demo", RRT_EXTRAS="spark,gcp").returncode == 0
    assert door.explain(RRT_EXTRAS="spark gcp")["state"] == "whole"
    installed = [re.search(r"\[(.*)\]", call)[1] for call in door.calls("pip install")]
    assert installed == ["cpu", "cpu,gcp", "cpu,gcp,spark"]
    assert len(door.calls("venv")) == 1


def test_a_start_killed_while_installing_leaves_nothing_that_is_used(door):
    (door.state / "wait").touch()
    first = door.start("demo")
    door.until_installing()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert door.explain()["state"] == "half-made, to be made anew"
    (door.state / "wait").unlink()
    done = door.run("demo")
    assert done.returncode == 0, done.stderr
    assert len(door.calls("venv")) == 2
    assert door.explain()["state"] == "whole"


def test_an_installer_that_outlives_its_killed_door_is_waited_for(door):
    (door.state / "wait").touch()
    first = door.start("demo")
    door.until_installing()
    first.kill()
    first.wait()
    second = door.start("demo")
    assert "waiting" in second.stderr.readline()
    assert len(door.calls("venv")) == 1
    (door.state / "wait").unlink()
    out, err = second.communicate(timeout=30)
    assert '"arguments": ["demo"]' in out, err
    assert len(door.calls("venv")) == 2


def test_a_kill_while_adding_extras_makes_the_environment_anew(door):
    door.run("demo")
    (door.state / "wait").touch()
    adding = door.start("demo", RRT_EXTRAS="gcp")
    door.until_installing(2)
    os.killpg(adding.pid, signal.SIGKILL)
    adding.communicate()
    assert door.explain()["state"] == "half-made, to be made anew"


def test_two_starts_at_once_install_once(door):
    (door.state / "wait").touch()
    first = door.start("first")
    door.until_installing()
    second = door.start("second")
    assert "another start is making the environment" in second.stderr.readline()
    (door.state / "wait").unlink()
    for name, process in (("first", first), ("second", second)):
        out, err = process.communicate(timeout=30)
        assert f'"arguments": ["{name}"]' in out, err
    assert len(door.calls("venv")) == len(door.calls("pip install")) == 1


def test_the_environment_may_lie_elsewhere_and_the_project_be_read_only(door, tmp_path):
    place = tmp_path / "elsewhere" / "env"
    before = sorted(door.root.rglob("*"))
    done = door.run("demo", RRT_VENV=str(place), PYTHONDONTWRITEBYTECODE="1")
    assert f'"prefix": "{place}-' in done.stdout, done.stderr
    assert sorted(door.root.rglob("*")) == before


def test_a_folder_of_someone_elses_by_the_name_of_the_link_is_left_alone(door):
    (door.root / ".venv").mkdir()
    (door.root / ".venv" / "mine").touch()
    assert door.run("demo").returncode == 0
    assert os.listdir(door.root / ".venv") == ["mine"]


def test_a_failed_installation_is_one_sentence_with_the_log_and_the_mend(door):
    (door.state / "fail").write_text("error: No space left on device")
    done = door.run("demo", RRT_INSTALLER="uv")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "the installation failed (log: " in last and "the disk is full" in last
    assert "No space left" in Path(re.search(r"log: ([^)]*)\)", last)[1]).read_text()
    assert door.explain()["state"] == "half-made, to be made anew"


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"RRT_ACCELERATOR": "cpu,gpu"}, "cpu and gpu exclude each other"),
        ({"RRT_ACCELERATOR": "cpu", "RRT_EXTRAS": "gcp,gpu"}, "cpu and gpu exclude each other"),
        ({"RRT_ACCELERATOR": "tpu"}, "'tpu' is not known"),
        ({"RRT_ACCELERATOR": "gcp"}, "'gcp' is not known"),
        ({"RRT_EXTRAS": "gpc"}, "'gpc' is not known"),
        ({"RRT_INSTALLER": "conda"}, "RRT_INSTALLER is 'conda'"),
        (
            {"RRT_PYTHON": "/nowhere/python3"},
            "RRT_PYTHON=/nowhere/python3 is no Python from 3.11 up",
        ),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(door, settings, sentence):
    done = door.run("demo", **settings)
    assert done.returncode == 1
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert not door.environments()


def test_the_door_knows_the_extras_of_setup_py():
    known = re.search(r"KNOWN_EXTRAS='(.*)'", (ROOT / "run_pipeline.sh").read_text())[1].split()
    text = (ROOT / "setup.py").read_text()
    declared = re.findall(r'^    "(\w+)": \[', text, re.MULTILINE)
    assert sorted({*known, "cpu", "gpu"}) == sorted(
        set(declared) - {"pipelines", "rrt_core", "schemas"}
    )


def test_the_constraints_pin_versions_and_name_no_host():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if not re.match(r"[a-z0-9-]+==\S+( ; .*)?$", line)]
    pinned = {line.split("==")[0] for line in lines}
    assert {
        "apache-beam",
        "faiss-cpu",
        "faiss-gpu",
        "gcsfs",
        "pyspark",
        "pytest",
        "torch",
        "uv",
    } <= pinned


def test_a_later_start_adds_less_than_half_a_second(door):
    door.run("demo")
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        door.run("demo")
        through_the_door = time.perf_counter() - began
        began = time.perf_counter()
        python = door.root / ".venv" / "bin" / "python"
        subprocess.run([python, "-m", "pipelines"], cwd=door.root, capture_output=True, check=True)
        seconds.append(through_the_door - (time.perf_counter() - began))
    assert min(seconds) < 0.5
