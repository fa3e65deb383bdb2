"""The command line as a person meets it: help, mistakes, exit codes; options from flags and YAML
alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.options import build, option
from pipelines.run.config import read_config
from pipelines.stages import COMMANDS
from schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"run_pipeline.sh {command}" in printed and "examples:" in printed


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["extrct"], "no command 'extrct'"),
        (["extract"], "--out is missing"),
        (["extract", "--out", "x"], "--images is missing"),
        (["extract", "--images", "no-such-folder", "--out", "x"], "no such folder"),
        (["extract", "--images", str(ROOT), "--out", "x", "--gallry", "y"], "'--gallry'"),
        (
            ["extract", "--images", str(ROOT), "--out", "x", "--take", "fish"],
            "invalid choice: 'fish'",
        ),
        (
            ["extract", "--images", str(ROOT), "--out", "x", "--extractor", "fish"],
            "no extractor 'fish'",
        ),
        (["extract", "--images", str(ROOT / "schemas"), "--out", "x"], "no images are named here"),
        (
            ["extract", "--images", str(ROOT), "--out", "x", "--list", "no-such.csv"],
            "no such image list",
        ),
        (["extract", "--images", str(ROOT), "--out", "x", "--ground-truth", "g.json"], "--take"),
        (["index", "--stores", "no-such-store", "--out", "x"], "make it with 'extract'"),
        (
            ["search", "--queries", "no-such-store", "--index", "i", "--out", "x"],
            "make it with 'extract'",
        ),
        (["evaluate", "--out", "no-such-run", "--ground-truth", "g.json"], "make it with 'search'"),
        (
            ["evaluate", "--out", "r", "--ground-truth", "g.json", "--ensemble", "0.5"],
            "it must be lambda,gamma",
        ),
        (
            ["tune", "--out", "no-such-run", "--ground-truth", "g", "--result", "t.json"],
            "make it with 'search'",
        ),
        (["run", "--config", "no-such.yaml"], "no such configuration"),
        (["extract", "--images", str(ROOT), "--out", "x", "--on", "1,8"], "give --dry-run too"),
        (
            ["extract", "--images", str(ROOT), "--out", "x", "--json", "x.json"],
            "give --dry-run too",
        ),
        (
            ["extract", "--images", str(ROOT), "--out", "x", "--workers", "-1"],
            "--workers is -1; it must be 0 or more",
        ),
        (["convert-delg", "no-such-model", "x.safetensors"], "no-such-model"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert told in printed and "Traceback" not in printed
    assert printed.count("\n") == 1


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "pipelines", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("There is no command")


def test_what_a_command_always_refuses_is_not_in_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, flags in (
        ("repair", ("--dry-run", "--overwrite", "--json")),
        ("import", ("--dry-run", "--on")),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        assert not any(f" {flag} " in printed for flag in flags) and "--workers" in printed


@pytest.mark.parametrize("reader", ["gone", "/dev/full"])
def test_output_that_nobody_takes_is_no_traceback(reader: str) -> None:
    command = [sys.executable, "-m", "pipelines", "--help"]
    if reader == "gone":
        read, write = os.pipe()
        os.close(read)
    elif os.path.exists(reader):
        write = os.open(reader, os.O_WRONLY)
    else:
        pytest.skip("there is no /dev/full")
    done = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == ((141, 0) if reader == "gone" else (2, 1))


@dataclass(frozen=True)
class Example:
    """Options of every kind."""

    name: str = option("a name")
    count: int = option("a number", 3)
    ratio: float = option("a ratio", 0.5)
    flag: bool = option("a switch", False)
    sizes: tuple[int, ...] = option("numbers", ())
    more: dict[str, Any] = option("a mapping", {})


def test_flags_and_yaml_give_the_same_options() -> None:
    flags = {
        "name": "a",
        "count": "7",
        "sizes": "1,2",
        "more": ["sizes=320,224", "deep=true", "text=x"],
        "flag": True,
    }
    yaml = {
        "name": "a",
        "count": 7,
        "sizes": [1, 2],
        "more": {"sizes": [320, 224], "deep": True, "text": "x"},
    }
    assert build(Example, flags, "flags") == build(Example, {**yaml, "flag": True}, "yaml")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "--name is missing"),
        ({"name": ""}, "--name is missing"),
        ({"name": "a", "fish": 1}, "no option 'fish'"),
        ({"name": "a", "count": "many"}, "count is 'many'"),
        ({"name": "a", "count": 1.5}, "count is 1.5"),
        ({"name": "a", "flag": "yes"}, "flag is 'yes'"),
        ({"name": "a", "more": ["novalue"]}, "not KEY=VALUE"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(Example, values, "test")


def test_configurations_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("out: a\nrerank: {shortlist: 100}\n")
    assert read_config(str(path), {"rerank.shortlist": 50, "images": "b"}) == {
        "out": "a",
        "images": "b",
        "rerank": {"shortlist": 50},
    }
    for text, told in [
        ("fish: 1", "no entry 'fish'"),
        ("- 1", "must be a mapping"),
        ("a: [", "no valid YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            read_config(str(path), {})


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_committed_configurations_are_valid(config: Path) -> None:
    from pipelines.evaluate import stage as evaluate
    from pipelines.extract import stage as extract
    from pipelines.index import stage as index
    from pipelines.report import stage as report
    from pipelines.rerank import stage as rerank
    from pipelines.search import stage as search

    read = read_config(str(config), {})
    for name, module in {
        "extract": extract,
        "index": index,
        "search": search,
        "rerank": rerank,
        "evaluate": evaluate,
        "report": report,
    }.items():
        required = {
            "images": "i",
            "out": "o",
            "stores": "s",
            "queries": "q",
            "index": "x",
            "ground_truth": "g",
        }
        known = set(module.Options.__dataclass_fields__)
        values = {
            **{key: value for key, value in required.items() if key in known},
            **(read.get(name) or {}),
        }
        build(module.Options, values, name)
