"""`finish`: the manifest of an output whose workers were left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.do_unit import do_unit
from pipelines.jobs.lease import Lease, read_lease
from pipelines.jobs.manifests import read_manifest
from pipelines.jobs.plan import write_plan
from pipelines.storage.place import open_place
from schemas.errors import UserError
from tests.support.faulty_worker import FaultyWorker, faulty_job


def test_units_of_detached_workers_are_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok", "ok")
    place = open_place(job.output)
    lease = Lease(place, "beam")
    lease.take()
    write_plan(place, job, {})
    lease.detach()
    lease.release()

    with pytest.raises(UserError, match="with --detach left behind .*: 'finish "):
        run_job(job, RunSettings(workers=1))
    assert do_unit(FaultyWorker(job), job.units[0])
    assert main(["finish", job.output]) == 1
    assert "1 of 2 parts of" in capsys.readouterr().err
    assert read_lease(place) is not None, "they may be at work"

    assert do_unit(FaultyWorker(job), job.units[1])
    assert main(["finish", job.output]) == 0
    assert "6 inputs" in capsys.readouterr().out
    manifest = read_manifest(place)
    assert manifest is not None and manifest.counts.succeeded == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data",
        "done",
        "manifest.json",
        "parts.parquet",
        "plain",
        "plan",
    ]
    assert main(["finish", job.output]) == 0
    assert main(["finish", str(tmp_path)]) == 2
