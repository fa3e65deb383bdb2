"""export: plain arrays that come back as the same store, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.engines.settings import RunSettings
from pipelines.exchange import export, import_store
from pipelines.exchange import import_options as exchange_import_options
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.options import build
from pipelines.stores.gallery import Gallery
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.exporters.arrays import GrowingArray

SETTINGS = RunSettings(workers=1)
TINY = "tests.tiny_extractor:TinyExtractor"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A store of thirty pictures, and one that is none, in parts of nine."""
    root = tmp_path_factory.mktemp("export")
    for path in photographs.iterdir():
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / path.name).write_bytes(path.read_bytes())
    (root / "images" / "05_5 #1.png").write_bytes(b"no picture")
    (root / "images" / "06_9 größe #1.png").write_bytes((photographs / "06_0.png").read_bytes())
    given = {
        "images": str(root / "images"),
        "out": str(root / "store"),
        "extractor": TINY,
        "rows_per_part": 9,
    }
    extract.run(build(extract_options.Options, given, "test"), SETTINGS)
    return root / "store"


def exported(store: Path, out: Path, **more: Any) -> dict[str, Any]:
    options = build(export.Options, {"store": str(store), "out": str(out), **more}, "export")
    return export.run(options)


def everything(url: str) -> tuple[list[str], np.ndarray, list[Any]]:
    opened = Store(url)
    reader = LocalsReader(Gallery([opened]))
    names, vectors, found = [], [], []
    for part in opened.parts:
        read = opened.read_global(part)
        ok = np.flatnonzero(read.ok)
        names += [read.record_ids[row] for row in ok]
        vectors.append(read.descriptors[ok])
        found += reader.read(opened.row_ids(part, ok), read.descriptors[ok], 500)
    return names, np.concatenate(vectors), found


def test_arrays_are_what_the_store_holds_and_make_the_same_store(
    store: Path, tmp_path: Path
) -> None:
    told = exported(store, tmp_path / "e", locals=True)
    names, vectors, found = everything(str(store))
    assert (told["rows"], told["failed"]) == (31, 1)
    assert (tmp_path / "e" / "record_ids.txt").read_text(encoding="utf-8").split("\n") == [
        *names,
        "",
    ]
    assert "images/06_9 größe %231.png" in names
    np.testing.assert_array_equal(np.load(tmp_path / "e" / "globals.npy"), vectors)
    assert np.load(tmp_path / "e" / "locals" / "descriptor.npy").dtype == np.float16
    given = {
        "format": "npy",
        "input": str(tmp_path / "e" / "globals.npy"),
        "out": str(tmp_path / "again"),
    }
    given |= {
        "record_ids": str(tmp_path / "e" / "record_ids.txt"),
        "local_arrays": str(tmp_path / "e" / "locals"),
    }
    import_store.run(build(exchange_import_options.Options, given, "import"), SETTINGS)
    again = everything(str(tmp_path / "again"))
    assert again[0] == names
    np.testing.assert_array_equal(again[1], vectors)
    for ours, theirs in zip(again[2], found, strict=True):
        for name in ("descriptors", "xy", "scale", "strength"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_second_export_does_nothing_and_another_is_refused(store: Path, tmp_path: Path) -> None:
    exported(store, tmp_path / "e")
    before = (tmp_path / "e" / "globals.npy").stat().st_mtime_ns
    assert not (tmp_path / "e" / "locals").exists()
    exported(store, tmp_path / "e")
    assert (tmp_path / "e" / "globals.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--overwrite"):
        exported(store, tmp_path / "e", locals=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="something else"):
        exported(store, tmp_path / "mine")


def test_what_a_killed_export_leaves_is_written_anew(store: Path, tmp_path: Path) -> None:
    exported(store, tmp_path / "e")
    whole = (tmp_path / "e" / "globals.npy").read_bytes()
    (tmp_path / "e" / "export.json").unlink()
    (tmp_path / "e" / "globals.npy").unlink()
    (tmp_path / "e" / "globals.npy.tmp").write_bytes(whole[:300])
    exported(store, tmp_path / "e")
    assert (tmp_path / "e" / "globals.npy").read_bytes() == whole
    assert json.loads((tmp_path / "e" / "export.json").read_text())["rows"] == 31
    (tmp_path / "e" / "export.json").rename(
        tmp_path / "e" / "export.json.0123abcd.tmp"
    )  # killed while it was written
    exported(store, tmp_path / "e")
    assert (tmp_path / "e" / "globals.npy").read_bytes() == whole


def test_locals_of_an_export_made_again_without_them_are_removed(
    store: Path, tmp_path: Path
) -> None:
    exported(store, tmp_path / "e", locals=True)
    (tmp_path / "e" / "locals" / "notes.txt").write_text("mine")
    given = build(export.Options, {"store": str(store), "out": str(tmp_path / "e")}, "test")
    export.run(given, RunSettings(overwrite=True))
    assert [path.name for path in (tmp_path / "e" / "locals").iterdir()] == ["notes.txt"]


def test_a_store_is_not_replaced_by_its_own_arrays(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    given = export.Options(store=str(copy), out=f"{copy}/")
    with pytest.raises(UserError, match="is an input of this command"):
        export.run(given, RunSettings(overwrite=True))
    assert len(everything(str(copy))[0]) == len(everything(str(store))[0])


def test_locals_that_are_not_there(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.eye(4, 8, dtype=np.float32))
    given = {"format": "npy", "input": str(tmp_path / "v.npy"), "out": str(tmp_path / "s")}
    import_store.run(build(exchange_import_options.Options, given, "import"), SETTINGS)
    with pytest.raises(UserError, match="leave --locals out"):
        exported(tmp_path / "s", tmp_path / "e", locals=True)
    exported(tmp_path / "s", tmp_path / "f")
    np.testing.assert_array_equal(np.load(tmp_path / "f" / "globals.npy"), np.eye(4, 8))


def test_a_growing_array_is_what_numpy_saves(tmp_path: Path) -> None:
    wanted = np.arange(60, dtype=np.float16).reshape(12, 5)
    grown = GrowingArray(tmp_path / "a.npy", wanted.shape, np.float16)
    grown.add(wanted[:7])
    with pytest.raises(ValueError, match="does not fit"):
        grown.add(wanted)
    with pytest.raises(ValueError, match="7 of 12"):
        grown.finish()
    assert not (tmp_path / "a.npy").exists()
    grown.add(wanted[7:])
    grown.finish()
    np.save(tmp_path / "b.npy", wanted)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
