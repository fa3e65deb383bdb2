"""--overwrite: the old output stands until the new one is whole; a kill at any step of the swap
leaves what the next command finishes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.engines import driver
from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.outputs import finish
from pipelines.engines.settings import RunSettings
from pipelines.jobs import replacing
from pipelines.jobs.do_unit import do_unit
from pipelines.jobs.existing_output import is_ours
from pipelines.jobs.manifests import is_whole, read_manifest, require_manifest, write_manifest
from pipelines.jobs.markers import read_marker
from pipelines.jobs.plan import write_plan
from pipelines.jobs.unit_worker import make_worker
from pipelines.storage.place import Place, open_place
from pipelines.verify.verify import verify
from schemas.errors import JobFailed, Unreachable, UserError
from schemas.manifest import Manifest
from schemas.plan import Job
from tests.support.command_line import command
from tests.support.damage import make_photographs, make_store
from tests.support.faulty_worker import faulty_job
from tests.support.s3_server import BUCKET
from tests.support.watching import EXTRACTOR

SETTINGS = RunSettings(workers=1)
OVERWRITE = RunSettings(workers=1, overwrite=True)
OTHER = {"colour": {"hue": 2}}


@pytest.fixture(scope="module", autouse=True)
def end_of_the_workers() -> Iterator[None]:
    """The workers stay for the tests of this module."""
    yield
    pool.close_pool()


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def jobs_at(out: Path) -> tuple[Job, Job]:
    """The job of an old output, of three units, and the one that replaces it, of two."""
    return faulty_job(str(out), "ok", "ok", "ok"), faulty_job(str(out), "ok", "ok", recipe=OTHER)


@pytest.fixture(scope="module")
def before_swap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old output with a user's own files in it, and beside it the new one, whole."""
    out = tmp_path_factory.mktemp("replacing") / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    layer = faulty_job(f"{out}/layers/abc", "ok")
    run_job(layer, SETTINGS)
    for name in ("notes.txt", "data/notes.txt", "plan/notes.txt", "layers/mine/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "swap_in", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_job(new, OVERWRITE)
    return out


def copied(source: Path, folder: Path) -> Path:
    """A copy of an output, at another place."""
    return Path(shutil.copytree(source, folder / "out"))


def die_before(step: int, work: Callable[[], Any]) -> bool:
    """Do the work in a process that is killed before its n-th step; True if it came to its end."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def function(*arguments: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), 9)
                return original(*arguments, **more)

            return function

        for name in ("replace", "remove", "link", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001  seen by the exit code
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, 9), f"the step {step} ended with {status}"
    return status == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given_again", "stride"), [(OVERWRITE, 4), (SETTINGS, 1)], ids=["overwrite", "plain"]
)
def test_a_kill_at_any_step_of_the_swap(
    given_again: RunSettings, stride: int, before_swap: Path, tmp_path: Path
) -> None:
    old_manifest = read_manifest(open_place(str(before_swap)))
    assert old_manifest is not None
    expected = run_job(replace(jobs_at(tmp_path / "fresh")[1]), SETTINGS)
    step, in_swap, ended = 1 - stride, 0, False
    while not ended:
        step += stride
        out = copied(before_swap, tmp_path / f"{step}")
        place, (old, new) = open_place(str(out)), jobs_at(out)
        ended = die_before(step, lambda new=new: run_job(new, OVERWRITE))

        manifest = read_manifest(place)
        if place.exists("next/swap.json") and manifest is None:
            in_swap += 1
            with pytest.raises(UserError, match="is not finished"):
                require_manifest(place.url, "output", "command")
            assert [problem.file for problem in verify(place.url)[0].problems] == ["manifest.json"]
        else:
            assert manifest is not None and is_whole(place, manifest)
            assert verify(place.url)[0].problems == []
        begun = place.exists("next/swap.json") or manifest != old_manifest
        if not begun and given_again is SETTINGS:  # the old recipe is the one that counts
            assert run_job(old, SETTINGS) == old_manifest
            continue

        again = run_job(new, given_again)
        assert again.content == expected.content and read_manifest(place) == again
        there = files_of(out)
        mine = {name for name in there if name.endswith("notes.txt")}
        fresh = {*files_of(tmp_path / "fresh")}
        assert {*there} == fresh | mine and len(mine) == 4
        assert json.loads(there["plan/job.json"])["output"] == str(out)
        assert verify(place.url)[0].problems == [] and not [*out.glob("next/*")]
    assert stride * in_swap > 20


def test_an_interrupted_overwrite_goes_on_and_leaves_the_old_one(tmp_path: Path) -> None:
    """A failure leaves the old output as it was, and what is done of the new one is not redone."""
    out = tmp_path / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    before = files_of(out)
    with pytest.raises(JobFailed):
        run_job(faulty_job(str(out), "ok", "raise", recipe=OTHER), OVERWRITE)
    now = files_of(out)
    assert {name: now[name] for name in before} == before
    findings = verify(str(out))
    assert [one.problems for one in findings] == [[]]
    assert run_job(old, SETTINGS) == read_manifest(open_place(str(out)))

    # units of another kind: what was begun is not of this job
    run_job(new, OVERWRITE)
    assert {name.partition(".")[0] for name in files_of(out)} >= {"data/part-00001"}

    slow = faulty_job(str(out), "ok", "raise", recipe={"colour": {"hue": 3}})
    with pytest.raises(JobFailed):
        run_job(slow, OVERWRITE)
    (kept,) = (out / "next/data").glob("part-00000.*")
    written = kept.stat().st_mtime_ns
    with pytest.raises(JobFailed):
        run_job(slow, OVERWRITE)
    assert kept.stat().st_mtime_ns == written


def test_overwriting_by_the_same_recipe_makes_it_anew(tmp_path: Path) -> None:
    old, _ = jobs_at(tmp_path / "out")
    first = run_job(old, SETTINGS)
    kept = next((tmp_path / "out/data").glob("part-00000.*"))
    written = kept.stat().st_mtime_ns
    assert run_job(old, OVERWRITE).content == first.content
    assert kept.stat().st_mtime_ns > written


@pytest.mark.parametrize("damaged", ["manifest.json", "plan/plan.json", "parts.parquet"])
@pytest.mark.parametrize("data", [b"", b"{", b'{"schema": "rrt-manifest/1", "recipe": 3}'])
def test_a_damaged_output_is_always_made_again(data: bytes, damaged: str, tmp_path: Path) -> None:
    old, new = jobs_at(tmp_path / "out")
    run_job(old, SETTINGS)
    (tmp_path / "out" / damaged).write_bytes(data)
    again = run_job(new, OVERWRITE)
    assert verify(str(tmp_path / "out"))[0].problems == []
    assert again.counts.inputs == 6
    assert len(list((tmp_path / "out/data").iterdir())) == 2


def test_a_manifest_alone_and_a_parts_table_alone_are_ours(tmp_path: Path) -> None:
    old, _ = jobs_at(tmp_path / "out")
    run_job(old, SETTINGS)
    for kept in ("manifest.json", "parts.parquet", "done", "plan"):
        folder = tmp_path / kept
        folder.mkdir()
        source = tmp_path / "out" / kept
        if source.is_dir():
            shutil.copytree(source, folder / kept)
        else:
            shutil.copy(source, folder)
        assert is_ours(open_place(str(folder)))
    (tmp_path / "cookbook").mkdir()
    (tmp_path / "cookbook/manifest.json").write_text('{"recipe": {"eggs": 2}}')
    assert not is_ours(open_place(str(tmp_path / "cookbook")))


@pytest.mark.parametrize("name", ["photo.jpg", ".git/config", f"photo.jpg.{'0' * 12}.tmp"])
def test_a_folder_called_next_that_is_a_users_own_is_refused(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    (out / "next" / name).parent.mkdir(parents=True)
    (out / "next" / name).write_text("mine")
    before = files_of(out)
    with pytest.raises(UserError, match="next holds files of something else"):
        run_job(new, OVERWRITE)
    assert files_of(out) == before


@pytest.mark.parametrize("name", ["../thesis.tex", "/etc/passwd", "link/thesis.tex"])
def test_a_swap_from_elsewhere_removes_nothing_outside(
    name: str, before_swap: Path, tmp_path: Path
) -> None:
    out = copied(before_swap, tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    (out / "link").symlink_to(tmp_path)
    record = {"schema": "rrt-swap/1", "last": "manifest.json", "remove": [name], "move": []}
    (out / "next/swap.json").write_text(json.dumps({**record, "folders": []}))
    if name.startswith("link"):
        run_job(jobs_at(out)[0], OVERWRITE)
    else:
        with pytest.raises(UserError, match=r"swap\.json is damaged"):
            run_job(jobs_at(out)[0], OVERWRITE)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("link", "swap"),
    [
        ("sub", {"move": ["sub/thesis.tex"]}),
        ("sub", {"last": "sub/thesis.tex"}),
        ("next/sub", {"move": ["sub/thesis.tex"]}),
        ("next/plan", {}),
        ("next", {"move": ["thesis.tex"]}),
    ],
)
def test_a_swap_from_elsewhere_follows_no_link(
    link: str, swap: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is written over, moved away or removed behind a link to a folder."""
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    for name in ("thesis.tex", "manifest.json"):
        (home / name).write_text("mine")
    (out / "next").mkdir(parents=True)
    if link == "next":
        (out / "next").rmdir()
    (out / link).symlink_to(home)
    record = {"schema": "rrt-swap/1", "last": "manifest.json", "remove": [], "move": []}
    (out / "next/swap.json").write_text(json.dumps({**record, "folders": [], **swap}))
    (out / "next/manifest.json").write_text("mine")
    if link == "sub":
        (out / "next/sub").mkdir()
        (out / "next/sub/thesis.tex").write_text("theirs")
    before = files_of(home)

    place = open_place(str(out))
    if swap:
        with pytest.raises(UserError, match=f"{link} is a link to a folder elsewhere"):
            replacing.finish_swap(place)
    else:
        replacing.finish_swap(place)
    assert files_of(home) == before


def test_a_link_in_the_place_of_next_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """What it leads to may be another output's, under way."""
    out = tmp_path / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    other = tmp_path / "other/next"
    replacing.begin_beside(open_place(str(other)), old)
    (other / "data").mkdir()
    (other / "data/part").write_text("of the other")
    (out / "next").symlink_to(other)
    with pytest.raises(UserError, match="next is a link to a folder elsewhere"):
        run_job(new, OVERWRITE)
    assert {*files_of(other)} == {"overwrite.json", "data/part"}


def test_a_folder_of_its_own_with_links_is_replaced(before_swap: Path, tmp_path: Path) -> None:
    """Of a link that leads out, or back to its own folder, nothing is followed."""
    out = copied(before_swap, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/log").write_text("mine")
    (out / "logs").mkdir()
    (out / "logs/old").write_text("of the old output")
    for name in ("again", "twice"):
        (out / "logs" / name).symlink_to(".")
    (out / "logs/out").symlink_to(tmp_path / "elsewhere")
    (out / "cache").symlink_to(tmp_path / "elsewhere")
    replacing.swap_in(open_place(str(out)), jobs_at(out)[1], ["logs/", "cache/"])
    assert not (out / "logs/old").exists()
    assert (tmp_path / "elsewhere/log").read_text() == "mine"


@pytest.mark.parametrize("data", [None, b"[" * 200_000])
def test_a_swap_that_cannot_be_read_is_refused_in_a_sentence(
    data: bytes | None, before_swap: Path, tmp_path: Path
) -> None:
    out = copied(before_swap, tmp_path)
    swap = out / "next/swap.json"
    if data is None:
        swap.mkdir()
    else:
        swap.write_bytes(data)
    with pytest.raises(UserError, match=r"swap\.json is damaged"):
        run_job(jobs_at(out)[0], SETTINGS)


def test_a_swap_leaves_folders_where_it_names_files(before_swap: Path, tmp_path: Path) -> None:
    out = copied(before_swap, tmp_path)
    record = {"schema": "rrt-swap/1", "last": "manifest.json", "move": [], "folders": []}
    record["remove"] = ["data", "notes.txt/x"]
    (out / "next/swap.json").write_text(json.dumps(record))
    replacing.finish_swap(open_place(str(out)))
    assert (out / "data/notes.txt").read_text() == (out / "notes.txt").read_text() == "mine"


def test_what_was_begun_outlives_a_place_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plan that cannot be read now is not one of another job: nothing is removed."""
    url = f"memory://{secrets.token_hex(4)}/out"
    _, new = jobs_at(url)
    beside = open_place(url).below("next")
    replacing.begin_beside(beside, new)
    fill(replacing.at(new, beside))
    before = sorted(beside.glob("**"))
    read = type(beside).read

    def silent(self: Place, name: str, *more: Any, **_: object) -> bytes:
        if name == "plan/plan.json":
            raise Unreachable("it does not answer")
        return read(self, name, *more)

    with monkeypatch.context() as patch, pytest.raises(Unreachable):
        patch.setattr(type(beside), "read", silent)
        replacing.begin_beside(beside, new)
    assert before and sorted(beside.glob("**")) == before


def test_a_finish_that_died_before_the_swap_is_given_again(
    before_swap: Path, tmp_path: Path
) -> None:
    out = copied(before_swap, tmp_path)
    manifest = read_manifest(open_place(f"{out}/next"))
    assert finish(f"{out}/next") == manifest == read_manifest(open_place(str(out)))
    assert not (out / "next/swap.json").exists()
    assert finish(f"{out}/next") == manifest


@pytest.mark.parametrize("read", ["out", "out/"])
def test_an_output_that_the_command_reads_is_not_replaced(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    before = files_of(out)
    monkeypatch.chdir(tmp_path)
    for url in (read, f"{tmp_path}/{read}"):
        reading = replace(new, inputs={"store": {"url": url, "content": "any"}})
        with pytest.raises(UserError, match="is an input of this command"):
            run_job(reading, OVERWRITE)
        with pytest.raises(UserError, match="was made by another recipe"):
            run_job(reading, SETTINGS)
    assert files_of(out) == before


def test_a_first_try_that_was_killed_at_once_is_gone_on_with(tmp_path: Path) -> None:
    """Only the first file of the plan stands: nothing proves that it is ours."""
    out = tmp_path / "out"
    (out / "plan").mkdir(parents=True)
    (out / "plan/images.parquet").write_bytes(b"begun")
    manifest: Manifest = run_job(jobs_at(out)[0], OVERWRITE)
    assert manifest.counts.inputs == 9 and not (out / "next").exists()


def test_a_kill_before_the_first_file_of_the_new_output_stands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old, new = jobs_at(out)
    run_job(old, SETTINGS)
    place = open_place(str(out))
    beside = replacing.place_for(place, True, ())
    assert not die_before(1, lambda: replacing.begin_beside(beside, new))
    assert [name.endswith(".tmp") for name in beside.names("")] == [True]
    run_job(new, OVERWRITE)
    assert not (out / "next").exists() and verify(place.url)[0].problems == []


def fill(job: Job) -> Place:
    """Do a job in this process; gives its place."""
    place = open_place(job.output)
    write_plan(place, job, {"plan/more": b"more"})
    worker = make_worker(job)
    assert all(do_unit(worker, unit) for unit in job.units)
    markers = [read_marker(place, job, unit) for unit in job.units]
    write_manifest(place, job, [marker for marker in markers if marker], 1.0)
    return place


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_swap_on_an_object_store(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = secrets.token_hex(4) if kind == "memory" else BUCKET
    if kind == "s3":
        request.getfixturevalue("s3")
    url = f"{kind}://{bucket}/{secrets.token_hex(4)}/out"
    old, new = jobs_at(url)
    place = fill(old)
    place.write("notes.txt", b"mine")
    beside = replacing.place_for(place, True, ())
    replacing.begin_beside(beside, new)
    content = read_manifest(fill(replacing.at(new, beside)))
    left = [3]
    move = type(place).move

    def dying(self: Place, name: str, to: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        move(self, name, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(place), "move", dying)
        replacing.swap_in(place, new)
    assert read_manifest(place) is None and place.exists("next/swap.json")

    replacing.finish_swap(place)
    assert read_manifest(place) == content and content is not None and is_whole(place, content)
    assert [len(place.names(folder)) for folder in ("data", "plain", "done", "plan")] == [
        2,
        2,
        2,
        3,
    ]
    assert place.read("notes.txt") == b"mine" and place.read("plan/more") == b"more"
    assert json.loads(place.read("plan/job.json"))["output"] == url
    assert place.names("next") == [] and verify(url)[0].problems == []


@pytest.mark.parametrize("dtype", ["float16", "binary"])
def test_a_store_in_mid_swap_is_finished_before_its_plan_is_read(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old plan must not be taken for the new one's, nor its rotation."""
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store", rows_per_part=4)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ["extract", "--images", photographs, "--out", store, "--extractor", EXTRACTOR]
    arguments += ["--rows-per-part", 10, "--local-dtype", dtype, "--workers", 1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replacing, "_remove", killed)
        command(*arguments, "--overwrite")
    assert (store / "next" / "swap.json").exists() and not (store / "manifest.json").exists()

    ended = command(*arguments)

    assert ended.code == 0 and "already made" in ended.said, ended.said
    assert not (store / "next").exists() and verify(str(store))[0].problems == []
