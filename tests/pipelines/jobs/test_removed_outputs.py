"""An output that is removed while its command runs: one sentence, and the same command goes on."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.engines import driver
from pipelines.engines.driver import run_job
from pipelines.engines.loop import Loop
from pipelines.engines.settings import RunSettings
from pipelines.jobs.do_unit import begin_unit, do_unit
from pipelines.jobs.existing_output import refuse_foreign
from pipelines.jobs.plan import write_plan
from pipelines.jobs.replacing import swap_in
from pipelines.jobs.unit_worker import make_worker
from pipelines.storage.local import full_disk
from pipelines.storage.place import Place, open_place
from pipelines.verify.verify import verify
from schemas.errors import UserError
from schemas.plan import Job
from tests.support.faulty_worker import faulty_job


def test_a_unit_whose_output_is_removed_says_so_and_a_rerun_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = faulty_job(str(out), "ok", "ok")
    place = open_place(str(out))
    write_plan(place, job, {})
    commit = begin_unit(make_worker(job), job.units[0])

    shutil.rmtree(out)

    assert not commit()
    with pytest.raises(UserError, match=r"/out: the folder, or its plan/plan\.json, was removed"):
        raise UserError(_sentence(out))
    assert not (out / "done").exists()

    run_job(job, RunSettings(workers=1))  # what was left behind is our own
    assert verify(str(out))[0].problems == []


def _sentence(out: Path) -> str:
    return str(json.loads((out / "errors" / "part-00000.json").read_text())["sentence"])


def test_a_driver_whose_output_is_removed_writes_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All units were done by then: no manifest may say so of an empty folder."""
    out = tmp_path / "out"
    job = faulty_job(str(out), "ok")
    run = Loop.run

    def run_and_lose(self: Loop) -> object:
        markers = run(self)
        shutil.rmtree(out)
        return markers

    with monkeypatch.context() as patch, pytest.raises(UserError, match="was removed while the"):
        patch.setattr(Loop, "run", run_and_lose)
        run_job(job, RunSettings(workers=1))
    assert not out.exists()

    run_job(job, RunSettings(workers=1))
    assert verify(str(out))[0].problems == []


@pytest.mark.parametrize(
    "name",
    [
        "scratch/notes.txt",
        "attempts/part-00000.json",
        "errors/part-00000.json",
        "global/part-00000.parquet",
        "scratch/part-00000.0123456789ab",
        "x.tmp",
    ],
)
def test_a_users_own_folder_is_never_taken_for_what_workers_left(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="holds files of something else"):
        refuse_foreign(open_place(str(tmp_path)))
    assert (tmp_path / name).read_text() == "{}"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB: what libraries meet on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_is_full_inside_hdf5_and_faiss(tmp_path: Path) -> None:
    import faiss

    index = faiss.IndexFlatIP(64)
    index.add(np.ones((1000, 64), np.float32))
    for write in (
        lambda: faiss.write_index(index, str(tmp_path / "index.faiss")),
        lambda: _write_hdf5(tmp_path / "part.h5"),
    ):
        with pytest.raises((OSError, RuntimeError)) as raised:
            write()
        sentence = str(full_disk(raised.value, "/out"))
        assert "/out cannot be written: the file would be larger than the system" in sentence


def _write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(100_000, np.float32)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("[Errno 28] Unable to write: errno = 28, error message = 'No space left on device'", True),
        ("write error in index.faiss: 0 != 5 (No space left on device)", True),
        ("file write failed: errno = 122", True),
        ("file read failed: errno = 5", False),
        ("something else", False),
    ],
)
def test_words_of_a_full_disk(text: str, known: bool) -> None:
    for error in (RuntimeError(text), OSError(text)):
        assert (full_disk(error, "/out") is not None) == known


def test_a_worker_on_a_full_disk_is_not_tried_again(tmp_path: Path, small_files: None) -> None:
    job = faulty_job(str(tmp_path / "out"), "large")
    write_plan(open_place(job.output), job, {})

    assert not do_unit(make_worker(job), job.units[0])

    assert "the file would be larger than the system allows" in _sentence(tmp_path / "out")


def test_a_disk_that_is_full_during_a_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old output stands until the swap can be written down; the same command ends it."""
    out = tmp_path / "out"
    run_job(faulty_job(str(out), "ok"), RunSettings(workers=1))
    before = (out / "manifest.json").read_bytes()
    job = faulty_job(str(out), "ok", "ok", recipe={"colour": 2})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(place: Place, job: Job) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            swap_in(place, job)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="the file would be larger than the system allows"),
    ):
        patch.setattr(driver, "swap_in", on_a_full_disk)
        run_job(job, RunSettings(workers=1, overwrite=True))
    assert (out / "manifest.json").read_bytes() == before

    run_job(job, RunSettings(workers=1, overwrite=True))
    assert verify(str(out))[0].problems == [] and not (out / "next").exists()
    assert (out / "manifest.json").read_bytes() != before
