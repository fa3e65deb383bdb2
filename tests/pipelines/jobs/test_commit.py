"""The commit protocol: markers, plans, manifests, and a death before each single step of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.do_unit import do_unit
from pipelines.jobs.manifests import is_whole, read_manifest, require_manifest, write_manifest
from pipelines.jobs.markers import marker_name, read_marker
from pipelines.jobs.plan import write_plan
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.manifest import Counts, Marker
from schemas.plan import Job, Unit, WholeJob
from tests.support.faulty_worker import FaultyWorker, faulty_job


def finished(job: Job) -> Place:
    """The job's units done in this process."""
    place = open_place(job.output)
    for unit in job.units:
        assert do_unit(FaultyWorker(job), unit)
    return place


def markers_of(place: Place, job: Job) -> list[Marker]:
    """The valid markers of a job."""
    return [marker for unit in job.units if (marker := read_marker(place, job, unit)) is not None]


def test_a_unit_leaves_its_files_and_its_marker_and_nothing_else(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place = finished(job)
    marker = read_marker(place, job, job.units[0])
    assert (
        marker is not None
        and marker.counts == Counts(3, 3, 0)
        and marker.summary == {"name": "part-00000"}
    )
    assert [entry.name for entry in marker.files] == [
        f"data/part-00000.{marker.files[0].sha256[:12]}.bin",
        "plain/part-00000.json",
    ]
    assert place.names("attempts") == [] and not list(Path(place.path("scratch")).iterdir())


def test_the_first_marker_wins_and_the_second_attempt_takes_it_over(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place, unit, worker = open_place(job.output), job.units[0], FaultyWorker(job)
    first, second = Attempt(place, job, unit), Attempt(place, job, unit)
    assert (first.number, second.number) == (1, 1), "nothing speaks against the unit"
    won = first.commit(worker.do(unit, first))
    second.summary = {"another": 1}
    lost = second.commit(worker.do(unit, second))
    assert lost.to_bytes() == won.to_bytes() == place.read(marker_name(unit))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"rrt-marker/1"', '"rrt-marker/9"'),
        lambda text: text.replace('"bytes": 1000', '"bytes": 999'),
        lambda text: text.replace('"failed": 0', '"failed": 1'),
        lambda text: json.dumps({**json.loads(text), "recipe": "another"}),
        lambda text: json.dumps({**json.loads(text), "slice": "another"}),
    ],
)
def test_a_marker_that_is_not_valid_counts_as_absent_and_is_replaced(
    spoil: Callable[[str], str], tmp_path: Path
) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place, unit = finished(job), job.units[0]
    name = marker_name(unit)
    before = place.read(name).decode()
    assert spoil(before) != before
    place.write(name, spoil(before).encode())
    assert read_marker(place, job, unit) is None
    assert do_unit(FaultyWorker(job), unit)
    marker = read_marker(place, job, unit)
    assert (
        marker is not None and marker.files == (Marker.from_bytes(before.encode()) or marker).files
    )


def test_a_marker_without_its_files_counts_as_absent(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place, unit = finished(job), job.units[0]
    marker = read_marker(place, job, unit)
    assert marker is not None
    data = place.path(marker.files[0].name)
    os.truncate(data, 10)
    assert read_marker(place, job, unit) is None
    os.remove(data)
    assert read_marker(place, job, unit) is None


def test_counts_must_add_up() -> None:
    with pytest.raises(ValueError, match="3 inputs are not 2 succeeded"):
        Counts(3, 2, 0)
    assert Counts(3, 2, 1) + Counts(1, 1) == Counts(4, 3, 1)


def test_content_is_that_of_the_files_not_of_the_run(tmp_path: Path) -> None:
    manifests = []
    for folder, order in (("one", 1), ("two", -1)):
        job = faulty_job(f"{tmp_path}/{folder}", "ok", "ok", "ok")
        place = finished(job)
        manifests.append(write_manifest(place, job, markers_of(place, job)[::order], 1.0 * order))
        assert read_manifest(place) == manifests[-1]
        assert is_whole(place, manifests[-1])
    assert manifests[0].content == manifests[1].content
    assert manifests[0].counts == Counts(9, 9)
    other = dataclasses.replace(
        job, units=(Unit("part-00009", WholeJob(), 3),), output=f"{tmp_path}/three"
    )
    assert (
        write_manifest(
            finished(other), other, markers_of(open_place(other.output), other), 1.0
        ).content
        != manifests[0].content
    )


def test_the_recipe_decides_and_the_sentence_says_what_differs(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    place = open_place(job.output)
    write_plan(place, job, {})
    write_plan(
        place, dataclasses.replace(job, settings={"batch": 9}, noun="images"), {}
    )  # settings are no recipe
    with pytest.raises(UserError, match=r"colour\.hue was 1, is now 2.*--overwrite"):
        write_plan(place, faulty_job(job.output, "ok", recipe={"colour": {"hue": 2}}), {})
    with pytest.raises(UserError, match=r"inputs\.images was .*abc.*is now .*abd"):
        write_plan(
            place, dataclasses.replace(job, inputs={"images": {"url": "", "content": "abd"}}), {}
        )
    with pytest.raises(UserError, match="planned for other units"):
        write_plan(place, faulty_job(job.output, "ok", "ok"), {})


def test_a_job_in_an_older_spelling_stays_until_something_else_is_in_it(tmp_path: Path) -> None:
    """Its worker was named by a place in the code, and it had fewer options."""
    recipe, settings = {"format": "npy"}, {"input": "here", "max_locals": 500}
    inputs = {"descriptors": {"url": "here", "content": "abc"}}
    job = Job("import", f"{tmp_path}/out", "import/part", recipe, inputs, (), settings)
    older = {"worker": "pipelines.import_store:ImportPart", "settings": {"input": "here"}}
    place = open_place(job.output)
    write_plan(place, job, {})

    old = dataclasses.replace(job, **older).to_json().encode()
    place.write("plan/job.json", old)
    write_plan(place, job, {})
    assert place.read("plan/job.json") == old

    for moved in (dataclasses.replace(job, settings={"input": "there"}), job):
        write_plan(place, moved, {})
        assert place.read("plan/job.json") == moved.to_json().encode()

    for damaged in (b"", old.replace(b"ImportPart", b"Nothing")):
        place.write("plan/job.json", damaged)
        write_plan(place, job, {})
        assert place.read("plan/job.json") == job.to_json().encode()


@pytest.mark.parametrize("damage", ["", '{"recipe', "[]", '{"recipe": 3}'])
def test_a_damaged_plan_is_said(damage: str, tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    open_place(job.output).write("plan/plan.json", damage.encode())
    with pytest.raises(UserError, match=r"plan\.json is damaged; give --overwrite"):
        write_plan(open_place(job.output), job, {})


def test_a_folder_of_something_else_is_neither_filled_nor_emptied(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    job = faulty_job(str(tmp_path), "ok")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"something else|no output of this software"):
            run_job(job, RunSettings(overwrite=overwrite))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_input_that_is_not_finished_is_said(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok")
    with pytest.raises(UserError, match="the store is not there; make it with 'extract'"):
        require_manifest(job.output, "store", "extract")
    write_plan(open_place(job.output), job, {})
    with pytest.raises(UserError, match="the store is not finished"):
        require_manifest(job.output, "store", "extract")
    open_place(job.output).write("manifest.json", b'{"schema": "rrt-manifest/1"')
    with pytest.raises(UserError, match=r"manifest\.json: it cannot be used"):
        require_manifest(job.output, "store", "extract")


STEPS = ("fsync", "replace", "link", "remove", "makedirs", "open")


def _die_before(step: int, work: Callable[[], Any]) -> bool:
    """Do the work in a forked process that dies before its n-th step on the disk; True if it came
    to its end.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def function(*arguments: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return original(*arguments, **more)

            return function

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 0


def test_death_before_each_step_of_a_unit_and_of_the_manifest(tmp_path: Path) -> None:
    """Wherever it dies: nothing half is taken for whole, and the same work again gives the same
    content.
    """
    template = faulty_job(f"{tmp_path}/template", "ok")
    place = finished(template)
    wanted = write_manifest(place, template, markers_of(place, template), 1.0).content
    step, ended = 0, False
    while not ended:
        step += 1
        job = faulty_job(f"{tmp_path}/out-{step}", "ok")
        place, unit = open_place(job.output), job.units[0]

        def work(job: Job = job, place: Place = place) -> None:
            write_plan(place, job, {"plan/more": b"more"})
            assert do_unit(FaultyWorker(job), job.units[0])
            write_manifest(place, job, markers_of(place, job), 1.0)

        ended = _die_before(step, work)
        manifest = read_manifest(place)
        marker = read_marker(place, job, unit)
        assert manifest is None or (
            marker is not None and manifest.content == wanted and is_whole(place, manifest)
        )
        work()
        again = read_manifest(place)
        assert again is not None and again.content == wanted and is_whole(place, again)
        shutil.rmtree(job.output)
    assert step > 25
