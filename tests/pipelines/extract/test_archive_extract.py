"""extract from archives: as from a folder; killed, damaged, listed; several sources; retries;
layers of locals.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.jobs.manifests import read_manifest
from pipelines.rerank import stage as rerank
from pipelines.run.stage import run_config
from pipelines.search import stage as search
from pipelines.storage.place import open_place
from pipelines.stores.store import Store
from schemas.errors import JobFailed, UserError
from schemas.manifest import Manifest
from tests.support.pictures import picture
from tests.support.stored import failure_rows
from tests.support.watching import EXTRACTOR

SETTINGS = RunSettings(workers=1)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).crop((number % 5, 0, 80, 60)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Three tar.gz archives of twenty images each; the same images in a folder beside them."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    for archive in range(3):
        members = [
            (f"jpg/{archive}/{number:03}.jpg", jpeg(20 * archive + number)) for number in range(20)
        ]
        for name, data in members:
            (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "plain" / name).write_bytes(data)
        write_tar(folder / f"images.{archive + 1}.tar.gz", members)
    return folder


def make(out: Path, images: object = "", settings: RunSettings = SETTINGS, **more: Any) -> Manifest:
    return extract.run(
        extract_options.Options(
            out=str(out), images=str(images), extractor=EXTRACTOR, **{"rows_per_part": 8, **more}
        ),
        settings,
    )


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Living rows by the image's path below its source, an archive's name left out."""
    store = Store(str(out))
    rows = [
        row
        for part in store.parts
        for row in pq.read_table(store.place.path(part.globals.name)).to_pylist()
    ]
    return {
        row["record_id"][row["record_id"].index("jpg/") :]: row
        for row in rows
        if row["status"] == "ok"
    }


def failures_of(out: Path) -> dict[str, str]:
    store = Store(str(out))
    names = [part.failures.name for part in store.parts if part.failures]
    return {row.record_id: row.error_class for row in failure_rows(store.place, names)}


def test_archives_give_what_a_folder_gives(archives: Path, tmp_path: Path) -> None:
    whole = make(tmp_path / "folder", tmp_path / "plain")
    streamed = make(
        tmp_path / "streamed", archives / "images.{1..3}.tar.gz", RunSettings(workers=2)
    )
    assert streamed.counts == whole.counts
    first, second = rows_of(tmp_path / "folder"), rows_of(tmp_path / "streamed")
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert {**row, "record_id": "", "source": ""} == {
            **second[name],
            "record_id": "",
            "source": "",
        }
    assert Store(str(tmp_path / "streamed")).references(["anything"]) == {}
    again = make(tmp_path / "streamed", archives / "images.{1..3}.tar.gz")
    assert again.content == streamed.content


def test_kinds_of_archives_and_their_ids(archives: Path, tmp_path: Path) -> None:
    members = [(f"jpg/{number:03}.jpg", jpeg(number)) for number in range(5)]
    with zipfile.ZipFile(tmp_path / "crawl.zip", "w") as file:
        for name, data in members:
            file.writestr(name, data)
    make(tmp_path / "zip", tmp_path / "crawl.zip", source="z")
    make(tmp_path / "tar", write_tar(tmp_path / "one.tar", members), source="t")
    assert (
        sorted(rows_of(tmp_path / "zip"))
        == sorted(rows_of(tmp_path / "tar"))
        == [name for name, _ in members]
    )
    ids = {row["record_id"] for row in rows_of(tmp_path / "tar").values()}
    assert "t/jpg/000.jpg" in ids  # one archive: its name is no part of the id
    make(tmp_path / "several", archives / "*.tar.gz")
    ids = {row["record_id"] for row in rows_of(tmp_path / "several").values()}
    assert "crawl/images.2/jpg/1/003.jpg" in ids


def test_killed_in_the_middle_of_an_archive(archives: Path, tmp_path: Path, start: Any) -> None:
    """The pieces that were committed are not described again, and the end is that of an undisturbed
    run.
    """
    pattern = archives / "images.{1..3}.tar.gz"
    undisturbed = make(tmp_path / "whole", pattern)
    arguments = (
        "extract",
        "--images",
        pattern,
        "--out",
        tmp_path / "killed",
        "--extractor",
        EXTRACTOR,
    )
    arguments += ("--rows-per-part", 8, "--workers", 1)
    running = start(*arguments, "--extractor-option", "seconds=0.05")
    running.until(lambda: len(list((tmp_path / "killed" / "pieces").glob("*.json"))) >= 2, "pieces")
    running.kill_all()
    pieces = {
        path.name: path.read_bytes() for path in (tmp_path / "killed" / "pieces").glob("*.json")
    }
    assert pieces and not (tmp_path / "killed" / "manifest.json").exists()
    shutil.rmtree(tmp_path / "whole")
    running = start(*arguments, "--extractor-option", "seconds=0.05")
    assert running.end() == 0, running.text()
    for name, data in pieces.items():
        assert (tmp_path / "killed" / "pieces" / name).read_bytes() == data
    manifest = read_manifest(open_place(str(tmp_path / "killed")))
    assert manifest is not None and manifest.content == undisturbed.content


def test_an_archive_that_changed_is_refused(archives: Path, tmp_path: Path) -> None:
    make(tmp_path / "store", archives / "images.1.tar.gz")
    shutil.rmtree(tmp_path / "store" / "done")
    (tmp_path / "store" / "manifest.json").unlink()
    size = (archives / "images.1.tar.gz").stat().st_size
    members = [
        (f"jpg/0/{number:03}.jpg", jpeg(number if number != 2 else 77)) for number in range(20)
    ]
    write_tar(archives / "images.1.tar.gz", members)
    plan = tmp_path / "store" / "plan" / "source.json"
    assert size  # the size is in the plan, and the listing is not made again
    assert plan.exists()
    with pytest.raises(UserError, match="holds other images than before"):
        make(tmp_path / "store", archives / "images.1.tar.gz")


def test_a_damaged_archive_ends_the_job_after_the_others(archives: Path, tmp_path: Path) -> None:
    path = archives / "images.2.tar.gz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"images\.2\.tar\.gz.*2 of 3 parts"):
        make(tmp_path / "store", archives / "images.{1..3}.tar.gz")
    path.write_bytes(data)
    manifest = make(tmp_path / "store", archives / "images.{1..3}.tar.gz")
    assert manifest.counts.inputs == 60 and manifest.counts.failed == 0


def test_pieces_of_a_damaged_archive_are_taken_back_when_a_whole_one_is_there(
    archives: Path, tmp_path: Path
) -> None:
    """A compressed archive tells at its end only that a byte was wrong: by then the images around
    it are described.
    """
    members = [(f"jpg/1/{number:03}.jpg", jpeg(20 + number)) for number in range(20)]
    plain = write_tar(
        tmp_path / "plain.tar", [*members, ("notes.bin", bytes(3_000_000))]
    ).read_bytes()
    stored = gzip.compress(plain, compresslevel=0, mtime=0)  # a flipped byte is a byte of an image
    pattern, path, size = (
        archives / "images.{1..3}.tar.gz",
        archives / "images.2.tar.gz",
        {"rows_per_part": 4},
    )
    path.write_bytes(stored)
    undisturbed = make(tmp_path / "whole", pattern, **size)
    flipped = bytearray(stored)
    flipped[stored.index(members[9][1][-40:])] ^= 0x55
    path.write_bytes(flipped)
    with pytest.raises(
        UserError, match=r"images\.2\.tar\.gz: the archive is damaged.*; 20 images before were read"
    ):
        make(tmp_path / "store", pattern, **size)
    before = {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "store/pieces").glob("*.json")
    }
    path.write_bytes(stored)
    manifest = make(tmp_path / "store", pattern, **size)
    assert manifest.content == undisturbed.content and manifest.counts.failed == 0
    after = {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "store/pieces").glob("*.json")
    }
    kept = [
        name for name in before if name.startswith("archive-00001") and after[name] == before[name]
    ]
    made = [
        name for name in before if name.startswith("archive-00001") and after[name] != before[name]
    ]
    assert kept and made and max(kept) < min(made)
    named = {
        entry["name"] for entry in pq.read_table(tmp_path / "store" / "parts.parquet").to_pylist()
    }
    there = {
        str(file.relative_to(tmp_path / "store"))
        for file in (tmp_path / "store" / "global").iterdir()
    }
    assert there <= named


def test_a_list_chooses_names_and_misses(archives: Path, tmp_path: Path) -> None:
    names = [f"{archive}/{number:03}.jpg" for archive in range(3) for number in range(0, 20, 4)]
    written = "\n".join(
        f"./{name}" for name in [*names, "9//nowhere.jpg"]
    )  # as `find .` and some editors write it
    (tmp_path / "names.txt").write_text(written, encoding="utf-8-sig")
    listed = {"list": str(tmp_path / "names.txt"), "source": "r1m"}
    manifest = make(tmp_path / "store", archives / "images.{1..3}.tar.gz", **listed)
    assert (manifest.counts.inputs, manifest.counts.failed) == (16, 1)
    assert failures_of(tmp_path / "store") == {"r1m/9/nowhere.jpg": "missing"}
    store = Store(str(tmp_path / "store"))
    found = {name for part in store.parts for name in store.read_global(part).record_ids}
    assert found == {f"r1m/{name}" for name in [*names, "9/nowhere.jpg"]}
    assert sum(unit["unlisted"] for unit in manifest.facts["units"].values()) == 45
    (tmp_path / "names.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(UserError, match="hold none of the images that the list names"):
        make(tmp_path / "other", archives / "images.1.tar.gz", list=str(tmp_path / "names.txt"))
    write_tar(archives / "images.2.tar.gz", [("jpg/0/000.jpg", jpeg(0))])
    (tmp_path / "names.txt").write_text("0/000.jpg\n")
    with pytest.raises(UserError, match="000.jpg stands in two archives"):
        make(
            tmp_path / "twice", archives / "images.{1..2}.tar.gz", list=str(tmp_path / "names.txt")
        )


def test_hostile_entries_are_failed_rows(tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, size in (
            ("jpg/../../etc/evil.jpg", tarfile.REGTYPE, 10),
            ("jpg/link.jpg", tarfile.SYMTYPE, 0),
            ("jpg/good.jpg", tarfile.REGTYPE, 0),
            ("jpg/good.jpg", tarfile.REGTYPE, 0),
            ("jpg/empty.jpg", tarfile.REGTYPE, 0),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            data = jpeg(1) if name == "jpg/good.jpg" else b"x" * size
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(data))
    manifest = make(tmp_path / "store", path)
    assert manifest.counts.inputs == 5 and manifest.counts.succeeded == 1
    classes = sorted(failures_of(tmp_path / "store").values())
    assert classes == sorted(["unsafe_name", "link", "duplicate", "empty"]), classes


def test_a_file_of_sources_makes_one_store(archives: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources.yaml"
    entries = [
        {"name": "oxford", "images": str(tmp_path / "plain" / "jpg" / "0")},
        {"name": "crawl", "images": str(archives / "images.{2..3}.tar.gz")},
    ]
    sources.write_text(json.dumps(entries))
    manifest = make(tmp_path / "store", sources=str(sources))
    assert manifest.counts.inputs == 60
    store = Store(str(tmp_path / "store"))
    rows = [
        row
        for part in store.parts
        for row in pq.read_table(store.place.path(part.globals.name)).to_pylist()
    ]
    assert {row["source"] for row in rows} == {"oxford", "crawl"}
    assert sum(row["source"] == "oxford" for row in rows) == 20
    made = index.run(
        index.Options(stores=(str(tmp_path / "store"),), out=str(tmp_path / "index")), SETTINGS
    )
    assert made.counts.inputs == 60
    entries[1]["name"] = "oxford"
    sources.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="two sources are called 'oxford'"):
        make(tmp_path / "other", sources=str(sources))


def test_failed_images_are_described_again(archives: Path, tmp_path: Path) -> None:
    """Files that were broken are mended and retried, alone; what is mended counts once."""
    broken = tmp_path / "plain" / "jpg" / "0" / "004.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    (tmp_path / "plain" / "jpg" / "1" / "007.jpg").write_bytes(b"")
    manifest = make(tmp_path / "store", tmp_path / "plain")
    assert (manifest.counts.inputs, manifest.counts.failed) == (60, 2)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store" / "done").iterdir()}
    broken.write_bytes(good)
    again = make(tmp_path / "store", tmp_path / "plain", retry_failed=True)
    assert (again.counts.inputs, again.counts.succeeded, again.counts.failed) == (60, 59, 1)
    assert "jpg/0/004.jpg" in rows_of(tmp_path / "store")
    for name, time in done.items():
        assert (tmp_path / "store" / "done" / name).stat().st_mtime_ns == time
    plain = make(tmp_path / "store", tmp_path / "plain")
    assert plain.content == again.content and plain.counts == again.counts
    (tmp_path / "plain" / "jpg" / "1" / "007.jpg").write_bytes(good)
    assert make(tmp_path / "store", tmp_path / "plain", retry_failed=True).counts.failed == 0
    assert make(tmp_path / "store", tmp_path / "plain", retry_failed=True).counts.failed == 0


def test_many_failures_end_the_job(archives: Path, tmp_path: Path) -> None:
    for number in range(0, 20, 2):
        (tmp_path / "plain" / "jpg" / "0" / f"{number:03}.jpg").write_bytes(b"nothing")
    with pytest.raises(JobFailed, match=r"failed, more than --max-failures 5% allows"):
        make(tmp_path / "store", tmp_path / "plain", max_failures="5%")
    assert make(tmp_path / "store", tmp_path / "plain", max_failures="10").counts.failed == 10
    with pytest.raises(UserError, match="must be a number, or per cent"):
        make(tmp_path / "other", tmp_path / "plain", max_failures="many")


@pytest.mark.parametrize("dtype", ["float16", "binary"])
def test_lazy_locals_equal_those_of_a_full_extraction(
    archives: Path, tmp_path: Path, dtype: str
) -> None:
    """The same scores to the bit, from a layer that holds only what the shortlist names."""
    images = archives / "images.{1..3}.tar.gz"
    make(tmp_path / "queries", tmp_path / "plain" / "jpg" / "0")
    results = {}
    for kind in ("all", "none"):
        store, run = tmp_path / f"store-{kind}", tmp_path / f"run-{kind}"
        make(store, images, locals=kind, local_dtype=dtype)
        index.run(index.Options(stores=(str(store),), out=str(run / "index")), SETTINGS)
        asked = {"queries": str(tmp_path / "queries"), "out": str(run)}
        search.run(search.Options(index=str(run / "index"), **asked), SETTINGS)
        options = rerank.Options(**asked, reranker="mutual_nn", shortlist=3)
        if kind == "none":
            assert not (store / "local").exists()
            with pytest.raises(
                UserError, match="has no local descriptors; add them with 'extract --locals-for"
            ):
                rerank.run(options, SETTINGS)
            layer = make(store, locals_for=str(run), shortlist=3)
            assert 0 < layer.counts.inputs < 60 and layer.counts.failed == 0
            assert (
                make(store, locals_for=str(run), shortlist=3).stage == "extract"
            )  # nothing is left to do
        rerank.run(options, SETTINGS)
        names = sorted((run / "scores").glob("*.parquet"))
        results[kind] = [
            pq.read_table(path).to_pydict() for path in names if path.name != "parts.parquet"
        ]
    assert results["all"] == results["none"]
    for name, row in rows_of(tmp_path / "store-all").items():
        assert row["descriptor"] == rows_of(tmp_path / "store-none")[name]["descriptor"]
        break


def test_a_layer_by_record_ids_grows_and_outlives_a_retry(archives: Path, tmp_path: Path) -> None:
    broken = tmp_path / "plain" / "jpg" / "2" / "000.jpg"
    good = broken.read_bytes()
    broken.write_bytes(b"")
    make(tmp_path / "store", tmp_path / "plain", locals="none")
    (tmp_path / "ids.txt").write_text("plain/jpg/0/001.jpg\nplain/jpg/1/002.jpg\n")
    assert make(tmp_path / "store", locals_for=str(tmp_path / "ids.txt")).counts.inputs == 2
    broken.write_bytes(good)
    make(tmp_path / "store", tmp_path / "plain", locals="none", retry_failed=True)
    ids = "plain/jpg/0/001.jpg\nplain/jpg/1/002.jpg\nplain/jpg/2/000.jpg\n"
    (tmp_path / "ids.txt").write_text(ids)
    assert make(tmp_path / "store", locals_for=str(tmp_path / "ids.txt")).counts.inputs == 1
    store = Store(str(tmp_path / "store"))
    assert sum(len(part.layers) for part in store.parts) == 3
    (tmp_path / "ids.txt").write_text("plain/absent.jpg\n")
    with pytest.raises(UserError, match=r"'plain/absent\.jpg' is no described image"):
        make(tmp_path / "store", locals_for=str(tmp_path / "ids.txt"))
    file = tmp_path / "plain" / "jpg" / "1" / "003.jpg"
    file.write_bytes(good)
    (tmp_path / "ids.txt").write_text("plain/jpg/1/003.jpg\n")
    assert (
        make(tmp_path / "store", locals_for=str(tmp_path / "ids.txt")).counts.failed == 1
    )  # it has changed since


def test_globs_of_images(archives: Path, tmp_path: Path) -> None:
    manifest = make(tmp_path / "store", tmp_path / "plain" / "jpg" / "*" / "00[0-4].jpg")
    assert manifest.counts.inputs == 15


def test_a_run_with_lazy_locals_equals_one_with_all(photographs: Path, tmp_path: Path) -> None:
    """All stages from one configuration: gallery out of an archive and a folder, locals for what is
    reranked.
    """
    names = sorted(path.name for path in photographs.iterdir())
    extra = [(f"jpg/{number:03}.jpg", jpeg(100 + number)) for number in range(12)]
    sources = [
        {"name": "scenes", "images": str(photographs)},
        {"name": "more", "images": str(write_tar(tmp_path / "more.tar", extra))},
    ]
    (tmp_path / "sources.yaml").write_text(json.dumps(sources))
    rows = {}
    for kind in ("all", "none"):
        config = {
            "images": str(photographs),
            "sources": str(tmp_path / "sources.yaml"),
            "ground_truth": str(photographs.parent / "ground_truth.json"),
            "out": str(tmp_path / kind),
            "extract": {"extractor": EXTRACTOR, "rows_per_part": 5, "locals": kind},
            "rerank": {"reranker": "mutual_nn", "shortlist": 5},
        }
        results = run_config(config, "test", SETTINGS)
        rows[kind] = results["metrics"]
        assert Path(results["report"]).stat().st_size > 10_000
    assert rows["all"] == rows["none"] and names
    store = Store(str(tmp_path / "none" / "gallery"))
    assert not any(part.locals for part in store.parts) and any(part.layers for part in store.parts)
