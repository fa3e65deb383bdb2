"""What `extract` and `import` say: files passed over, and what failed with its classes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np

from tests.support.command_line import command, findings
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR

SETTINGS = ("--extractor", EXTRACTOR, "--workers", "1")


def jpeg(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path, "JPEG")


def test_files_that_are_passed_over(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jpg", "nosuffix", "photo.jpg_large", "photo.jpg?w=200")):
        jpeg(tmp_path / "ph" / name, number)
    for number in range(11):
        (tmp_path / f"ph/IMG_{number}.NEF").write_bytes(b"MM\0*")
    (tmp_path / "ph/notes.txt").write_text("notes")

    said = "passed over 12 files: 11 .nef (convert the raw photographs to JPEG), 1 other"
    out = tmp_path / "store"
    estimated = command(
        "extract", "--images", tmp_path / "ph", "--out", out, *SETTINGS, "--dry-run"
    )
    assert estimated.code == 0 and said in estimated.said
    ended = command("extract", "--images", tmp_path / "ph", "--out", out, *SETTINGS)
    assert ended.code == 0 and f"4 images; {said}" in ended.said
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    assert facts["passed_over"] == {".nef": 11, "others": 1}
    assert not findings(out)[0]["problems"]
    (out / "manifest.json").unlink()
    assert command("extract", "--images", tmp_path / "ph", "--out", out, *SETTINGS).code == 0
    assert json.loads((out / "manifest.json").read_text())["facts"] == facts, "as it was planned"


def test_files_that_are_passed_over_in_archives(tmp_path: Path) -> None:
    jpeg(tmp_path / "ph/a.jpg")
    for number in range(3):
        (tmp_path / f"ph/IMG_{number}.NEF").write_bytes(b"MM\0*")
    (tmp_path / "ph/a.json").write_text("{}")  # a label, as WebDataset has them
    with tarfile.open(tmp_path / "ph.tar", "w") as archive:
        archive.add(tmp_path / "ph", "ph")

    out = tmp_path / "store"
    ended = command("extract", "--images", tmp_path / "ph.tar", "--out", out, *SETTINGS)
    said = "passed over in archives 3 files: 3 .nef (convert the raw photographs to JPEG)"
    assert ended.code == 0 and said in ended.said
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    assert facts["notes"] == {"passed_over.nef": 3}
    assert not findings(out)[0]["problems"]


def test_failures_by_class_with_an_example_each(tmp_path: Path) -> None:
    for number in range(4):
        jpeg(tmp_path / f"ph/{number}.jpg", number)
    for name in ("b0.jpg", "b1.jpg"):
        (tmp_path / "ph" / name).write_bytes(b"no picture")
    (tmp_path / "ph/c.png").write_bytes(b"")
    out, images = tmp_path / "store", ("extract", "--images", tmp_path / "ph")

    ended = command(*images, "--out", out, *SETTINGS)
    assert ended.code == 0 and "3 of 7 images failed:" in ended.said
    lines = [line.strip() for line in ended.said.splitlines() if "such as" in line]
    assert [line.split(",")[0] for line in lines] == ["2 unreadable", "1 empty"], ended.said
    assert "ph/b0.jpg: " in lines[0] and "ph/c.png: " in lines[1]
    assert "3 of 7 images failed:" in command(*images, "--out", out, *SETTINGS).said, "again"

    jpeg(tmp_path / "ph/b0.jpg", 7)
    ended = command(*images, "--out", out, *SETTINGS, "--retry-failed")
    assert ended.code == 0 and "2 of 7 images failed:" in ended.said
    lines = [line.strip() for line in ended.said.splitlines() if "such as" in line]
    assert [line.split(",")[0] for line in lines] == ["1 empty", "1 unreadable"]
    assert "ph/b1.jpg: " in lines[1]

    ended = command(*images, "--out", tmp_path / "strict", *SETTINGS, "--max-failures", "20%")
    assert ended.code == 1 and "more than --max-failures 20% allows" in ended.said


def test_all_failed_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "ph").mkdir()
    for number in range(3):
        (tmp_path / f"ph/{number}.jpg").write_bytes(b"no picture")
    for _ in range(2):
        ended = command(
            "extract", "--images", tmp_path / "ph", "--out", tmp_path / "store", *SETTINGS
        )
        assert ended.code == 1 and "all 3 images failed; the first is ph/0.jpg: " in ended.said
    assert not findings(tmp_path / "store")[0]["problems"]

    np.save(tmp_path / "bad.npy", np.full((2, 8), np.nan, np.float32))
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    ended = command(
        *("import", "npy", tmp_path / "bad.npy", "--list", tmp_path / "list.txt"),
        *("--out", tmp_path / "imported", "--workers", "1"),
    )
    assert ended.code == 1 and "all 2 images failed" in ended.said, ended.said
