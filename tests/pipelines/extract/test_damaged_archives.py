"""extract --damaged-archives keep: what can be read of an archive counts, the rest is a failure."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pipelines.engines.settings import RunSettings
from pipelines.estimate import estimate
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.manifest import Manifest
from tests.pipelines.extract.test_archive_extract import failures_of, jpeg, make, write_tar
from tests.support.command_line import command, findings
from tests.support.damage import contents
from tests.support.stored import failure_rows
from tests.support.watching import EXTRACTOR

MEMBERS = [(f"jpg/{number:03}.jpg", jpeg(number)) for number in range(20)]


def unclosed(path: Path, members: int = 20) -> Path:
    """A tar file as a writer leaves it that was killed before it wrote the end."""
    write_tar(path, MEMBERS[:members])
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512))
    return path


def keep(out: Path, images: object, **more: Any) -> Manifest:
    return make(out, images, damaged_archives="keep", **more)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A whole archive and one without an end, as a glob."""
    (tmp_path / "crawl").mkdir()
    write_tar(tmp_path / "crawl/a.tar", MEMBERS[:5])
    unclosed(tmp_path / "crawl/b.tar")
    return tmp_path / "crawl/*.tar"


def test_what_was_read_counts_and_the_rest_is_a_failed_row(two: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(UserError, match=r"b\.tar: .*--damaged-archives keep"):
        make(store, two)
    manifest = keep(store, two)
    assert (manifest.counts.inputs, manifest.counts.failed) == (26, 1)
    assert failures_of(store) == {"crawl/b.tar": "damaged_archive"}
    assert manifest.facts["units"] == {"archive-00001": {"damaged": 1}}

    opened = Store(str(store))
    names = [part.failures.name for part in opened.parts if part.failures]
    size = (tmp_path / "crawl/b.tar").stat().st_size
    (row,) = failure_rows(opened.place, names)
    assert f"at byte {size:,}" in row.reason and "20 images before were read" in row.reason
    assert str(tmp_path) not in row.reason, "the same bytes wherever the archive lies"

    (found,) = findings(store)
    assert not found["problems"]
    assert make(store, two).content == manifest.content, "the plan knows"
    assert make(store, two, retry_failed=True).content == manifest.content
    with pytest.raises(UserError, match="was begun with keep"):
        make(store, two, damaged_archives="refuse")


def test_killed_and_continued_it_is_equal(two: Path, tmp_path: Path, start: Any) -> None:
    undisturbed = keep(tmp_path / "whole", two)
    arguments = ["extract", "--images", two, "--out", tmp_path / "killed", "--workers", 1]
    arguments += ["--extractor", EXTRACTOR, "--rows-per-part", 8]
    slow = ["--extractor-option", "seconds=0.05"]
    running = start(*arguments, *slow, "--damaged-archives", "keep")
    pieces = tmp_path / "killed/pieces"
    running.until(lambda: len(list(pieces.glob("archive-00001*"))) >= 2, "pieces")
    running.kill_all()

    running = start(*arguments, *slow)  # as the store was begun
    assert running.end() == 0, running.text
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert Store(str(tmp_path / "killed")).manifest.content == undisturbed.content


def test_repair_makes_it_again(two: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    keep(store, two)
    before = contents(store)
    for path in (store / "global").iterdir():
        path.unlink()
    ended = command("repair", store, "--own-class", EXTRACTOR)
    assert ended.code == 0, ended.said
    assert contents(store) == before
    assert not findings(store)[0]["problems"]


def test_an_estimate_counts_it(two: Path, tmp_path: Path) -> None:
    options = extract_options.Options(
        out=str(tmp_path / "store"), images=str(two), extractor=EXTRACTOR, damaged_archives="keep"
    )
    (made,) = estimate.run("extract", options, RunSettings(workers=1))
    assert made.inputs == 26
    assert any("a failed row is for the rest" in note for note in made.notes)
    extract.run(options, RunSettings(workers=1))


def test_other_damages_and_kinds(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", MEMBERS).read_bytes()
    at = whole.index(b"jpg/010.jpg")
    hole = bytearray(whole)
    hole[at : at + 512] = bytes(512)
    packed = gzip.compress(whole)
    for name, data, least in (
        ("hole.tar", bytes(hole), 10),
        ("page.tar", whole[:at] + bytes(4096) + whole[at + 4096 :], 10),
        ("cut.tar.gz", packed[: len(packed) // 2], 5),
        ("nothing.tar", b"no archive" * 100, 0),
        ("nothing.zip", b"no archive" * 100, 0),
    ):
        (tmp_path / name).write_bytes(data)
        out = tmp_path / f"{name}.store"
        if not least:
            with pytest.raises(Exception, match="1 of 1 images failed|all 1 images failed"):
                keep(out, tmp_path / name)
            continue
        manifest = keep(out, tmp_path / name)
        assert manifest.counts.succeeded >= least and manifest.counts.failed == 1, name


def test_with_a_list(two: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("000.jpg\n012.jpg\nnone.jpg\n")
    unclosed(tmp_path / "crawl/a.tar", 5)
    listed = {"list": str(tmp_path / "list.txt"), "source": "s"}
    manifest = keep(tmp_path / "store", tmp_path / "crawl/a.tar", **listed)
    assert failures_of(tmp_path / "store") == {
        "s/archive-00000/a.tar": "damaged_archive",
        "s/012.jpg": "missing",
        "s/none.jpg": "missing",
    }
    assert manifest.facts["units"]["archive-00000"] == {"damaged": 1, "unlisted": 4}
    assert not findings(tmp_path / "store")[0]["problems"]
