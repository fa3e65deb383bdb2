"""A driver's lease: taken, renewed, respected by others, taken over from the dead, removed."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.lease import Lease, LeaseRecord, lease_seconds, read_lease
from pipelines.jobs.worker_process import process_start, who
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.layout import LEASE_NAME
from tests.support.watching import wait_for


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRT_LEASE_SECONDS", "1.2")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(f"{tmp_path}/out")


def record(place: Place) -> LeaseRecord:
    lease = read_lease(place)
    assert lease is not None
    return lease


def another(place: Place, **changes: Any) -> LeaseRecord:
    """The lease of a driver of another machine."""
    driver = replace(who(), engine="spark", host="far.away", pid=77, **changes)
    lease = LeaseRecord("another", driver, 1.2)
    place.write(LEASE_NAME, lease.to_bytes())
    return lease


def test_it_is_renewed_and_removed(place: Place) -> None:
    lease = Lease(place, "spark")
    lease.take()
    lease.take()
    first = record(place)
    assert (first.run, first.driver.engine) == (lease.run, "spark")
    assert first.driver.began == process_start(first.driver.pid)
    wait_for(lambda: record(place).count > first.count + 1, "renewals", 10)
    lease.check()
    lease.release()
    assert read_lease(place) is None and not place.exists("lease")


def test_a_second_driver_is_refused_while_the_first_lives(place: Place) -> None:
    first = Lease(place, "spark")
    first.take()
    for engine in ("beam", "local"):
        with pytest.raises(UserError, match="is being made by another command .spark, process"):
            Lease(place, engine).take()
    first.release()
    Lease(place, "local").take()
    assert read_lease(place) is None, "local workers of a local folder need none"


def test_one_of_another_host_that_is_not_renewed_is_taken_over(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    another(place)
    begun = time.monotonic()
    second = Lease(place, "beam")
    second.take()
    assert time.monotonic() - begun > 1.1
    assert record(place).run == second.run
    said = capsys.readouterr().err
    assert "held by another command (spark, process 77 at far.away)" in said
    second.release()


@pytest.mark.parametrize("left", ["dead", "not readable", "of the same id"])
def test_one_of_a_dead_process_of_this_host_is_taken_over_at_once(left: str, place: Place) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    driver = replace(who(), pid=process.pid, began=process_start(process.pid) or "")
    process.communicate()
    if left == "of the same id":
        driver = replace(who(), began=driver.began)
    data = LeaseRecord("dead", driver, 3600.0).to_bytes()
    place.write(LEASE_NAME, data if left != "not readable" else data[:30])
    begun = time.monotonic()
    lease = Lease(place, "spark")
    lease.take()
    assert time.monotonic() - begun < 1 and record(place).run == lease.run
    lease.release()


def test_who_lost_it_is_told_and_leaves_the_others(place: Place) -> None:
    first = Lease(place, "spark")
    first.take()
    another(place)
    with pytest.raises(UserError, match="taken over by another command .spark, process 77"):
        wait_for(first.check, "the loss", 10)
    first.release()
    assert record(place).run == "another"

    place.remove(LEASE_NAME)
    second = Lease(place, "spark")
    second.take()
    place.remove_folder("lease")
    with pytest.raises(UserError, match="or its lease/driver.json, was removed"):
        wait_for(second.check, "the loss", 10)
    second.release()
    assert not place.exists("lease"), "a folder that was removed does not come back"


def test_a_detached_one_stays_and_is_respected(place: Place) -> None:
    first = Lease(place, "beam")
    first.take()
    first.detach()
    first.release()
    for engine in ("spark", "local"):
        with pytest.raises(UserError, match="a command with --detach left .*: 'finish "):
            Lease(place, engine).take()


def test_seconds_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "0", "-1", "nan", "1e9"):
        monkeypatch.setenv("RRT_LEASE_SECONDS", text)
        with pytest.raises(UserError, match="it must be a number of seconds"):
            lease_seconds()
