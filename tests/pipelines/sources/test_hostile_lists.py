"""Generated lists and folders: what is there is found once, all else is one sentence."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.listing import list_images
from pipelines.sources.name_list import NAME_COLUMNS
from pipelines.sources.spec import SourceSpec
from tests.support.command_line import command
from tests.support.hostile import accepted, assert_ended_well, inputs
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR

FILES = ("a.jpg", "b c.png", "d,e.jpg", "f;g.jpg", 'h"i.jpg', "sub/j.JPEG", "ü.webp", "k\tl.gif")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lists")
    for name in FILES:
        (made / "ph" / name).parent.mkdir(parents=True, exist_ok=True)
        (made / "ph" / name).write_bytes(b"")
    return made


def listed(folder: Path, name: str = "list.csv") -> list[str]:
    found = list_images(SourceSpec(str(folder / "ph"), list=str(folder / name), source="s"))
    return [os.fsdecode(one.location).removeprefix(f"{folder}/ph/") for one in found]


@inputs(60)
@given(
    st.lists(st.sampled_from(FILES), min_size=1, max_size=8),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["", "was", *NAME_COLUMNS, "PATH"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_lists_of_any_form(
    folder: Path,
    names: list[str],
    before: int,
    behind: int,
    separator: str,
    encoding: str,
    header: str,
    end: str,
) -> None:
    made = io.StringIO()
    writer = csv.writer(made, delimiter=separator, lineterminator=end)
    if header:
        writer.writerow([*["x"] * before, header, *["y"] * behind])
    writer.writerows([*range(before), name, *range(behind)] for name in names)
    (folder / "list.csv").write_bytes(made.getvalue().encode(encoding))
    assert listed(folder) == names


@inputs(60)
@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from([*FILES, "path", "\n", ",", ";", '"', "..", "/", "\t", "\r", "é", "\0"]),
        max_size=30,
    ).map(lambda pieces: "".join(pieces).encode())
)
def test_lists_of_anything(folder: Path, data: bytes) -> None:
    (folder / "list.csv").write_bytes(data)
    if accepted(lambda: listed(folder)):
        assert any((folder / "ph" / os.fsencode(name).decode()).exists() for name in listed(folder))


@inputs(20)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["path", "x", "label", ""]),
            st.lists(
                st.sampled_from(FILES) | st.none() | st.text(max_size=3), min_size=3, max_size=3
            )
            | st.lists(st.integers(0, 9), min_size=3, max_size=3)
            | st.lists(st.lists(st.integers(0, 2), max_size=2), min_size=3, max_size=3),
        ),
        max_size=4,
    )
)
def test_parquet_lists(folder: Path, columns: list[tuple[str, list[object]]]) -> None:
    arrays = [pa.array(values) for _, values in columns]
    pq.write_table(pa.table(arrays, names=[name for name, _ in columns]), folder / "list.parquet")
    accepted(lambda: listed(folder, "list.parquet"))


NAMES = st.sampled_from(["a", "b", "c", ".h"])
TREES = st.lists(
    st.tuples(
        st.lists(NAMES, max_size=3).map("/".join),
        st.sampled_from(["image", "text", "fifo", "link", "folder"]),
        st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=3).map("/".join),
        st.sampled_from(["x.jpg", "y", "z.heic"]),
    ),
    max_size=14,
)


@inputs(50)
@given(TREES)
def test_trees_with_links(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[str, str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    data = io.BytesIO()
    picture(0).crop((0, 0, 16, 16)).save(data, "JPEG")
    images = set()
    for place, kind, target, name in tree:
        path = root / "t" / place / name
        if kind == "link":
            path = root / "t" / place / "l" if place else root / "t" / "l"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            if kind == "link":
                os.symlink(target, path)
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.write_bytes(data.getvalue() if kind == "image" else b"text")
                is_hidden = "/." in f"/{place}"
                if kind == "image" and not is_hidden and path.suffix != ".heic":
                    images.add(path.resolve())
        except OSError:  # below a link that leads nowhere, or to itself
            continue

    def found() -> list[str]:
        return [one.record_id for one in list_images(SourceSpec(str(root / "t"), source="s"))]

    (root / "t").mkdir(exist_ok=True)
    if accepted(found):
        ids = found()
        assert len(set(ids)) == len(ids)
        resolved = {(root / "t" / name.removeprefix("s/")).resolve() for name in ids}
        inside = {path for path in images if path.is_relative_to((root / "t").resolve())}
        assert inside <= resolved
    shutil.rmtree(root)


PLACES = ["FIFO", "/dev/zero", "/proc", "/dev/null", "x" * 5000, "no\0thing", "ftp://127.0.0.1:1/x"]
PLACES += ["memory://nothing", "s4://x", "http://[", "http://127.0.0.1:1/x", "/proc/self/mem", "::"]


@pytest.mark.parametrize("place", [*PLACES, os.fsdecode(b"caf\xe9"), "{1..99999999}.tar", "\n"])
@pytest.mark.parametrize("option", ["--images", "--list", "--sources"])
def test_places_of_the_command_line(
    tmp_path: Path, place: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRT_STORAGE_TRIES", "1")
    if place == "FIFO":
        place = str(tmp_path / "pipe")
        os.mkfifo(place)
    (tmp_path / "ph").mkdir()
    more = ["--images", tmp_path / "ph"] if option == "--list" else []
    out = tmp_path / "out"
    ended = command("extract", option, place, *more, "--out", out, "--extractor", EXTRACTOR)
    assert_ended_well(ended, 2)
    assert not out.exists()
