"""The rows of what is written fit together: globals, failures and locals, and their markers.

A file's SHA-256 proves that it is the one that was written; that it was written right is shown
here.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas import failures, local_descriptors
from schemas.image_list import decode_name, make_record_id, split_record_id
from schemas.manifest import Marker
from tests.support.command_line import command
from tests.support.damage import make_photographs, make_store, one
from tests.support.pictures import picture
from tests.tiny_extractor import TinyExtractor


def of_a_listing(folder: Path) -> Path:
    return make_store(make_photographs(folder / "photographs"), folder / "store")


def of_archives(folder: Path) -> Path:
    photographs = make_photographs(folder / "photographs")
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for path in sorted(photographs.glob(f"{number}*.png")):
                tar.add(path, path.name)
    options: dict[str, Any] = {"rows_per_part": 4, "local_dtype": "binary"}
    return make_store(folder / "*.tar", folder / "store", **options)


def retried(folder: Path) -> Path:
    store = of_a_listing(folder)
    picture(7).save(folder / "photographs" / "07.png")
    return make_store(folder / "photographs", store, retry_failed=True)


@pytest.mark.parametrize("make", [of_a_listing, of_archives, retried])
def test_rows_fit_together(make: Any, tmp_path: Path) -> None:
    store = make(tmp_path)
    extractor = TinyExtractor()
    checked = 0
    for path in (store / "done").iterdir():
        marker = Marker.decoded(path.read_bytes())
        parts: dict[str, dict[str, Any]] = {}
        for entry in marker.files:
            kind, _, name = entry.name.partition("/")
            parts.setdefault(name.removeprefix("full/").split(".")[0], {})[kind] = entry
        totals = dict.fromkeys(("global", "failures", "local"), 0)
        for part in parts.values():
            files = {kind: store / entry.name for kind, entry in part.items()}
            rows = pq.read_table(files["global"]).to_pylist()
            listed = failures.rows_of(pq.read_table(files["failures"]))
            arrays = local_descriptors.read_part(str(files["local"]))

            assert part["global"].rows == len(rows)
            assert part["failures"].rows == len(listed)
            assert part["local"].rows == len(arrays["row"])
            for kind, entry in part.items():
                totals[kind] += entry.rows

            assert {row["status"] for row in rows} <= {"ok", "failed"}
            failed = [row["record_id"] for row in rows if row["status"] == "failed"]
            assert sorted(failed) == sorted(row.record_id for row in listed)
            assert all(row.reason and row.error_class for row in listed)

            ok = [place for place, row in enumerate(rows) if row["status"] == "ok"]
            assert arrays["row"].tolist() == ok
            counts = [len(arrays[name]) for name in ("descriptor", "xy", "scale", "strength")]
            assert set(counts) == {arrays["offset"][-1]} and len(arrays["offset"]) == len(ok) + 1
            if "rotation" in arrays:
                rotation = arrays["rotation"].astype(np.float64)
                np.testing.assert_allclose(
                    rotation.T @ rotation, np.eye(extractor.local_dim), atol=1e-4
                )

            for row in rows:
                source, name, box = split_record_id(row["record_id"])
                assert make_record_id(row["source"], decode_name(name), box) == row["record_id"]
                assert source and (list(box) if box else []) == row["box"]
                assert re.fullmatch("[0-9a-f]{64}", row["sha256"])  # each file could be read
            checked += len(rows)
        counts_ = marker.counts
        wanted = (counts_.inputs, counts_.failed, counts_.succeeded)
        assert tuple(totals.values()) == wanted
    assert checked == 21 if make is retried else 20


def test_a_layer_has_the_rows_that_were_named(tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs")
    store = make_store(photographs, tmp_path / "store", locals="none")
    (tmp_path / "named.txt").write_text("photographs/03.png\nphotographs/04.png\n")
    make_store(photographs, store, locals="none", locals_for=str(tmp_path / "named.txt"))

    layer = one(store, "layers/*")
    arrays = local_descriptors.read_part(str(one(layer, "local/*")))
    globals_ = json.loads((layer / "manifest.json").read_text())["facts"]["globals"]

    ids = pq.read_table(store / globals_["0"]).column("record_id").to_pylist()
    assert [ids[row] for row in arrays["row"]] == ["photographs/03.png", "photographs/04.png"]


def test_a_jpeg_that_was_cut_off_is_described_where_that_is_wanted_and_said(tmp_path: Path) -> None:
    """By default it is a failed row; a store without one has no word of it."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(3):
        picture(number, 160, 120).save(photographs / f"{number}.jpg", quality=90)
    whole = (photographs / "2.jpg").read_bytes()
    (photographs / "1.jpg").write_bytes(whole[:-2])
    (photographs / "2.jpg").write_bytes(whole[: len(whole) * 3 // 4])

    said: list[bytes | None] = []
    wanted: list[tuple[str, dict[str, Any]]] = [("usual", {}), ("cut", {"jpeg_rows": 0.3})]
    for name, options in wanted:
        store = make_store(photographs, tmp_path / name, **options)
        manifest = json.loads((store / "manifest.json").read_text())
        assert manifest["recipe"].get("jpeg_rows") == options.get("jpeg_rows")
        path = next((store / "global").iterdir())
        table = pq.read_table(path)
        said.append((table.schema.metadata or {}).get(b"own_rows"))
        columns = (table[column].to_pylist() for column in ("record_id", "status"))
        statuses = dict(zip(*columns, strict=True))
        assert statuses.pop("photographs/2.jpg") == ("ok" if options else "failed")
        assert set(statuses.values()) == {"ok"}
        assert command("verify", store).code == 0

    assert said[0] is None
    (share,) = json.loads(said[1]).items()
    assert share[0] == "photographs/2.jpg" and 0.3 <= share[1] < 1
