"""repair: just the damaged units are done again, and the output is what it was, byte for byte."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines import cli
from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.verify import repair, verify
from pipelines.verify.repair_record import Record
from schemas.errors import JobFailed, UserError
from tests.support.damage import (
    OUTSIDE,
    contents,
    flip,
    make_photographs,
    make_store,
    one,
    rewrite,
    set_cells,
    set_descriptor,
    set_locals,
)
from tests.support.faulty_worker import faulty_job
from tests.support.pictures import picture
from tests.support.s3_server import BUCKET, S3Server
from tests.support.watching import EXTRACTOR, Running

SETTINGS = RunSettings(workers=1)
UNIT = "part-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photographs and the whole store of them."""
    folder = tmp_path_factory.mktemp("whole")
    make_store(make_photographs(folder / "photographs"), folder / "store")
    yield folder
    pool.close_pool()


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of the store to damage, whose photographs are where they were."""
    return Path(shutil.copytree(whole / "store", tmp_path / "store"))


def mended(store: Path | str, **options: Any) -> None:
    """Repair in this process."""
    repair.run(
        repair.Options(str(store), **{"own_class": (EXTRACTOR, OUTSIDE), **options}), SETTINGS
    )


def content(store: Path) -> str:
    """The content hash."""
    return str(json.loads((store / "manifest.json").read_bytes())["content"])


def is_as(store: Path, whole: Path) -> bool:
    """Whether a store is the undisturbed one, byte for byte, with nothing besides, and verifies
    clean.
    """
    (findings,) = verify.verify(str(store))
    assert (findings.problems, findings.leftovers) == ([], [])
    assert sorted(os.listdir(store)) == sorted(os.listdir(whole / "store"))
    return contents(store) == contents(whole / "store") and content(store) == content(
        whole / "store"
    )


def _swap(store: Path) -> None:
    first, second = (one(store, f"global/part-0000{number}.*") for number in (1, 3))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def _nan_with_hashes_that_fit(store: Path) -> None:
    rewrite(store, "global", UNIT, set_descriptor(3, lambda vector: vector * float("nan")))


def _offset_with_hashes_that_fit(store: Path) -> None:
    rewrite(
        store, "local/full", UNIT, set_locals(lambda arrays: arrays["offset"].__setitem__(1, 40))
    )


def _another_content(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text().replace(content(store), "0" * 64))


DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "flipped globals": (lambda store: flip(one(store, f"global/{UNIT}.*")), [UNIT]),
    "flipped locals": (lambda store: flip(one(store, f"local/full/{UNIT}.*")), [UNIT]),
    "flipped failures": (lambda store: flip(one(store, f"failures/{UNIT}.*")), [UNIT]),
    "truncated": (lambda store: os.truncate(one(store, f"local/full/{UNIT}.*"), 100), [UNIT]),
    "deleted": (lambda store: one(store, f"global/{UNIT}.*").unlink(), [UNIT]),
    "swapped": (_swap, [UNIT, "part-00003"]),
    "marker gone": (lambda store: (store / f"done/{UNIT}.json").unlink(), [UNIT]),
    "marker damaged": (lambda store: (store / f"done/{UNIT}.json").write_bytes(b"{"), [UNIT]),
    "not finite": (_nan_with_hashes_that_fit, [UNIT]),
    "offsets": (_offset_with_hashes_that_fit, [UNIT]),
    "manifest gone": (lambda store: (store / "manifest.json").unlink(), []),
    "manifest damaged": (lambda store: (store / "manifest.json").write_bytes(b"{}"), []),
    "content in the manifest": (_another_content, []),
    "parts gone": (lambda store: (store / "parts.parquet").unlink(), []),
    "parts damaged": (lambda store: flip(store / "parts.parquet"), []),
    "all of it": (
        lambda store: [
            (store / "manifest.json").unlink(),
            flip(one(store, "global/part-00000.*")),
            _swap(store),
        ],
        ["part-00000", UNIT, "part-00003"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_store_is_what_it_was(
    name: str, store: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, units = DAMAGES[name]
    markers = {path.name: path.stat().st_mtime_ns for path in (store / "done").iterdir()}
    damage(store)
    mended(store)
    assert is_as(store, whole)
    again = {
        path.name
        for path in (store / "done").iterdir()
        if path.stat().st_mtime_ns != markers.get(path.name)
    }
    assert {f"{unit}.json" for unit in units} == again, "no other unit was done again"
    said = capsys.readouterr().out
    assert (
        "of 4 units were done again: " + ", ".join(units)
        if units
        else "the manifest was written again"
    ) in said
    fits = name in ("not finite", "offsets")  # what was there had another content
    assert ("its content was" if fits else "it is what it was, byte for byte") in said


def test_a_whole_store_stays_untouched(
    store: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    mended(store)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert "is whole: 20 inputs" in capsys.readouterr().out


def test_a_moved_store_whose_images_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = make_photographs(tmp_path / "photographs")
    before = make_store(photographs, tmp_path / "before")
    store = tmp_path / "moved/here"
    store.parent.mkdir()
    old = content(before)
    before.rename(store)
    (photographs / "05.png").unlink()
    picture(99).save(photographs / "06.png")
    picture(7).save(photographs / "07.png")
    picture(98).save(photographs / "19.png")  # in a unit that is whole
    flip(one(store, f"local/full/{UNIT}.*"))
    assert cli.main(["repair", str(store), "--workers", "1", "--own-class", EXTRACTOR]) == 0
    said = capsys.readouterr().out
    assert (
        f"its content was {old[:12]}, is now {content(store)[:12]}" in said
        and "must be made again" in said
    )
    assert "row 0, photographs/05.png: failed now, and was described before" in said
    assert "row 1, photographs/06.png: its image file is another than before" in said
    assert "row 2, photographs/07.png: is described now, and failed before" in said
    assert "row 3" not in said and "19.png" not in said
    (findings,) = verify.verify(str(store))
    assert findings.problems == [] and findings.counts is not None and findings.counts.failed == 1


def test_older_stores_without_a_job(
    store: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "plan/job.json").unlink()
    path = one(store, f"global/{UNIT}.*")
    flip(path)
    with pytest.raises(
        UserError, match=r"it has no plan/job.json.*; give 'repair .* --remove-damaged', and then"
    ):
        mended(store)
    assert path.exists() and (store / f"done/{UNIT}.json").exists(), "nothing was touched"
    mended(store, remove_damaged=True)
    assert not path.exists() and not (store / f"done/{UNIT}.json").exists()
    assert (
        "1 units were taken back (part-00001); give the command that made it again"
        in capsys.readouterr().out
    )
    _extract_again(store, whole)
    assert contents(store) == contents(whole / "store") and content(store) == content(
        whole / "store"
    )


@pytest.mark.parametrize("name", ["plan.json", "images.parquet", "job.json"])
def test_a_damaged_plan_is_left_to_the_command(name: str, store: Path, whole: Path) -> None:
    flip(one(store, f"global/{UNIT}.*"))
    flip(store / "plan" / name, 0)
    with pytest.raises(UserError, match=f"plan/{name} is damaged or missing; give 'repair"):
        mended(store)
    mended(store, remove_damaged=True)
    _extract_again(store, whole)
    assert is_as(store, whole)


def _extract_again(store: Path, whole: Path) -> None:
    options = extract_options.Options(
        images=str(whole / "photographs"), out=str(store), extractor=EXTRACTOR, rows_per_part=5
    )
    extract.run(options, SETTINGS)


def test_weights_and_the_like_are_left_to_their_command(tmp_path: Path) -> None:
    run_job(faulty_job(str(tmp_path / "out"), "ok"), SETTINGS)
    shutil.rmtree(tmp_path / "out/plan")
    shutil.rmtree(tmp_path / "out/done")
    flip(one(tmp_path, "out/data/*"))
    with pytest.raises(UserError, match="give the command that made it, with --overwrite"):
        mended(tmp_path / "out")


def test_another_revision_of_the_extractor_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import tiny_extractor

    made = tiny_extractor.TinyExtractor.__init__

    def later(self: Any, **options: Any) -> None:
        made(self, **options)
        self.revision = 2

    monkeypatch.setattr(tiny_extractor.TinyExtractor, "__init__", later)
    flip(one(store, f"global/{UNIT}.*"))
    with pytest.raises(
        UserError, match=r"another extractor \(extractor.revision was 1, is now 2\)"
    ):
        mended(store)


def test_an_input_that_is_gone_or_another_is_refused(tmp_path: Path) -> None:
    """An unmounted disk, say: whole rows are not given up for failed ones."""
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store")
    photographs.rename(tmp_path / "elsewhere")
    flip(one(store, f"local/full/{UNIT}.*"))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    with pytest.raises(
        UserError,
        match=r"photographs, of which it was made \(images\), is not there; bring it back",
    ):
        mended(store)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    (store / "parts.parquet").unlink()
    (tmp_path / "elsewhere").rename(photographs)
    mended(store)
    first, second = (
        replace(faulty_job(f"{tmp_path}/{name}", "ok"), inputs={}) for name in ("first", "second")
    )
    content_of_first = run_job(first, SETTINGS).content
    run_job(
        replace(second, inputs={"first": {"url": first.output, "content": content_of_first}}),
        SETTINGS,
    )
    flip(one(tmp_path, "second/data/*"))
    rewrite(
        tmp_path / "first", "data", "part-00000", lambda path: path.write_bytes(b"another") and None
    )
    with pytest.raises(
        UserError, match=r"first, of which it was made \(first\), was made again since"
    ):
        mended(second.output)


def test_what_is_wrong_again_is_said(whole: Path, tmp_path: Path) -> None:
    """An extractor that breaks its contract gives the same rows again."""
    store = make_store(whole / "photographs", tmp_path / "store", extractor=OUTSIDE)
    before = contents(store)
    with pytest.raises(
        JobFailed, match=r"is as wrong as before \(local/.* outside the picture; redo part-00000;"
    ):
        mended(store)
    assert contents(store) == before


def test_several_outputs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run_job(replace(faulty_job(f"{tmp_path}/all/{name}", *["ok"] * 3), inputs={}), SETTINGS)
    before = {name: contents(tmp_path / "all" / name) for name in ("a", "b")}
    flip(one(tmp_path, "all/a/data/part-00002.*"))
    (tmp_path / "all/b/plain/part-00000.json").unlink()
    mended(tmp_path / "all")
    assert {name: contents(tmp_path / "all" / name) for name in ("a", "b")} == before
    assert not any(findings.problems for findings in verify.verify(f"{tmp_path}/all"))
    assert capsys.readouterr().out.count("it is what it was, byte for byte") == 2


def test_only_old_files_of_ours_are_removed_and_only_when_asked(store: Path, whole: Path) -> None:
    old = store / "global/part-00001.000000000000.parquet"
    young = store / "global/part-00001.000000000001.parquet"
    others = [
        store / name
        for name in (
            "my.txt",
            "draft.tmp",
            "global/notes.txt",
            "done/notes.json",
            "local/full/x.h5",
        )
    ]
    tried = store / "scratch/part-00001.ab/local.h5"
    tried.parent.mkdir(parents=True)
    for path in (old, young, *others, tried):
        path.write_bytes(b"left over")
    for path in (old, *others, tried):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    mended(store)
    assert old.exists() and tried.exists()
    flip(one(store, "global/part-00002.*"))
    tried.parent.mkdir(parents=True, exist_ok=True)
    tried.write_bytes(b"left over by a killed attempt")
    os.utime(tried, (time.time() - 25 * 3600,) * 2)
    mended(store, gc=True)
    assert (
        not old.exists()
        and not tried.exists()
        and young.exists()
        and all(path.exists() for path in others)
    )
    young.unlink()
    for path in others:
        path.unlink()
    assert contents(store) == contents(whole / "store")


def test_a_remote_store(whole: Path) -> None:
    """In memory: its workers would be other processes, so that its manifest alone is repaired
    here.
    """
    memory = fsspec.filesystem("memory")
    memory.put(str(whole / "store"), "/repaired/store", recursive=True)
    try:
        memory.rm("/repaired/store/parts.parquet")
        mended("memory://repaired/store")
        assert json.loads(memory.cat_file("/repaired/store/manifest.json"))["content"] == content(
            whole / "store"
        )
        assert not memory.exists("/repaired/store/repair/record.json")
        assert verify.verify("memory://repaired/store")[0].problems == []
    finally:
        memory.rm("/repaired", recursive=True)


def test_mistakes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in [
        (["repair"], "STORE is missing"),
        (["repair", str(tmp_path / "nowhere")], "there is no output here"),
        (["repair", str(store), "--overwrite"], "--overwrite makes whole outputs again"),
    ]:
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said and "Traceback" not in said


def _there(store: Path, pattern: str) -> bool:
    return any(store.glob(pattern))


def test_kill_in_the_middle(start: Callable[..., Running], tmp_path: Path) -> None:
    """Killed with one of three units done again; the next repair goes on and tells it to its
    end.
    """
    slow = {"extractor_option": {"seconds": 0.1}}
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store", **slow)
    before, old = contents(store), content(store)
    for number in range(3):
        flip(one(store, f"global/part-0000{number}.*"))
    running = start("repair", store, "--own-class", EXTRACTOR, "--workers", 1)
    running.until(
        functools.partial(_gone_and_there, store, "done/part-0000[012].json"),
        "the first unit done again",
    )
    running.kill_all()
    assert _there(store, "repair/record.json") and not (store / "manifest.json").exists()
    running = start("repair", store, "--own-class", EXTRACTOR, "--workers", 2)
    assert running.end() == 0, running.text
    assert (
        "it is what it was, byte for byte" in running.text
        and "part-00000, part-00001, part-00002" in running.text
    )
    assert contents(store) == before and content(store) == old
    (findings,) = verify.verify(str(store))
    assert (findings.problems, findings.leftovers) == ([], [])


def _gone_and_there(store: Path, pattern: str) -> bool:
    return (
        _there(store, "repair/record.json")
        and not (store / "parts.parquet").exists()
        and _there(store, pattern)
    )


def test_killed_before_the_last_word(
    store: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is done again but for the comparison: the record is there still."""
    name = rewrite(store, "global", UNIT, set_cells("bytes", {0: 1}))
    flip(store / name)
    examined = verify.examine(str(store))
    output, findings = examined[0]
    repair._prepare(output, findings)
    job = repair._job(output, findings)
    run_job(job, SETTINGS)
    mended(store)
    said = capsys.readouterr().out
    assert "its content was" in said and "row 0" not in said, (
        "the bytes of the image are no part of what is compared"
    )
    assert "other than before: global/part-00001." in said
    assert contents(store).keys() - contents(whole / "store").keys() == set()
    assert is_as(store, whole)


ARCHIVED = {"rows_per_part": 4, "local_dtype": "binary"}


@pytest.fixture(scope="module")
def archived(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two archives with ten photographs each: three pieces each, of 4, 4 and 2 rows;
    binary locals.
    """
    folder = tmp_path_factory.mktemp("archived")
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for path in sorted((whole / "photographs").glob(f"{number}*.png")):
                tar.add(path, path.name)
    make_store(folder / "*.tar", folder / "store", **ARCHIVED)
    return folder


ARCHIVE_DAMAGES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "a piece's file": (
        lambda store: flip(one(store, "global/part-00003.*")),
        {"archive-00000.00001"},
    ),
    "the last piece's file": (
        lambda store: one(store, "local/full/part-00007.*").unlink(),
        {"archive-00001.00002"},
    ),
    "a piece's marker": (
        lambda store: flip(store / "pieces/archive-00000.00002.json", 0),
        {"archive-00000.00002"},
    ),
    "the unit's marker": (lambda store: (store / "done/archive-00001.json").unlink(), set()),
}


@pytest.mark.parametrize("name", ARCHIVE_DAMAGES)
def test_only_the_damaged_pieces_of_an_archive(name: str, archived: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(archived / "store", tmp_path / "store"))
    damage, pieces = ARCHIVE_DAMAGES[name]
    times = {path.stem: path.stat().st_mtime_ns for path in (store / "pieces").iterdir()}
    damage(store)
    mended(store)
    assert contents(store) == contents(archived / "store") and content(store) == content(
        archived / "store"
    )
    assert verify.verify(str(store))[0].problems == []
    assert {
        path.stem
        for path in (store / "pieces").iterdir()
        if path.stat().st_mtime_ns != times[path.stem]
    } == pieces


def test_the_plan_of_an_archives_store(archived: Path, tmp_path: Path) -> None:
    for name in ("archives.parquet", "rotation.f32", "source.json"):
        store = Path(shutil.copytree(archived / "store", tmp_path / name))
        flip(store / "plan" / name, 0)
        (problem, *_) = verify.verify(str(store), quick=True)[0].problems
        assert (problem.file, problem.fix) == (f"plan/{name}", "command")
        with pytest.raises(UserError, match=f"plan/{name} is damaged or missing"):
            mended(store)
        mended(store, remove_damaged=True)
        make_store(archived / "*.tar", store, **ARCHIVED)
        assert contents(store) == contents(archived / "store") and content(store) == content(
            archived / "store"
        )


def test_retried_images_and_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store without locals, one image described later, locals of a few: every output of it
    verifies and is mended.
    """
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store", locals="none")
    picture(7).save(photographs / "07.png")
    make_store(photographs, store, locals="none", retry_failed=True)
    asked = tmp_path / "asked.txt"
    asked.write_text("photographs/07.png\nphotographs/03.png\nphotographs/04.png\n")
    make_store(photographs, store, locals_for=str(asked))
    found = verify.verify(str(store))
    assert [(one.stage, one.problems, one.leftovers) for one in found] == [
        ("extract", [], []),
        ("locals", [], []),
    ]
    assert found[0].units == 5 and found[0].counts is not None and found[0].counts.failed == 0
    before, layer = contents(store), one(store, "layers/*")
    of_layer, locals_ = contents(layer), one(layer, "local/part-00000.*")
    assert [one.problems for one in verify.verify(str(layer))] == [[]]
    flip(locals_)
    flip(one(store, "global/part-00004.*"))
    (first, second) = verify.verify(str(store))
    assert (first.damaged_units, second.damaged_units) == (["part-00004"], ["part-00000"])
    capsys.readouterr()
    mended(store)
    assert capsys.readouterr().out.count("it is what it was, byte for byte") == 2
    assert (contents(store), contents(layer)) == (before, of_layer)
    rewrite(layer, "local", "part-00000", set_locals(lambda arrays: arrays["xy"].fill(1e4)))
    (problem, _) = verify.verify(str(layer))[0].problems
    assert (problem.row, problem.what) == (3, "a local lies outside the picture")
    rewrite(
        layer, "local", "part-00000", set_locals(lambda arrays: arrays["row"].__setitem__(0, 4))
    )
    (problem, *_) = verify.verify(str(layer))[0].problems
    assert "'row' is not ascending" in problem.what and problem.unit == "part-00000"


def test_a_store_on_s3(s3: S3Server, start: Callable[..., Running], whole: Path) -> None:
    url, command = (
        f"s3://{BUCKET}/repaired",
        ("--extractor", EXTRACTOR, "--rows-per-part", 5, "--workers", 1),
    )
    running = start("extract", "--images", whole / "photographs", "--out", url, *command)
    assert running.end() == 0, running.text
    before = {
        name: s3.content(name)
        for name in s3.objects("repaired/")
        if "/global/" in name or "/local/" in name
    }
    victims = [
        next(name for name in before if f"{kind}/part-00002" in name)
        for kind in ("global", "local/full")
    ]
    s3.client.put_object(Bucket=BUCKET, Key=victims[0], Body=before[victims[0]][:-1] + b"!")
    s3.client.delete_object(Bucket=BUCKET, Key=victims[1])
    running = start("verify", url)
    assert running.end() == 1 and "1 of 4 units must be done again: part-00002" in running.text, (
        running.text
    )
    running = start("repair", url, "--own-class", EXTRACTOR, "--workers", 1)
    assert running.end() == 0 and "it is what it was, byte for byte" in running.text, running.text
    assert {name: s3.content(name) for name in before} == before
    assert not [
        name for name in s3.objects("repaired/") if "/repair/" in name or "/scratch/" in name
    ]
    running = start("verify", url)
    assert running.end() == 0 and f"{url} is whole: 20 inputs" in running.text, running.text


def test_a_record_keeps_its_bytes_and_says_where_it_is_wrong() -> None:
    units = {"part-00001": {"global/part-00001.0123.parquet": "0123"}}
    record = Record("e72c", {"numpy": "2.4"}, units, ("global/part-00001.0123.parquet",))
    data = record.to_bytes()
    assert Record.from_bytes(data) == record

    with pytest.raises(ValueError, match=r"^damaged\[0\]: expected str, got int$"):
        Record.from_bytes(json.dumps({**json.loads(data), "damaged": [3]}).encode())
    with pytest.raises(ValueError, match="'a/../../b.* leads out of the output's folder"):
        Record.from_bytes(data.replace(b"global/part-00001", b"a/../../b"))
