"""verify of files of any content: each is a line of a problem, and none a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.verify.verify import print_lines, summary, verify
from tests.support.command_line import command
from tests.support.damage import flip, make_photographs, make_store, one, rewrite
from tests.support.hostile import assert_ended_well

UNIT = "part-00001"
RECORDS = ["manifest.json", "plan/plan.json", "plan/job.json", "plan/source.json"]
RECORDS += [f"done/{UNIT}.json"]
VALUES: list[Any] = [None, -1, 2.5, "x", [], {}, [1], {"x": 1}, True]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return make_store(make_photographs(folder / "photographs"), folder / "store")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON value, of lists the first two."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, below in inner:
        yield (*where, key)
        if isinstance(below, (dict, list)):
            yield from places(below, (*where, key))


@pytest.mark.parametrize("name", RECORDS)
def test_a_value_of_another_kind(name: str, store: Path) -> None:
    path = store / name
    whole = path.read_text()
    chooser = random.Random(name)
    for where in places(json.loads(whole)):
        record = json.loads(whole)
        above = record
        for key in where[:-1]:
            above = above[key]
        above[where[-1]] = chooser.choice(VALUES)
        path.write_text(json.dumps(record))
        findings = verify(str(store), quick=True)
        print_lines(findings)
        summary(str(store), findings)
        json.dumps([findings_.to_json() for findings_ in findings])


@pytest.mark.parametrize("name", [*RECORDS, "parts.parquet", "plan/images.parquet"])
def test_no_record_at_all(name: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (store / name).read_bytes()
    for data in [b"", b"null", b"1", b"[]", b"{}", b"\xff\x00", b"[" * 100_000, whole[:-9]]:
        (store / name).write_bytes(data)
        assert main(["verify", str(store), "--quick"]) == 1
        said = capsys.readouterr()
        assert f"{name}: " in said.out and "Traceback" not in said.err


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", [_pipe, _loop, _device])
@pytest.mark.parametrize("name", [*RECORDS, "parts.parquet", "plan/images.parquet"])
def test_what_is_no_file_in_the_place_of_one(
    how: Callable[[Path], None], name: str, store: Path, tmp_path: Path
) -> None:
    """None is waited for, and none ends a command in a traceback."""
    how(store / name)
    for arguments in (
        ["verify", store, "--quick"],
        ["export", store, "--out", tmp_path / "arrays"],
        ["repair", store, "--remove-damaged"],
    ):
        assert_ended_well(command(*arguments))


def test_a_folder_in_the_place_of_a_file(store: Path) -> None:
    for path in [store / "manifest.json", one(store, f"global/{UNIT}.*")]:
        path.unlink()
        path.mkdir()
    assert main(["verify", str(store)]) == 1


@pytest.mark.parametrize("kind", ["global", "local/full"])
def test_damaged_files_whose_hash_was_made_to_fit(kind: str, store: Path) -> None:
    """What Parquet and HDF5 raise of any byte is a problem of the file, if it is one at all."""
    size = one(store, f"{kind}/{UNIT}.*").stat().st_size
    chooser = random.Random(kind)
    for place in [*range(0, 64, 8), *(chooser.randrange(size) for _ in range(60))]:
        rewrite(store, kind, UNIT, lambda path, at=place: flip(path, at))
        for findings in verify(str(store)):
            assert {problem.unit for problem in findings.problems} <= {UNIT}
        rewrite(store, kind, UNIT, lambda path, at=place: flip(path, at))
    for data in [b"", b"PAR1", b"\x89HDF\r\n\x1a\n"]:
        rewrite(store, kind, UNIT, lambda path, data=data: path.write_bytes(data) and None)
        (findings,) = verify(str(store))
        assert findings.damaged_units == [UNIT]


def test_names_that_no_terminal_can_show(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(os.fsdecode(os.fsencode(str(store)) + b"/a\xff.txt"))).write_text("mine")
    assert main(["verify", str(store)]) == 0
    assert "nothing names a" in capsys.readouterr().out
    path = store / "done" / f"{UNIT}.json"
    path.write_text(path.read_text().replace('"global/', '"global/\\ud800'))
    (store / "manifest.json").unlink()
    assert main(["verify", str(store)]) == 1
    said = capsys.readouterr()
    assert "is no text that can be written" in said.out and "Traceback" not in said.err


def test_facts_of_another_kind(store: Path) -> None:
    path = store / "manifest.json"
    for facts in [{"units": "x"}, {"units": [1]}, {"globals": [1]}]:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "facts": facts}))
        verify(str(store))
