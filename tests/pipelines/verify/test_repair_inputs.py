"""repair where inputs are gone: it refuses before it takes anything away."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.exchange import import_options as exchange_import_options
from pipelines.exchange import import_store
from pipelines.options import build
from pipelines.verify import repair, verify
from pipelines.verify.repair_inputs import MOST_TRIED, _all_unreadable
from schemas.errors import UserError
from tests.support.damage import contents, flip, make_photographs, make_store, one
from tests.support.faulty_worker import faulty_job
from tests.support.watching import EXTRACTOR

SETTINGS = RunSettings(workers=1)
DAMAGED = "local/full/part-00001.*"


@pytest.fixture(scope="module", autouse=True)
def end_of_the_workers() -> Iterator[None]:
    """The workers stay for the tests of this module."""
    yield
    pool.close_pool()


def mended(store: Path | str) -> None:
    """Repair in this process."""
    repair.run(repair.Options(str(store), own_class=(EXTRACTOR,)), SETTINGS)


def refused(store: Path, sentence: str) -> None:
    """The repair is refused with a sentence, and nothing in the store has changed."""
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in store.rglob("*")
        if path.is_file()
    }
    with pytest.raises(UserError, match=sentence):
        mended(store)
    assert {
        p: (p.stat().st_mtime_ns, p.stat().st_size) for p in store.rglob("*") if p.is_file()
    } == before


def unmounted(folder: Path) -> Path:
    """Leave an empty folder, as a disk that is not mounted does; gives where the files are now."""
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    folder.rename(elsewhere)
    folder.mkdir()
    return elsewhere


def mounted(folder: Path) -> None:
    """Undo `unmounted`."""
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}-elsewhere").rename(folder)


@pytest.mark.parametrize("kind", ["folder", "glob", "sources"])
def test_an_empty_mount_point(kind: str, tmp_path: Path) -> None:
    """Only locals are damaged: the globals of the same images are not given up for failed rows."""
    photographs = make_photographs(tmp_path / "photographs")
    images: Any = photographs if kind == "folder" else photographs / "*.png"
    options: dict[str, Any] = {}
    if kind == "sources":
        (tmp_path / "sources.yaml").write_text(f"- images: {photographs}\n")
        images, options = "", {"sources": str(tmp_path / "sources.yaml")}
    store = make_store(images, tmp_path / "store", **options)
    before = contents(store)
    (tmp_path / "sources.yaml").unlink(missing_ok=True)  # the plan has all that it said
    flip(one(store, DAMAGED))
    unmounted(photographs)
    refused(
        store,
        r"store cannot be done again: none of the 4 images of part-00001 in the source "
        r"'photographs' that were "
        r"described before can be read \(.*/photographs/05.png: No such file or directory\); "
        r"bring them back, or give "
        "'repair .* --remove-damaged'",
    )
    mounted(photographs)
    mended(store)
    assert contents(store) == before and verify.verify(str(store))[0].problems == []


def test_one_of_two_disks(tmp_path: Path) -> None:
    """A part may hold images of two sources: neither's are given up."""
    folders = [make_photographs(tmp_path / name, 8) for name in ("first", "second")]
    (tmp_path / "sources.yaml").write_text("".join(f"- images: {folder}\n" for folder in folders))
    store = make_store(
        "", tmp_path / "store", sources=str(tmp_path / "sources.yaml"), rows_per_part=16
    )
    before = contents(store)
    flip(one(store, "global/part-00000.*"))
    unmounted(folders[1])
    refused(
        store,
        r"none of the 7 images of part-00000 in the source 'second' that were described before "
        r"can be read",
    )
    mounted(folders[1])
    mended(store)
    assert contents(store) == before


def test_what_had_failed_before_need_not_be_there(tmp_path: Path) -> None:
    """A unit of which no image was ever described is done again without them; one that was there
    must be.
    """
    photographs = make_photographs(tmp_path / "photographs", 10)
    for number in range(5, 10):
        (photographs / f"{number:02}.png").write_bytes(b"no picture")
    store = make_store(photographs, tmp_path / "store")
    before = contents(store)
    flip(one(store, DAMAGED))
    for number in range(4):
        (photographs / f"{number:02}.png").unlink()
    mended(store)
    assert contents(store) == before
    flip(one(store, "global/part-00000.*"))
    mended(store)  # 04.png is there: the others are failed rows now, and the repair says so
    (findings,) = verify.verify(str(store))
    assert (
        findings.problems == [] and findings.counts is not None and findings.counts.succeeded == 1
    )


@pytest.mark.parametrize("pattern", ["a*.tar", "a{0..1}.tar", "a1.tar"])
def test_archives_that_are_gone_or_others(pattern: str, tmp_path: Path) -> None:
    photographs, folder = make_photographs(tmp_path / "photographs", 8), tmp_path / "archives"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"a{number}.tar", "w") as tar:
            for path in sorted(photographs.iterdir())[4 * number : 4 * number + 4]:
                tar.add(path, path.name)
    store = make_store(folder / pattern, tmp_path / "store", rows_per_part=2)
    before = contents(store)
    flip(sorted(store.glob("global/*"))[-1])
    unmounted(folder)
    gone = (
        "is not there; bring it back"
        if pattern == "a1.tar"
        else r"a1.tar: there is no such file; bring it back"
    )
    refused(store, gone)
    mounted(folder)
    archive = folder / "a1.tar"
    whole = archive.read_bytes()
    os.truncate(archive, len(whole) - 512)
    refused(
        store,
        r"a1.tar has [\d,]+ bytes, and had [\d,]+ when it was planned: it is cut off, or another "
        r"one",
    )
    archive.write_bytes(whole)
    if pattern != "a1.tar":
        (folder / "a0.tar").unlink()  # of no unit that is damaged
    mended(store)
    assert contents(store) == before


def test_a_layer_whose_images_are_gone(tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store", locals="none")
    asked = tmp_path / "asked.txt"
    asked.write_text("photographs/05.png\nphotographs/06.png\n")
    make_store(photographs, store, locals="none", locals_for=str(asked))
    layer = one(store, "layers/*")
    before = contents(layer)
    flip(one(layer, "local/part-00001.*"))
    unmounted(photographs)
    refused(store, r"layers/\w+ cannot be done again: none of the 2 images of part-00001 in")
    mounted(photographs)
    mended(store)
    assert contents(layer) == before


def _imported(out: Path, **options: Any) -> Path:
    import_store.run(
        build(
            exchange_import_options.Options,
            {"out": str(out), "rows_per_part": 3, **options},
            "import",
        ),
        SETTINGS,
    )
    return out


def test_imported_files_that_are_gone(tmp_path: Path) -> None:
    pytest.importorskip("tests.pipelines.exchange.test_import_store")
    from tests.pipelines.exchange.test_import_store import unit, write_delg

    random, folder = np.random.default_rng(0), tmp_path / "delg"
    for number in range(6):
        write_delg(folder, f"{number}", unit(random, 48), unit(random, 20, 128))
    store = _imported(tmp_path / "store", format="delg", input=str(folder))
    before = contents(store)
    flip(one(store, DAMAGED))
    unmounted(folder)
    refused(
        store,
        r"none of the 3 images of part-00001 that .* can be read \(.*/3.delg_global: No such "
        r"file or directory\)",
    )
    mounted(folder)
    mended(store)
    assert contents(store) == before
    matrices = tmp_path / "matrices"
    matrices.mkdir()
    np.save(matrices / "m.npy", unit(random, 6, 48))
    store = _imported(tmp_path / "of-matrix", format="npy", input=str(matrices / "m.npy"))
    flip(one(store, "global/part-00001.*"))
    np.save(matrices / "m.npy", unit(random, 5, 48))
    refused(store, r"of-matrix cannot be done again: .*m.npy.*; bring it back")


def test_an_input_that_is_no_output_any_more(tmp_path: Path) -> None:
    """The mount point of the store that an index was made of, say."""
    first = replace(faulty_job(f"{tmp_path}/first", "ok"), inputs={})
    content = run_job(first, SETTINGS).content
    second = replace(
        faulty_job(f"{tmp_path}/second", "ok"),
        inputs={"store": {"url": first.output, "content": content}},
    )
    run_job(second, SETTINGS)
    flip(one(tmp_path, "second/data/*"))
    unmounted(tmp_path / "first")
    refused(
        tmp_path / "second",
        r"first, of which it was made \(store\), has no manifest.json: .*; bring it back",
    )


def test_of_remote_images_some_are_asked_for() -> None:
    asked: list[bytes] = []

    def read(location: bytes) -> None:
        asked.append(location)
        if not location.endswith(b"3999"):
            raise FileNotFoundError(2, "No such file or directory")

    files = [f"s3://b/{number}".encode() for number in range(4000)]
    assert _all_unreadable(files, False, read) == "s3://b/0: No such file or directory"
    assert 0.9 * MOST_TRIED <= len(asked) <= MOST_TRIED and len(set(asked)) == len(asked)
    assert _all_unreadable(files, True, read) == "" and _all_unreadable([], False, read) == ""
