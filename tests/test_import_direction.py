"""Imports run one way: pipelines -> rrt_core, schemas; rrt_core -> schemas. And starting up loads
nothing heavy.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "pipelines": {"tests", "benchmarks", "setup"},
    "rrt_core": {"tests", "benchmarks", "setup", "pipelines", "apache_beam"},
    "schemas": {"tests", "benchmarks", "setup", "pipelines", "rrt_core", "apache_beam"},
}
FILES = sorted(
    path.relative_to(ROOT) for package in FORBIDDEN for path in (ROOT / package).rglob("*.py")
)
HEAVY = (
    "apache_beam",
    "cv2",
    "faiss",
    "h5py",
    "matplotlib",
    "pyarrow",
    "scipy",
    "skimage",
    "sklearn",
    "torch",
)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import in a file: at its head, in functions, and by a
    constant name.
    """
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level] if node.level else ()
            yield node.lineno, ".".join([*above, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def test_the_three_packages_are_there():
    assert {path.parts[0] for path in FILES} == set(FORBIDDEN)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    forbidden = FORBIDDEN[path.parts[0]]
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imported(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_relative_imports_and_constant_names_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "rrt_core" / "rerankers"
    folder.mkdir(parents=True)
    (folder / "some.py").write_text(
        "from . import mutual_nn\nfrom ..transformer.scorer import PairScorer\ndef f():\n    "
        "import torch.nn\n"
        "    importlib.import_module('pipelines.jobs.attempt')\n"
    )
    assert sorted(imported(Path("rrt_core/rerankers/some.py"))) == [
        (1, "rrt_core.rerankers"),
        (2, "rrt_core.transformer.scorer"),
        (4, "torch.nn"),
        (5, "pipelines.jobs.attempt"),
    ]


@pytest.mark.parametrize(
    "module", ["pipelines", "pipelines.cli", "pipelines.__main__", "rrt_core", "schemas"]
)
def test_starting_up_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not loaded.split()
