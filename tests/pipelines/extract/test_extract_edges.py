"""extract at its edges: crashes in archives, retries of retries, lists with repetitions, options
against each other.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.engines.counts import Shortfall, UnderWay
from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.extract.batches import batched
from pipelines.extract.describer import Describer
from pipelines.sources.archives import find_archives
from pipelines.sources.item import Item
from pipelines.stores.store import Store
from rrt_core.extractors import Description, Failure
from rrt_core.images import Image
from schemas.errors import JobFailed, UserError
from schemas.image_list import ImageReference
from schemas.manifest import Manifest
from schemas.plan import ArchivedImages, ArchivedImagesAgain, Job, Unit
from tests.support.pictures import picture
from tests.support.stored import failure_rows
from tests.support.watching import EXTRACTOR
from tests.tiny_extractor import TinyExtractor

ONE = RunSettings(workers=1)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).crop((number % 5, 0, 80, 60)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def members(first: int, count: int, broken: Iterable[int] = ()) -> list[tuple[str, bytes]]:
    """Images first ...

    first + count - 1; of the broken ones as many bytes as of good ones, with nothing in them.
    """
    wrong = set(broken)
    return [
        (f"{n:03}.jpg", bytes(len(jpeg(n))) if n in wrong else jpeg(n))
        for n in range(first, first + count)
    ]


def make(out: Path, images: object = "", settings: RunSettings = ONE, **more: Any) -> Manifest:
    options = {"extractor": EXTRACTOR, "rows_per_part": 4, **more}
    return extract.run(
        extract_options.Options(out=str(out), images=str(images), **options), settings
    )


def living(out: Path) -> dict[str, bytes]:
    """Descriptors of the described images."""
    store = Store(str(out))
    found: list[tuple[str, bytes]] = []
    for part in store.parts:
        read = store.read_global(part)
        found += [
            (read.record_ids[row], read.descriptors[row].tobytes())
            for row in np.flatnonzero(read.ok)
        ]
    assert len(dict(found)) == len(found)
    return dict(found)


def lost(out: Path) -> list[tuple[str, str]]:
    store = Store(str(out))
    names = [part.failures.name for part in store.parts if part.failures]
    return sorted((row.record_id, row.error_class) for row in failure_rows(store.place, names))


class Picky(TinyExtractor):
    """As TinyExtractor; raises on pictures of one name, or on all."""

    def __init__(self, all_of_them: bool = False) -> None:
        super().__init__()
        self.all_of_them = all_of_them

    def _one(self, image: Image) -> Description:
        if self.all_of_them or image.record_id.endswith("dark.jpg"):
            raise RuntimeError("nothing goes well")
        return super()._one(image)


def test_images_that_kill_in_two_pieces_of_two_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that holds a crashed image is passed over later like any other."""
    for archive in range(2):
        named = [(f"{'bad' if n in (1, 6) else 'ok'}-{n}.jpg", jpeg(n)) for n in range(9)]
        write_tar(tmp_path / f"a.{archive}.tar", named)
    monkeypatch.setenv("RRT_TEST_CRASH_ON", "bad-")
    manifest = make(tmp_path / "store", tmp_path / "a.{0..1}.tar", source="s")
    assert (manifest.counts.inputs, manifest.counts.failed) == (18, 4)
    assert {kind for _, kind in lost(tmp_path / "store")} == {"crashed"}
    monkeypatch.delenv("RRT_TEST_CRASH_ON")
    again = make(tmp_path / "store", tmp_path / "a.{0..1}.tar", source="s", retry_failed=True)
    assert (again.counts.inputs, again.counts.failed) == (18, 0)
    assert living(tmp_path / "store").keys() == {
        f"s/a.{archive}/{'bad' if n in (1, 6) else 'ok'}-{n}.jpg"
        for archive in range(2)
        for n in range(9)
    }


def test_members_of_archives_are_retried_twice(tmp_path: Path) -> None:
    """What failed in the first retry too is still known as its archive's."""
    wrong = {0: (1, 10), 1: (22, 31)}
    for archive in range(2):
        write_tar(tmp_path / f"a.{archive}.tar", members(20 * archive, 12, wrong[archive]))
    pattern = tmp_path / "a.{0..1}.tar"
    assert make(tmp_path / "store", pattern, source="s").counts.failed == 4
    write_tar(tmp_path / "a.0.tar", members(0, 12, (10,)))
    assert make(tmp_path / "store", pattern, source="s", retry_failed=True).counts.failed == 3
    for archive in range(2):
        write_tar(tmp_path / f"a.{archive}.tar", members(20 * archive, 12))
    last = make(tmp_path / "store", pattern, source="s", retry_failed=True)
    assert (last.counts.inputs, last.counts.succeeded, last.counts.failed) == (24, 24, 0)
    make(tmp_path / "whole", pattern, source="s")
    assert living(tmp_path / "store") == living(tmp_path / "whole")
    assert make(tmp_path / "store", pattern, source="s", retry_failed=True).content == last.content


@pytest.mark.parametrize("packed", [True, False])
def test_a_part_done_again_after_a_retry_gives_no_image_twice(tmp_path: Path, packed: bool) -> None:
    """What was mended is alive in the retry's part alone; so is what a later retry mended."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def images(*broken: int) -> Path:
        for name, data in members(0, 9, broken):
            (folder / name).write_bytes(data)
        return write_tar(tmp_path / "a.tar", members(0, 9, broken)) if packed else folder

    make(tmp_path / "store", images(1, 2, 7), source="s")
    for broken in ((2, 7), (7,)):
        done = make(tmp_path / "store", images(*broken), source="s", retry_failed=True)
    before = living(tmp_path / "store")
    images()
    for part in Store(str(tmp_path / "store")).parts:
        (tmp_path / "store" / part.globals.name).unlink()
    again = make(tmp_path / "store", tmp_path / "a.tar" if packed else folder, source="s")
    assert again.counts.inputs == 9 and again.counts.failed in (0, 1)
    assert before.items() <= living(tmp_path / "store").items() and done.counts.failed == 1
    last = make(
        tmp_path / "store", tmp_path / "a.tar" if packed else folder, source="s", retry_failed=True
    )
    assert last.counts.failed == 0 and len(living(tmp_path / "store")) == 9


def test_retry_where_archives_have_moved_or_lost_members(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    write_tar(tmp_path / "old" / "a.tar", members(0, 6, (2, 4)))
    assert make(tmp_path / "store", tmp_path / "old" / "a.tar", source="s").counts.failed == 2
    moved = write_tar(tmp_path / "new" / "a.tar", members(0, 6, (4,)))
    (tmp_path / "old" / "a.tar").unlink()
    assert make(tmp_path / "store", moved, source="s", retry_failed=True).counts.failed == 1
    write_tar(
        moved, [(name if name != "004.jpg" else "other.jpg", data) for name, data in members(0, 6)]
    )
    assert make(tmp_path / "store", moved, source="s", retry_failed=True).counts.failed == 1
    write_tar(moved, members(0, 6))
    assert make(tmp_path / "store", moved, source="s", retry_failed=True).counts.failed == 0


def test_an_image_that_fails_alone_in_its_piece_ends_nothing(tmp_path: Path) -> None:
    """The extractor raises on it; a picture of ours shows that it is not the extractor."""
    images = [*members(0, 4), ("dark.jpg", jpeg(900))]
    extractor = "tests.pipelines.extract.test_extract_edges:Picky"
    manifest = make(tmp_path / "store", write_tar(tmp_path / "a.tar", images), extractor=extractor)
    assert (manifest.counts.inputs, manifest.counts.failed) == (5, 1)
    with pytest.raises(JobFailed, match="nothing goes well"):
        make(
            tmp_path / "none",
            tmp_path / "a.tar",
            extractor=extractor,
            extractor_option={"all_of_them": True},
        )


def test_a_name_twice_in_a_listed_archive_is_a_failed_row(tmp_path: Path) -> None:
    """It is no image of two archives; nor is one that a folder's list names twice."""
    names = tmp_path / "names.txt"
    names.write_text("000.jpg\n001.jpg\nabsent.jpg\nabsent.jpg\n")
    archive = write_tar(tmp_path / "a.tar", [*members(0, 2), *members(0, 1)])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg(5))
    (tmp_path / "twice.txt").write_text("x.jpg\n" * 6)
    sources = tmp_path / "sources.yaml"
    entries = [
        {"name": "f", "images": str(folder), "list": str(tmp_path / "twice.txt")},
        {"name": "s", "images": str(archive), "list": str(names)},
    ]
    sources.write_text(json.dumps(entries))
    manifest = make(tmp_path / "store", sources=str(sources))
    assert (manifest.counts.inputs, manifest.counts.succeeded) == (10, 3)
    kinds = [kind for _, kind in lost(tmp_path / "store")]
    assert kinds == ["duplicate"] * 5 + ["duplicate", "missing"]


def test_missing_images_are_found_again_after_a_retry(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("000.jpg\n001.jpg\nabsent.jpg\n")
    archive = write_tar(tmp_path / "a.tar", members(0, 2, (1,)))
    listed = {"list": str(names), "source": "s"}
    assert make(tmp_path / "store", archive, **listed).counts.failed == 2
    write_tar(tmp_path / "a.tar", members(0, 2))
    done = make(tmp_path / "store", archive, **listed, retry_failed=True)
    store = Store(str(tmp_path / "store"))
    part = next(
        part for part in store.parts if "s/absent.jpg" in store.read_global(part).record_ids
    )
    (tmp_path / "store" / part.globals.name).unlink()
    assert make(tmp_path / "store", archive, **listed).content == done.content


def test_a_list_of_another_collection_is_told_for_each_source(tmp_path: Path) -> None:
    entries = []
    for source in ("good", "bad"):
        (tmp_path / f"{source}.txt").write_text(
            "000.jpg\n" if source == "good" else "nothing.jpg\n"
        )
        archive = write_tar(tmp_path / f"{source}.tar", members(0, 2))
        entries.append(
            {"name": source, "images": str(archive), "list": str(tmp_path / f"{source}.txt")}
        )
    (tmp_path / "sources.yaml").write_text(json.dumps(entries))
    with pytest.raises(
        UserError, match="of the source 'bad' hold none of the images that the list names"
    ):
        make(tmp_path / "store", sources=str(tmp_path / "sources.yaml"))


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", members(0, 5, (1,)))
    before = make(tmp_path / "store", archive, locals="none")
    (tmp_path / "ids.txt").write_text(f"{tmp_path.name}/000.jpg\n")
    asked = {"locals_for": str(tmp_path / "ids.txt")}
    folder = tmp_path / "folder"
    folder.mkdir()
    truth = str(tmp_path / "truth.json")
    assert make(tmp_path / "store", archive, **asked).counts.inputs == 1  # the same images
    for message, given in (
        (
            "--retry-failed keeps what --overwrite would remove",
            {"retry_failed": True, "overwrite": True},
        ),
        ("--locals-for takes the images of the store", {**asked, "images": folder}),
        ("local_dtype is 'int8'.*'float16'", {**asked, "local_dtype": "int8"}),
        ("max_locals is 3.*is 0", {**asked, "max_locals": 3}),
        (
            "--list and --ground-truth both",
            {"images": folder, "list": truth, "ground_truth": truth, "take": "gallery"},
        ),
        ("--take without --ground-truth", {"images": folder, "take": "gallery"}),
        (
            "a list names images of a folder, not of a glob",
            {"images": folder / "*.jpg", "list": truth},
        ),
        (
            "--image-seconds is inf; it must be a finite number",
            {"images": folder, "image_seconds": float("inf")},
        ),
        ("--image-seconds is nan", {"images": folder, "image_seconds": float("nan")}),
        ("--image-seconds is 600;.* --stall-minutes 10", {**asked, "image_seconds": 600.0}),
        ("--image-seconds is -1", {"images": folder, "image_seconds": -1.0}),
        (
            "--max-failures is 'many'",
            {"images": archive, "max_failures": "many", "overwrite": True, "locals": "none"},
        ),
    ):
        options: dict[str, Any] = {"images": archive, "locals": "none", **given}
        settings = RunSettings(workers=1, overwrite=bool(options.pop("overwrite", False)))
        with pytest.raises(UserError, match=message):
            make(tmp_path / "store", options.pop("images"), settings, **options)
    assert make(tmp_path / "store", archive, locals="none").content == before.content
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(UserError, match="it names no record id"):
        make(tmp_path / "store", **asked)


def test_a_layer_that_failed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in members(0, 5):
        (folder / name).write_bytes(data)
    make(tmp_path / "store", folder, locals="none")
    (folder / "003.jpg").write_bytes(jpeg(77))
    (tmp_path / "ids.txt").write_text("folder/000.jpg\nfolder/003.jpg\n")
    asked = {"locals_for": str(tmp_path / "ids.txt")}
    assert make(tmp_path / "store", **asked).counts.failed == 1
    assert make(tmp_path / "store", **asked).counts.failed == 1  # of the one that is left
    (folder / "003.jpg").write_bytes(jpeg(3))
    assert make(tmp_path / "store", **asked).counts.failed == 1  # already made
    assert make(tmp_path / "store", **asked, retry_failed=True).counts.failed == 0
    assert make(tmp_path / "store", **asked).stage == "extract"  # nothing is left to do


def test_too_many_failures_are_too_many_the_second_time_too(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", members(0, 8, (1, 2, 6)))
    for _ in range(2):
        with pytest.raises(JobFailed, match="more than --max-failures 2 allows; the last: "):
            make(tmp_path / "store", archive, max_failures="2")
    assert make(tmp_path / "store", archive, max_failures="3").counts.failed == 3
    again = make(
        tmp_path / "store", archive, max_failures="3", retry_failed=True
    )  # those three fail again
    assert (again.counts.inputs, again.counts.failed) == (8, 3)


def test_what_failed_and_what_was_there_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rate of a command is without the pieces that an earlier one made."""
    archive = write_tar(tmp_path / "a.tar", members(0, 9, (1,)))
    first = make(tmp_path / "store", archive)
    assert ", 1 failed" in capfd.readouterr().err
    for name in ("manifest.json", "done/archive-00000.json"):
        (tmp_path / "store" / name).unlink()
    assert make(tmp_path / "store", archive).content == first.content
    told = capfd.readouterr().err
    assert "9 images in" in told and "/s" not in told and ", 1 failed" in told


def test_sources_that_changed_since_the_plan_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in members(0, 3):
        (folder / name).write_bytes(data)
    content = make(tmp_path / "store", folder).content
    make(tmp_path / "store", folder)
    assert "NOTE" not in capfd.readouterr().err
    (folder / "new.jpg").write_bytes(jpeg(5))
    (folder / "000.jpg").unlink()
    assert make(tmp_path / "store", folder).content == content
    told = capfd.readouterr().err
    assert (
        "1 image more (such as folder/new.jpg) and 1 image fewer (such as folder/000.jpg); the "
        "store stays" in told
    )


def test_ranges_are_a_shells(tmp_path: Path) -> None:
    for name in ("a.0", "a.9", "a.10", "b.08", "b.09", "b.10"):
        write_tar(tmp_path / f"{name}.tar", members(0, 1))
    for pattern, names in (
        ("a.{9..10}", ["a.9", "a.10"]),
        ("b.{08..10}", ["b.08", "b.09", "b.10"]),
    ):
        assert find_archives(f"{tmp_path}/{pattern}.tar") == [
            f"{tmp_path}/{name}.tar" for name in names
        ]
    with pytest.raises(UserError, match=r"a\.1\.tar: there is no such archive"):
        find_archives(f"{tmp_path}/a.{{0..10}}.tar")


def test_archives_without_images_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("readme.txt", b"nothing")])
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(UserError, match="hold no images"):
        make(tmp_path / "store", tmp_path / "*.tar")
    (tmp_path / "folder").mkdir()
    write_tar(tmp_path / "folder" / "c.tar", members(0, 2))
    with pytest.raises(UserError, match=r"no images .* archives lie here.*folder/\*\.tar"):
        make(tmp_path / "other", tmp_path / "folder")
    (tmp_path / "d.tar").mkdir()
    with pytest.raises(UserError, match=r"d\.tar: it is a folder, not an archive"):
        make(tmp_path / "other", tmp_path / "d.tar")
    with pytest.raises(
        UserError, match=r"no such archive; a range is written as in name\.\{1\.\.100\}\.tar"
    ):
        make(tmp_path / "other", tmp_path / "{1-2}.tar")
    (tmp_path / "sources.yaml").write_text("- images: [a.tar, b.tar]\n")
    with pytest.raises(UserError, match="source 1: images is a list; it must be one text"):
        make(tmp_path / "other", sources=str(tmp_path / "sources.yaml"))


def test_a_binary_store_is_planned_although_an_image_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotation is learned from a sample, and the driver outlives it."""
    archive = write_tar(tmp_path / "a.tar", [("bad-1.jpg", jpeg(1)), *members(0, 4)])
    monkeypatch.setenv("RRT_TEST_CRASH_ON", "bad-")
    manifest = make(tmp_path / "store", archive, local_dtype="binary", source="s")
    assert (manifest.counts.inputs, manifest.counts.failed) == (5, 1)


class Raising(TinyExtractor):
    """One whose code is wrong."""

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        raise RuntimeError("boom")


def test_a_binary_store_of_an_extractor_that_fails_is_a_sentence(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", members(0, 3))
    with pytest.raises(
        UserError, match="learns from a sample .*:Raising fails on it: RuntimeError: boom; fix"
    ):
        make(tmp_path / "store", archive, local_dtype="binary", extractor=f"{__name__}:Raising")


class Narrow(TinyExtractor):
    """Locals of half the width."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.local_dim = "narrow", 64

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        found = super().describe(images)
        return [
            replace(one, descriptors=one.descriptors[:, :64])
            for one in found
            if isinstance(one, Description)
        ]


def test_a_rotation_that_another_extractor_left_is_made_anew(tmp_path: Path) -> None:
    """It was written, and the command killed before its plan was."""
    archive = write_tar(tmp_path / "a.tar", members(0, 3))
    make(tmp_path / "killed", archive, local_dtype="binary")
    for name in ("plan.json", "job.json"):
        (tmp_path / "killed" / "plan" / name).unlink()
    (tmp_path / "killed" / "manifest.json").unlink()
    for name in ("done", "pieces", "global", "local", "failures"):
        shutil.rmtree(tmp_path / "killed" / name)
    (tmp_path / "killed" / "parts.parquet").unlink()
    options = {"local_dtype": "binary", "extractor": f"{__name__}:Narrow"}
    for name in ("killed", "undisturbed"):
        with pytest.raises(JobFailed, match="all 3 images failed; .* of length 0"):
            make(tmp_path / name, archive, **options)
    contents = [
        json.loads((tmp_path / name / "manifest.json").read_text())["content"]
        for name in ("killed", "undisturbed")
    ]
    assert contents[0] == contents[1]


def test_a_slow_stream_is_no_slow_image() -> None:
    """Time that passes until the archive gives its next image is not the image's."""
    options = {
        "extractor": EXTRACTOR,
        "extractor_option": {},
        "max_pixels": 10**8,
        "min_side": 10,
        "decoders": 1,
    }

    def slow() -> Iterator[Item]:
        time.sleep(2.5)
        yield Item(ImageReference("s/a.jpg", "s", b""), jpeg(1))

    describer = Describer({**options, "image_seconds": 0.5, "locals": "all"})
    (described,) = batched(describer, slow())
    assert described.failure is None


def test_finished_archives_of_a_share_under_way_count(tmp_path: Path) -> None:
    about = (0, "s", "a.tar", 100, "", False, 0, 3, 512, True)
    units = tuple(Unit(f"archive-{n}", ArchivedImages(*about), 0) for n in range(2))
    table = "plan/retry-1.parquet"
    again = Unit("archive-0-again-1", ArchivedImagesAgain(*about, again=table), 0)
    job = Job("extract", str(tmp_path), "", {}, {}, (*units, again), most_failed="5")
    shortfall = Shortfall(job)
    assert shortfall.progress({"archive-0": UnderWay(10, 0, 1.0, "")}) == (10, 20)
    under_way = {"archive-0": UnderWay(10, 4, 1.0, ""), again.name: UnderWay(4, 4, 0.5, "")}
    assert shortfall.progress(under_way) == (10, 20)
    assert shortfall.too_many(under_way) == ""
    first = Shortfall(replace(job, units=units))
    assert first.too_many({"archive-0": UnderWay(10, 4, 1.0, "")}) == ""
    assert "6 of 10" in first.too_many({"archive-0": UnderWay(10, 6, 1.0, "")})
