"""extract --retry-failed where an earlier one was killed, or the store has lost files since."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.engines.local import pool
from pipelines.extract.retry_failed import _reference
from pipelines.verify import verify
from schemas.image_list import make_record_id
from tests.support.damage import contents, make_photographs, make_store, one
from tests.support.pictures import picture


@pytest.fixture(scope="module")
def retried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store (`once`) in which two images failed, and that store after a retry that described one
    of them.
    """
    folder = tmp_path_factory.mktemp("retried")
    photographs = make_photographs(folder / "photographs", 8)
    (photographs / "03.png").write_bytes(b"no picture either")
    make_store(photographs, folder / "store")
    shutil.copytree(folder / "store", folder / "once")
    picture(7).save(photographs / "07.png")
    make_store(photographs, folder / "store", retry_failed=True)
    yield folder
    pool.close_pool()


@pytest.mark.parametrize("gone", [True, False])
def test_a_retry_killed_before_its_manifest(gone: bool, retried: Path, tmp_path: Path) -> None:
    """The same command ends as the undisturbed one did: the image that failed again is not tried a
    third time.
    """
    store = Path(shutil.copytree(retried / "store", tmp_path / "store"))
    shutil.copy(retried / "once/manifest.json", store / "manifest.json")
    if gone:
        (store / "parts.parquet").unlink()
    make_store(retried / "photographs", store, retry_failed=True)
    assert (
        contents(store) == contents(retried / "store")
        and not (store / "plan/retry-00002.parquet").exists()
    )
    (findings,) = verify.verify(str(store))
    assert findings.problems == [] and findings.counts is not None and findings.counts.failed == 1


def test_lost_files_are_made_again_first(retried: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(retried / "once", tmp_path / "store"))
    lost = one(store, "failures/part-00000.*")
    lost.unlink()
    make_store(retried / "photographs", store, retry_failed=True)
    assert lost.exists() and contents(store) == contents(retried / "store")
    (findings,) = verify.verify(str(store))
    assert findings.problems == []


def test_the_source_of_an_archives_image_is_its_name(tmp_path: Path) -> None:
    for name in ("50% off", "a#b", "\u0085 \u00fc"):
        reference = _reference(make_record_id(name, "x/1%.jpg"))
        assert reference.source == name and reference.record_id == make_record_id(name, "x/1%.jpg")


def test_the_retry_describes_what_failed(retried: Path) -> None:
    table = pq.read_table(retried / "store/plan/retry-00001.parquet")
    assert table.column("record_id").to_pylist() == ["photographs/03.png", "photographs/07.png"]
