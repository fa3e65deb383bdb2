"""A worker that cannot do what its driver expects says so, by one sentence, before any unit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.engines.driver import run_job
from pipelines.engines.engine import Engine
from pipelines.engines.local.engine import LocalEngine
from pipelines.engines.settings import RunSettings
from pipelines.engines.workers import fitness
from pipelines.engines.workers.fitness import be_fit
from pipelines.engines.workers.samples import sample_inputs
from pipelines.engines.workers.ticket import Sample, Ticket, Unfit
from pipelines.engines.workers.versions import SOFTWARE, differing, own_versions
from pipelines.jobs.lease import Lease, read_lease
from pipelines.jobs.worker_process import who, work_as
from pipelines.storage.place import open_place
from pipelines.stores.image_plan import images_file, table_file
from schemas.image_list import ImageReference
from schemas.layout import ARCHIVES, ARCHIVES_NAME, IMAGES_NAME, LEASE_NAME
from schemas.plan import Job
from tests.support.faulty_worker import faulty_job
from tests.support.watching import ROOT


@pytest.fixture
def ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticket]:
    """Of a driver that lives."""
    monkeypatch.setattr(fitness, "SEEN_SECONDS", 0.3)
    lease = Lease(open_place(f"{tmp_path}/out"), "spark")
    lease.take()
    yield Ticket(lease.run, "spark", f"{tmp_path}/out", own_versions())
    lease.release()
    work_as(run="", engine="local")


def test_who_is_fit_is_named(ticket: Ticket, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(b"1234")
    seen = replace(ticket, inputs=(Sample(f"{tmp_path}/image.jpg", 4),))
    assert Ticket.from_json(seen.to_json()) == seen
    be_fit(seen.to_json(), worker="app/7", host="10.0.0.7")
    me = who()
    assert (me.run, me.engine, me.worker, me.host) == (ticket.run, "spark", "app/7", "10.0.0.7")


def test_who_is_unfit_says_where_and_what(ticket: Ticket, tmp_path: Path) -> None:
    other = {**own_versions(), "Python": "3.12", "torch": "1.0", "h5py": "", SOFTWARE: "0"}
    (tmp_path / "image.jpg").write_bytes(b"1234")
    versions = r"RRT Pipelines \w+ .the driver: 0., torch [\d.]+ .the driver: 1.0., h5py [\d.]+ "
    absent = "10.0.0.7 does not see /data/a.jpg, which the driver reads .there is no such file.; "
    folder = f"10.0.0.7 does not see {tmp_path}, which the driver reads .it is no file"
    output = f"10.0.0.7 does not see {tmp_path}/out: the output must be shared by all workers"
    another = "image.jpg has 4 bytes at 10.0.0.7 and 5 at the driver: it is another file"
    cases = [
        (replace(ticket, versions=other), "10.0.0.7 has Python .*the driver: 3.12., " + versions),
        (replace(ticket, run="another"), output),
        (replace(ticket, inputs=(Sample("/data/a.jpg", 4),)), absent + "mount it there, or give"),
        (replace(ticket, inputs=(Sample(f"{tmp_path}/image.jpg", 5),)), another),
        (replace(ticket, inputs=(Sample(f"{tmp_path}", 5),)), folder),
    ]
    for wrong, said in cases:
        with pytest.raises(Unfit, match=said):
            be_fit(wrong.to_json(), host="10.0.0.7")


def test_versions_need_no_package() -> None:
    """So that a worker that lacks one can say which."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from pipelines.engines.workers.versions import differing, own_versions; "
        "print(differing(own_versions(), {}, 'h')); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, modules = done.stdout.splitlines()
    assert said.startswith("h has Python not at all (the driver: 3.")
    assert "pyarrow" not in modules and "msgspec" not in modules and "'pipelines'" in modules
    assert differing(own_versions(), own_versions(), "h") == ""


def test_samples_are_of_what_the_driver_sees(tmp_path: Path) -> None:
    out = open_place(f"{tmp_path}/out")
    for name in ("a.jpg", "b.tar", "\udcff.jpg", "truth.json", "index/manifest.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    images = [f"{tmp_path}/{name}" for name in ("a.jpg", "gone.jpg", "\udcff.jpg")]
    references = [ImageReference(f"s/{n}", "s", os.fsencode(p)) for n, p in enumerate(images)]
    out.write(IMAGES_NAME, images_file(references))
    archives = pa.table({"url": [f"{tmp_path}/b.tar"]}, schema=ARCHIVES)
    out.write(ARCHIVES_NAME, table_file(archives))
    inputs = {
        name: {"url": f"{tmp_path}/{name}", "content": ""} for name in ("truth.json", "index", "no")
    }
    job = replace(faulty_job(out.url, "ok"), inputs=inputs)
    samples = sample_inputs(job)
    assert [Path(one.url).name for one in samples] == [
        "truth.json",
        "manifest.json",
        "a.jpg",
        "\udcff.jpg",
        "b.tar",
    ]
    assert all(one.bytes == Path(one.url).stat().st_size for one in samples)
    ticket = Ticket("run", "spark", inputs=samples)
    assert Ticket.from_json(ticket.to_json()) == ticket, "also names that are not UTF-8"


WORKER = """
import sys, time
from pipelines.engines.workers.fitness import be_fit
from pipelines.engines.workers.stall_watch import at_work
be_fit(sys.argv[1])
print("fit", flush=True)
if sys.argv[2] == "at a unit":
    with at_work():
        time.sleep(60)
time.sleep(5)
"""


@pytest.mark.parametrize(
    ("driver", "state", "ends"),
    [
        ("killed", "at a unit", True),
        ("killed", "idle", True),
        ("ended", "at a unit", True),
        ("ended", "idle", False),
        ("lives", "idle", False),
        ("detached", "idle", False),
    ],
)
def test_workers_of_a_silent_driver_end(
    driver: str, state: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRT_LEASE_SECONDS", "1.5")
    lease = Lease(open_place(f"{tmp_path}/out"), "spark")
    lease.take()
    seconds = 0.0 if driver == "detached" else lease.seconds
    ticket = Ticket(lease.run, "spark", lease.place.url, lease_seconds=seconds)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, ticket.to_json(), state],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdout.readline() == "fit\n"
    if driver == "killed":
        lease._ended.set()
    elif driver == "ended":
        lease.release()
    elif driver == "detached":
        lease.detach()
    assert worker.wait(30) == (-signal.SIGKILL if ends else 0)
    lease.release()


class Unable(LocalEngine):
    """Its workers do not see the output."""

    def start(self) -> None:
        assert read_lease(self.place) is not None
        Ticket.from_json(self.ticket)
        raise Unfit("10.0.0.7 does not see it")


@pytest.mark.parametrize("committed", [False, True])
def test_what_was_written_for_a_job_that_no_worker_can_do_goes(
    committed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(job: Job, place: Any, settings: RunSettings) -> Engine:
        return Unable(job, place, settings)

    out = tmp_path / "out"
    job = faulty_job(str(out), "ok", "ok")
    if committed:
        run_job(job, RunSettings(workers=1))
        os.remove(out / "manifest.json")
        os.remove(out / "done/part-00001.json")
    before = {path for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("pipelines.engines.loop.make_engine", unable)
    with pytest.raises(Unfit, match="10.0.0.7 does not see it"):
        run_job(job, RunSettings(engine="spark"), {"plan/images.parquet": b"x"})
    after = {path for path in out.rglob("*") if path.is_file()}
    if committed:
        assert after >= before and (out / "plan/plan.json").exists()
    else:
        assert not out.exists()
    assert not (out / LEASE_NAME).exists()
    monkeypatch.undo()
    assert run_job(job, RunSettings(workers=1)).counts.succeeded == 6


def test_a_refused_second_driver_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRT_LEASE_SECONDS", "1")
    job = faulty_job(f"{tmp_path}/out", "ok")
    place = open_place(job.output)
    first = Lease(place, "spark")
    first.take()
    place.write("plan/images.parquet", b"of the first")
    with pytest.raises(Exception, match="is being made by another command"):
        run_job(job, RunSettings(engine="spark"), {"plan/images.parquet": b"x"})
    assert place.read("plan/images.parquet") == b"of the first" and not place.exists(
        "plan/plan.json"
    )
    first.release()


def test_markers_name_the_process(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok", "ok")
    run_job(job, RunSettings(workers=1))
    facts = [json.loads(path.read_text()) for path in (tmp_path / "out/done").iterdir()]
    workers = [fact["worker"] for fact in facts]
    assert workers[0] == workers[1] and workers[0]["engine"] == "local" and workers[0]["run"]
