"""Reading stores: only what is needed of a part's file, and layers that are not finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipelines.engines.local import pool
from pipelines.extract import lazy_locals as layers
from pipelines.storage.byte_sources import RemoteBytes, read_columns
from pipelines.storage.place import open_place
from pipelines.stores.store import Store, part_number
from schemas import global_descriptors
from schemas.errors import Damaged, UserError
from schemas.global_descriptors import GlobalRow
from tests.support.damage import contents, flip, make_photographs, make_store, one


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Photographs, and a store of them without locals."""
    folder = tmp_path_factory.mktemp("whole")
    make_store(make_photographs(folder / "photographs"), folder / "store", locals="none")
    yield folder
    pool.close_pool()


def test_ids_are_those_of_the_whole_part(whole: Path) -> None:
    store = Store(str(whole / "store"))
    for part in store.parts:
        ids, read = store.read_ids(part), store.read_global(part)
        assert (
            ids.record_ids == read.record_ids
            and ids.ok.dtype == bool
            and np.array_equal(ids.ok, read.ok)
        )
    assert not store.read_ids(store.parts[1]).ok.all()
    assert (
        part_number("global/part-00017.ab.parquet") == 17
        and part_number("global/notes.parquet") is None
    )


def test_of_a_remote_part_only_blocks_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full part of 2,048-D globals has 33 MB, of which the columns of ids take 2."""
    descriptor = np.zeros(2048, np.float32)
    rows = [
        GlobalRow(f"s/{row:08}.jpg", "s", 0, 0, None, 1.0, 0, "0" * 64, descriptor)
        for row in range(4096)
    ]
    path = tmp_path / "part-00000.parquet"
    global_descriptors.write_part(str(path), rows, 2048, "float32")
    memory, fetched = fsspec.filesystem("memory"), []
    memory.put(str(path), "/columns/global/part-00000.parquet")
    fetch = RemoteBytes.fetch

    def counted(self: RemoteBytes, start: int, stop: int) -> bytes:
        data = fetch(self, start, stop)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(RemoteBytes, "fetch", counted)
    try:
        table = read_columns(
            open_place("memory://columns"), "global/part-00000.parquet", ["record_id", "status"]
        )
    finally:
        memory.rm("/columns", recursive=True)
    assert table.column("record_id").to_pylist() == [row.record_id for row in rows]
    assert (
        table.column_names == ["record_id", "status"]
        and path.stat().st_size > 33e6
        and sum(fetched) <= 2 << 20
    )


def _remove_parts(layer: Path) -> None:
    (layer / "parts.parquet").unlink()


def _remove_all_but_the_plan(layer: Path) -> None:
    for name in ("done", "local", "failures"):
        shutil.rmtree(layer / name)
    _remove_parts(layer)
    (layer / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _remove_parts,
        _remove_all_but_the_plan,
        lambda layer: flip(layer / "parts.parquet"),
        lambda layer: (layer / "manifest.json").write_bytes(b"{"),
        lambda layer: (layer / "manifest.json").unlink(),
    ],
)
def test_a_layer_that_is_being_made_again(damage: Any, whole: Path, tmp_path: Path) -> None:
    """It counts as unfinished, and the command that made it makes it whole."""
    store = Path(shutil.copytree(whole / "store", tmp_path / "store"))
    asked = tmp_path / "asked.txt"
    asked.write_text("photographs/03.png\nphotographs/04.png\n")
    command = {"locals": "none", "locals_for": str(asked)}
    make_store(whole / "photographs", store, **command)
    layer = one(store, "layers/*")
    before = contents(layer)
    assert len(Store(str(store)).parts[0].layers) == 1
    damage(layer)
    assert Store(str(store)).parts[0].layers == ()
    make_store(whole / "photographs", store, **command)
    assert len(Store(str(store)).parts[0].layers) == 1 and contents(layer) == before


def test_a_store_whose_list_of_files_is_gone(whole: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(whole / "store", tmp_path / "store"))
    (store / "parts.parquet").unlink()
    with pytest.raises(
        Damaged, match=r"parts\.parquet: it is missing, or not .*; 'repair .*' makes it again"
    ):
        Store(str(store))


def test_ids_that_the_store_lacks_are_named(whole: Path) -> None:
    store = Store(str(whole / "store"))
    assert layers.rows_of(
        store, {"photographs/07.png", "photographs/08.png", "photographs/19.png"}
    ) == {
        1: [3],
        3: [4],
    }
    asked = whole / "asked.txt"
    asked.write_text("photographs/08.png\nphotographs/07.png\n")
    with pytest.raises(UserError, match=r"asked.txt: 'photographs/07.png' is no described image"):
        layers.named_rows(store, {"locals_for": str(asked)})
