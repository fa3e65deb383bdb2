"""import: one file that is too large or leads elsewhere does not end the import of the others."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.stores.store import Store
from schemas.importers import delg
from tests.support.command_line import command
from tests.support.hostile import assert_ended_well
from tests.support.stored import failure_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images' files of DELG."""
    kinds = delg.messages()
    datum = kinds["DatumProto"]()
    datum.shape.dim.append(4)
    datum.float_list.value.extend([0.5] * 4)
    features = kinds["DelfFeatures"]()
    features.feature.add(x=1.0, y=2.0, scale=1.0, strength=3.0).descriptor.CopyFrom(datum)
    (tmp_path / "delg").mkdir()
    for name in ("0", "1", "2", "3"):
        (tmp_path / f"delg/{name}.delg_global").write_bytes(datum.SerializeToString())
        (tmp_path / f"delg/{name}.delg_local").write_bytes(features.SerializeToString())
    return tmp_path / "delg"


@pytest.mark.parametrize("suffix", ["delg_global", "delg_local"])
def test_a_file_of_a_hundred_gigabytes(suffix: str, folder: Path, tmp_path: Path) -> None:
    with open(folder / f"0.{suffix}", "wb") as file:
        file.truncate(100_000_000_000)
    ended = command("import", "delg", folder, "--out", tmp_path / "store", "--workers", 1)
    assert_ended_well(ended, 0)

    store = Store(str(tmp_path / "store"))

    assert (store.manifest.counts.succeeded, store.manifest.counts.failed) == (3, 1)
    names = [part.failures.name for part in store.parts if part.failures]
    (failed,) = failure_rows(store.place, names)
    assert failed.error_class == "too_large" and "100,000,000,000 bytes" in failed.reason


def test_links_in_the_place_of_files(folder: Path, tmp_path: Path) -> None:
    (folder / "0.delg_global").unlink()
    (folder / "0.delg_global").symlink_to(folder / "0.delg_global")
    ended = command("import", "delg", folder, "--out", tmp_path / "store", "--workers", 1)
    assert_ended_well(ended, 0)
    assert Store(str(tmp_path / "store")).manifest.counts.failed == 1


def test_hdf5_that_leads_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "features.hdf5"
    with h5py.File(path, "w") as file:
        file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
    np.save(tmp_path / "globals.npy", np.eye(3, dtype=np.float32))
    out = tmp_path / "store"
    ended = command("import", "ames", path, "--globals", tmp_path / "globals.npy", "--out", out)
    assert_ended_well(ended, 2)
    assert "links are not followed" in ended.said and not out.exists()
