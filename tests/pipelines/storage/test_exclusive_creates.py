"""Places that do not refuse a name that exists are refused, before anything is written there."""

from __future__ import annotations

import secrets
import time
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.storage import exclusive_creates
from pipelines.storage.exclusive_creates import refuse_careless_place
from pipelines.storage.place import open_place
from schemas.errors import UserError
from tests.support.faulty_worker import faulty_job
from tests.support.s3_server import BUCKET, S3Server


class Careless(MemoryFileSystem):
    """It overwrites, whatever is asked."""

    protocol = "careless"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **more)


class Slow(Careless):
    """It looks first, and writes then."""

    protocol = "slow"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.1)
        super().pipe_file(path, value, **more)


@pytest.fixture(autouse=True)
def anew() -> None:
    exclusive_creates._tried.cache_clear()
    for kind in (Careless, Slow):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)


@pytest.mark.parametrize("protocol", ["careless", "slow"])
def test_a_place_that_takes_two_first_ones_is_refused(protocol: str) -> None:
    job = faulty_job(f"{protocol}://bucket/out", "ok")
    with pytest.raises(UserError, match="two writers can both make a file of one name .*HDFS"):
        run_job(job, RunSettings())
    assert not open_place(job.output).has_files()


def test_an_honest_place_is_tried_once(s3: S3Server) -> None:
    prefix = secrets.token_hex(4)
    place = open_place(f"s3://{BUCKET}/{prefix}/out")
    refuse_careless_place(place)
    assert not [*s3.objects(prefix)]
    before = s3.proxy.requests(b"")
    refuse_careless_place(open_place(f"s3://{BUCKET}/{prefix}/other"))
    assert s3.proxy.requests(b"") == before


def test_network_disks_are_known_by_their_names() -> None:
    names = {"nfs4": True, "cifs": True, "fuse.s3fs": True, "ext4": False, "overlay": False}
    assert {name: bool(exclusive_creates.NETWORK.fullmatch(name)) for name in names} == names
