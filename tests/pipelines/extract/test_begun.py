"""Stores that were begun with other defaults go on with theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipelines.extract.begun import as_begun
from pipelines.extract.options import Options
from pipelines.stores.store import Store
from tests.support.command_line import command

SMALL = ["--extractor-option", "sizes=96", "--rows-per-part", "2", "--workers", "1"]


def test_a_new_store_takes_todays_defaults(tmp_path: Path) -> None:
    options = as_begun(Options(out=str(tmp_path / "store"), images="images"))
    assert (options.global_dtype, options.extractor_option) == ("float16", {})


def test_a_store_of_an_earlier_version_is_gone_on_with(photographs: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ["extract", "--images", str(photographs), "--out", str(store), *SMALL]
    earlier = ["--extractor-option", "order=strength", "--global-dtype", "float32"]
    assert command(*arguments, *earlier).code == 0
    recipe = json.loads((store / "manifest.json").read_text())["recipe"]
    assert "order" not in recipe["extractor"]["config"], "as an earlier version wrote it"

    # The plan of an earlier version says nothing of the order, and two units are missing.
    job = json.loads((store / "plan/job.json").read_text())
    del job["settings"]["extractor_option"]["order"]
    (store / "plan/job.json").write_text(json.dumps(job))
    ended = command(*arguments)
    assert ended.code == 0 and "already made" in ended.said, ended.said

    for way in (arguments, ["repair", str(store)]):
        marker = store / "done/part-00000.json"
        files = [entry["name"] for entry in json.loads(marker.read_text())["files"]]
        before = [(store / name).read_bytes() for name in files]
        for name in files:
            (store / name).unlink()
        marker.unlink()
        (store / "manifest.json").unlink(missing_ok=True)
        ended = command(*way)
        assert ended.code == 0, ended.said
        again = [entry["name"] for entry in json.loads(marker.read_text())["files"]]
        assert [(store / name).read_bytes() for name in again] == before

    ended = command(*arguments, "--extractor-option", "order=spread")
    assert ended.code == 2 and "another recipe" in ended.said


def test_queries_of_either_order_search_a_gallery(photographs: Path, tmp_path: Path) -> None:
    for order in ("strength", "spread"):
        out = ["--out", str(tmp_path / order), "--extractor-option", f"order={order}"]
        assert command("extract", "--images", str(photographs), *out, *SMALL).code == 0
    stores = [Store(str(tmp_path / order)) for order in ("strength", "spread")]
    left, right = (store.read_global(store.parts[0]).descriptors for store in stores)
    np.testing.assert_array_equal(left, right)

    index, run = tmp_path / "index", tmp_path / "run"
    ended = command("index", "--stores", stores[0].place.url, "--out", str(index))
    assert ended.code == 0, ended.said
    queries = ["--queries", stores[1].place.url]
    ended = command("search", *queries, "--index", str(index), "--out", str(run))
    assert ended.code == 0, ended.said
