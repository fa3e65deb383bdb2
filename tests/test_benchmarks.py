"""The benchmark scripts: each imports and ends with its figures, and is named where it lies."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.last_line import print_figures

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "benchmarks").glob("*/*.py"))
SCRIPTS = [path for path in MODULES if "__main__" in path.read_text(encoding="utf-8")]


def name(path: Path) -> str:
    """A file's path from the root."""
    return str(path.relative_to(ROOT))


def test_figures_are_one_line_of_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {64: np.float32(0.5), "some": (np.int64(3), float("inf")), "all": np.arange(2)}
    print_figures({"rates": rates, "equal": np.bool_(True), "nothing": float("nan")})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "rates": {"64": 0.5, "some": [3, None], "all": [0, 1]},
        "equal": True,
        "nothing": None,
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_prints_its_figures_last(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    (main,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    calls = [
        node.func.id
        for node in ast.walk(main)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("print", "print_figures")
    ]
    assert calls.count("print_figures") == 1
    last = max(
        (node for node in ast.walk(main) if isinstance(node, ast.Call)),
        key=lambda node: node.lineno if getattr(node.func, "id", "") in calls else 0,
    )
    assert getattr(last.func, "id", "") == "print_figures"


@pytest.mark.slow
def test_all_import_by_one_way() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    ended = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_script_runs_by_its_path_from_another_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "one.png")
    script = ROOT / "benchmarks" / "making" / "make_archives.py"
    options = ["--out", "made", "--images", "3", "--archives", "2", "--longest", "32"]
    ended = subprocess.run(
        [sys.executable, str(script), *options, "--processes", "1"],
        cwd=tmp_path,
        env={**os.environ, "RRT_TEST_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert (figures["archives"], figures["images"]) == (2, 3)
    assert len(list((tmp_path / "made").glob("images.*.tar.gz"))) == 2


def test_every_script_that_is_named_exists() -> None:
    folders = ("docs", "pipelines", "rrt_core", "schemas", "tests", "benchmarks")
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in folders:
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py")]
    missing = {
        f"{name(path)}: {script}"
        for path in texts
        for script in re.findall(r"benchmarks/[\w/]+\.py", path.read_text(encoding="utf-8"))
        if not (ROOT / script).is_file()
    }
    assert not missing
