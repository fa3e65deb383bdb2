"""Outputs that came from a stranger: nothing outside them is removed, and nothing that only they
name is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from schemas.inside import check_inside, check_unit_name
from tests.support.damage import flip, make_photographs, make_store, one
from tests.support.watching import EXTRACTOR

OUTSIDE = [
    "../victim.txt",
    "/etc/passwd",
    "a/../../victim.txt",
    "s3://bucket/name",
    "C:/x",
    "a\\b",
    "",
    "a//b",
    "a/.",
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of four parts, and beside it a file that is not its own."""
    (tmp_path / "victim.txt").write_text("mine")
    return make_store(make_photographs(tmp_path / "photographs"), tmp_path / "store")


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def damage(store: Path) -> None:
    """So that repair has something to do."""
    one(store, "local/full/part-00001.*").unlink()


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="folder|no name"):
        check_inside(name)
    with pytest.raises(ValueError, match="folder|no name|slash"):
        check_unit_name(name)


@pytest.mark.parametrize("name", ["../victim.txt", "global/../../victim.txt"])
@pytest.mark.parametrize("options", [[], ["--remove-damaged"], ["--gc"]])
def test_what_a_marker_names_outside_stays(store: Path, name: str, options: list[str]) -> None:
    marker = store / "done" / "part-00001.json"
    entries = json.loads(marker.read_text())["files"]
    entries[0]["name"] = name
    change(marker, files=entries)
    (store / "manifest.json").unlink()

    code = main(["repair", str(store), "--own-class", EXTRACTOR, *options])

    assert code in (0, 1)
    assert (store.parent / "victim.txt").read_text() == "mine"


def test_what_a_record_of_a_repair_names_outside_stays(store: Path) -> None:
    damage(store)
    (store / "repair").mkdir()
    record = {
        "schema": "rrt-repair/1",
        "content": "",
        "versions": {},
        "units": {},
        "damaged": ["../victim.txt"],
    }
    (store / "repair" / "record.json").write_text(json.dumps(record))

    assert main(["repair", str(store), "--own-class", EXTRACTOR]) == 0

    assert (store.parent / "victim.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "worker", ["builtins:print", "os:system", "pipelines.jobs.plan:write_plan", "extract/none"]
)
def test_repair_runs_no_worker_that_is_not_registered(
    store: Path, worker: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(store)
    change(store / "plan" / "job.json", worker=worker)

    assert main(["repair", str(store), "--own-class", EXTRACTOR]) == 2

    assert f"there is no unit worker {worker!r}" in capfd.readouterr().err


def test_repair_imports_no_class_that_the_command_line_does_not_name(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(store)

    assert main(["repair", str(store)]) == 2

    assert f"give --own-class {EXTRACTOR}" in capfd.readouterr().err


@pytest.mark.parametrize("entry", ["plan", "manifest.json", "done"])
def test_overwrite_keeps_a_users_own_folder(tmp_path: Path, entry: str) -> None:
    photographs = make_photographs(tmp_path / "photographs")
    (photographs / entry).mkdir()
    (photographs / entry / "notes.json").write_text("{}")
    before = sorted(photographs.rglob("*"))

    arguments = ["--images", str(photographs), "--out", str(photographs), "--extractor", EXTRACTOR]

    assert main(["extract", *arguments, "--overwrite"]) == 2
    assert main(["extract", *arguments]) == 2
    assert sorted(photographs.rglob("*")) == before


@pytest.mark.parametrize("folder", ["global", "local/full", "done", "plan", "pieces", "repair"])
@pytest.mark.parametrize("options", [[], ["--remove-damaged"], ["--gc"]])
def test_nothing_behind_a_link_is_removed(
    store: Path, folder: str, options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder of the output is a link to elsewhere, and what lies there has the right names."""
    elsewhere = store.parent / "elsewhere"
    (store / folder).mkdir(exist_ok=True)
    (store / folder).rename(elsewhere)
    (store / folder).symlink_to(elsewhere)
    damage(store) if folder != "local/full" else flip(one(store, "global/part-00001.*"))
    before = {path: path.read_bytes() for path in elsewhere.rglob("*")}

    assert main(["verify", str(store)]) == 1

    said = capfd.readouterr()
    assert f"{folder}: it is a link to a folder elsewhere" in said.out
    assert "first put the folders themselves where there are links to them" in said.err

    assert main(["repair", str(store), "--own-class", EXTRACTOR, *options]) == 2

    assert "nothing is removed or written: put the folder itself" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in elsewhere.rglob("*")} == before


def test_a_link_of_the_owner_is_no_damage_and_a_record_cannot_reach_behind_it(store: Path) -> None:
    (store.parent / "notes").mkdir()
    (store.parent / "notes" / "mine.txt").write_text("mine")
    (store / "notes").symlink_to(store.parent / "notes")
    assert main(["verify", str(store)]) == 0
    damage(store)
    record = {"schema": "rrt-repair/1", "content": "", "versions": {}, "units": {}}
    (store / "repair").mkdir()
    text = json.dumps({**record, "damaged": ["notes/mine.txt"]})
    (store / "repair" / "record.json").write_text(text)

    assert main(["repair", str(store), "--own-class", EXTRACTOR, "--gc"]) == 0

    assert (store.parent / "notes" / "mine.txt").read_text() == "mine"


def test_a_plan_names_no_file_outside(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = store / "plan" / "source.json"
    change(source, files={"../victim.txt": "0" * 64})

    assert main(["verify", str(store)]) == 1

    assert "../victim.txt: it cannot be read: '../victim.txt' leads out" in capsys.readouterr().out
