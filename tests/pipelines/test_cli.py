"""The command line as a person meets it: help, mistakes, exit codes; options from flags and YAML
alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.options import Checked, build, option
from pipelines.run.config import read_config
from pipelines.stages import COMMANDS, STAGES_OF_RUN, WORKERS, load
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
    ("arguments", "sentence"),
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
            "extract: --workers is -1; it must be at least 0",
        ),
        (["convert-delg", "no-such-model", "x.safetensors"], "no-such-model"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and "Traceback" not in printed
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


HEAVY = {
    "apache_beam",
    "cv2",
    "faiss",
    "fsspec",
    "h5py",
    "numpy",
    "pyarrow",
    "scipy",
    "torch",
    "yaml",
}


def test_no_help_and_no_options_import_anything_heavy() -> None:
    program = f"""
import contextlib, io, sys
from pipelines.cli import main
from pipelines.stages import COMMANDS
for name in COMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([name, "--help"])
    print(name, *sorted({HEAVY!r} & set(sys.modules)))
import pipelines
for name in {STAGES_OF_RUN!r}:
    getattr(pipelines, name).Options
print("options", *sorted({HEAVY!r} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*COMMANDS, "options"]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_registry_names_is_there(name: str) -> None:
    command = COMMANDS[name]
    parts = (command.run, command.summarise, command.complete, command.estimate)
    assert all(callable(load(part)) for part in parts if part)
    assert all(callable(load(place)) for place in command.workers.values())
    assert load(command.options).command == name

    fields = set(load(command.settings).__dataclass_fields__)
    groups = (command.uses, command.refused, command.ignored)
    assert fields.issuperset(set().union(*groups))
    assert len(set().union(*groups)) == sum(map(len, groups))
    if command.settings.endswith(":RunSettings"):
        clash = load(command.options).__dataclass_fields__.keys() & set().union(*groups)
        assert not clash


def test_a_worker_has_one_name() -> None:
    assert (
        len(WORKERS)
        == len(set(WORKERS.values()))
        == sum(len(command.workers) for command in COMMANDS.values())
    )


def test_values_spelled_out_are_those_of_the_modules_that_take_them() -> None:
    from rrt_core.extractors.delg.extractor import THRESHOLDS
    from rrt_core.extractors.delg.network import BLOCK3, EXPANDED
    from rrt_core.products.training import MODES, OPTIMISERS
    from schemas import global_descriptors, local_descriptors
    from schemas.importers import arrays, delg
    from schemas.layout import ROWS_A_PART

    for command, field, known in (
        ("convert-delg", "published", THRESHOLDS),
        ("convert-delg", "attention_input", (EXPANDED, BLOCK3)),
        ("extract", "local_dtype", local_descriptors.DTYPES),
        ("extract", "global_dtype", ("auto", *reversed(global_descriptors.DTYPES))),
        ("import", "global_dtype", global_descriptors.DTYPES),
        ("import", "layout", arrays.LAYOUTS),
        ("import", "scale_field", delg.SCALE_FIELDS),
        ("train-products", "mode", MODES),
        ("train-products", "optimiser", OPTIMISERS),
    ):
        options = load(COMMANDS[command].options)
        assert options.__dataclass_fields__[field].metadata["choices"] == tuple(known)
    for command in ("extract", "import"):
        rows = load(COMMANDS[command].options).__dataclass_fields__["rows_per_part"]
        assert rows.metadata["limits"] == {"at least": 0, "at most": ROWS_A_PART}


@pytest.mark.parametrize(
    ("command", "kept", "gone"),
    [
        (
            "tune",
            ("--overwrite", "--dry-run"),
            ("--runner", "--workers", "--stall-minutes", "--on"),
        ),
        ("train-products", ("--threads-per-worker",), ("--runner", "--workers", "--stall-minutes")),
        ("verify", ("--threads",), ("--runner", "--workers", "--overwrite", "--dry-run")),
        ("report", ("--workers", "--dry-run"), ("--on",)),
    ],
)
def test_a_command_offers_what_it_uses(
    command: str, kept: tuple[str, ...], gone: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert all(f" {flag} " in printed.replace(",", " ") for flag in kept)
    assert not any(f" {flag} " in printed.replace(",", " ") for flag in gone)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workers", "4"], "--workers is not used any more and has no effect; it"),
        (
            ["--stall-minutes", "5", "--runner", "SparkRunner", "--streaming"],
            "--runner, --stall-minutes, --streaming are not used any more and have no effect; they",
        ),
    ],
)
def test_an_option_that_is_no_longer_offered_is_accepted_with_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tune", "--out", "run", "--ground-truth", "g.json", "--result", "t.json", "--dry-run"]
    assert main([*given, *flags]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"tune: {sentence} will be refused in a later version\n"
    assert "tuning replays stored scores" in printed.out


def test_a_flag_that_was_never_offered_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["tune", "--out", "r", "--ground-truth", "g", "--result", "t", "--fish"],
        ["verify", "store", "--workers", "2"],
        ["export", "store", "--out", "o", "--dry-run"],
    ):
        assert main(arguments) == 2
        assert "unknown argument '--" in capsys.readouterr().err


@dataclass(frozen=True)
class Ranges(Checked, command="ranges"):
    """Options with ranges."""

    count: int = option("a number", 3, least=1, most=4_096)
    ratio: float = option("a ratio", 0.5, above=0, most=1)
    free: float | None = option("any finite number", None)
    sizes: tuple[float, ...] = option("numbers", (), least=2)
    kind: str = option("one of some", "", ("a", "b"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"count": 0}, "--count is 0; it must be at least 1 and at most 4,096"),
        ({"count": 4097}, "--count is 4097; it must be at least 1 and at most 4,096"),
        ({"ratio": 0.0}, "--ratio is 0.0; it must be above 0 and at most 1"),
        ({"ratio": float("nan")}, "--ratio is nan; it must be a finite number"),
        ({"free": float("inf")}, "--free is inf; it must be a finite number"),
        ({"sizes": (3.0, 1.0)}, "--sizes is 1.0; it must be at least 2"),
        ({"kind": "c"}, "--kind is 'c'; it must be one of a, b"),
    ],
)
def test_ranges_hold_from_flags_yaml_and_python(values: dict[str, Any], sentence: str) -> None:
    for make in (
        lambda: build(Ranges, values, "ranges"),
        lambda: build(
            Ranges, {key: str(value).strip("()") for key, value in values.items()}, "ranges"
        ),
        lambda: Ranges(**values),
        lambda: replace(Ranges(), **values),
    ):
        with pytest.raises(UserError) as refused:
            make()
        assert str(refused.value) == f"ranges: {sentence}"
    with pytest.raises(UserError, match=r"^my.yaml: search: --count is 0;"):
        build(Ranges, {"count": 0}, "my.yaml: search")


def test_defaults_and_the_ends_of_a_range_are_good() -> None:
    assert Ranges() == build(Ranges, {}, "ranges")
    assert Ranges(1, 1.0, -7.5, (2.0,), "a") == build(
        Ranges, {"count": "1", "ratio": 1, "free": "-7.5", "sizes": 2, "kind": "a"}, "ranges"
    )
    assert RunSettings(workers=0, on=(1,)).worker_count >= 1
    with pytest.raises(UserError, match="--on is 0; it must be at least 1"):
        RunSettings(on=(8, 0))


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
    ("values", "sentence"),
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
def test_wrong_options_are_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(Example, values, "test")


def test_configurations_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("out: a\nrerank: {shortlist: 100}\n")
    assert read_config(str(path), {"rerank.shortlist": 50, "images": "b"}) == {
        "out": "a",
        "images": "b",
        "rerank": {"shortlist": 50},
    }
    for text, sentence in [
        ("fish: 1", "no entry 'fish'"),
        ("- 1", "must be a mapping"),
        ("a: [", "no valid YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_config(str(path), {})


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name
)
def test_committed_configurations_are_valid(config: Path) -> None:
    read = read_config(str(config), {})
    for name in STAGES_OF_RUN:
        options = load(COMMANDS[name].options)
        required = {
            "images": "i",
            "out": "o",
            "stores": "s",
            "queries": "q",
            "index": "x",
            "ground_truth": "g",
        }
        known = set(options.__dataclass_fields__)
        values = {
            **{key: value for key, value in required.items() if key in known},
            **(read.get(name) or {}),
        }
        build(options, values, name)
