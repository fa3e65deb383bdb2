"""Folders and places of any kind as --out and as inputs: what is a user's own is never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.place import open_place
from tests.support.command_line import command
from tests.support.hostile import accepted, assert_ended_well, inputs
from tests.support.mutations import RAW
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR

NAMES = [
    *("plan/floor.txt", "plan/plan.json", "plan/job.json", "plan/retry-00001.parquet"),
    *("manifest.json", "parts.parquet", "export.json", "about.json", "done/part-00000.json"),
    *("pieces/archive-00000.00000.json", "scratch/notes.txt", "attempts/x.json", "errors/x.json"),
    *("repair/record.json", "next/overwrite.json", "next/swap.json", "next/photo.png"),
    *("layers/abc/manifest.json", "global/part-00000.parquet", "local/full/x.h5", "photos/a.txt"),
    *("diary.txt", "x.0123456789ab.tmp", "metrics.json", "weights.safetensors"),
]
CONTENTS = st.sampled_from(
    [b"x", b"{}", b'{"schema": "rrt-manifest/9"}', b"PAR1", *RAW[:3], *RAW[6:]]
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    picture(1).save(folder / "a.png")
    return folder


def extract(images: Path, out: object, *more: object) -> list[object]:
    """A command that makes a store."""
    return ["extract", "--images", images, "--out", out, "--extractor", EXTRACTOR, *more]


def state(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@inputs(60)
@given(
    st.dictionaries(st.sampled_from(NAMES), CONTENTS, max_size=4),
    st.sampled_from([("--overwrite",), (), ("--retry-failed",)]),
)
def test_a_users_own_folder(images: Path, files: dict[str, bytes], more: tuple[str, ...]) -> None:
    house = images.parent / "house"
    shutil.rmtree(house, ignore_errors=True)
    for name, data in {"house.txt": b"mine", **files}.items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_bytes(data)
    before = state(house)

    ended = command(*extract(images, house, *more))

    assert_ended_well(ended, 1, 2)
    assert state(house) == before


def test_a_folder_with_an_entry_plan(images: Path, tmp_path: Path) -> None:
    """`mkdir -p house/plan house/photos`, with files of the user's in all of them."""
    house = tmp_path / "house"
    for name in ("plan/floor.txt", "photos/a.txt", "diary.txt"):
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text("x")
    before = state(house)
    for more in ((), ("--overwrite",)):
        ended = command(*extract(images, house, *more))
        assert_ended_well(ended, 2)
        assert "holds files of something else; give an empty or a new folder" in ended.said
        assert state(house) == before


PLACES = [
    "ftp://127.0.0.1:1/x",
    "memory://x",
    "http://127.0.0.1:1/x",
    "https://",
    "s4://x/y",
    "file://",
    "::",
    "zip::x.zip",
    "simplecache::",
    "a\0b",
    "n" * 300,
    "n/" * 3000,
    os.fsdecode(b"caf\xe9"),
    "",
    ".",
    "/proc/self/x",
    "/dev/null",
    "/dev/zero/x",
    "~nobody-of-this-name/x",
]


# folders of the working folder, however they are called
LOCAL = [".", "file://", "zip::x.zip", "::", "simplecache::", "~nobody-of-this-name/x"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("option", ["out", "images", "index", "repair", "import", "truth"])
def test_places(
    place: str, option: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RRT_STORAGE_TRIES", "1")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    out = tmp_path / "out"
    ended = {
        "out": lambda: command(*extract(images, place)),
        "images": lambda: command(*extract(Path(place), out)),
        "index": lambda: command("index", "--stores", place, "--out", out),
        "repair": lambda: command("repair", place),
        "import": lambda: command("import", "npy", place, "--out", out),
        "truth": lambda: command(
            *extract(images, out), "--ground-truth", place, "--take", "queries"
        ),
    }[option]()

    can_be_made = option == "out" and place in LOCAL
    assert_ended_well(ended, *((0,) if can_be_made else (1, 2)))


@inputs(60)
@given(st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode))
def test_any_text_as_a_place(text: str) -> None:
    if "://" not in text:
        accepted(lambda: open_place(text))
