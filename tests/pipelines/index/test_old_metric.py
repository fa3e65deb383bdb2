"""An index that was begun with inner product behind its transformation is continued by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from rrt_core.indexes import kinds
from tests.support.command_line import command
from tests.support.stored import imported

pytestmark = pytest.mark.usefixtures("workers_end")


def metric_of(index: Path) -> int:
    (path,) = (index / "search").glob("*.faiss")
    return int(faiss.read_index(str(path)).metric_type)


def test_an_old_index_is_continued_as_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = imported(tmp_path, "gallery", np.random.default_rng(0).normal(size=(300, 16)))
    index, run = tmp_path / "index", tmp_path / "run"
    made = ("index", "--stores", store, "--key", "PCA8,SQ8", "--out", index, "--workers", "1")
    with monkeypatch.context() as once:
        once.setattr(kinds, "metric_of", lambda key, dimension: "inner_product")
        assert command(*made).code == 0
    manifest = json.loads((index / "search/manifest.json").read_text())
    assert "metric" not in manifest["recipe"] and metric_of(index) == faiss.METRIC_INNER_PRODUCT

    assert "already made" in command(*made).said
    ended = command("search", "--queries", store, "--index", index, "--out", run, "--workers", "1")
    assert ended.code == 0, ended.said

    shutil.rmtree(index / "search")
    ended = command(*made)
    assert ended.code == 0 and metric_of(index) == faiss.METRIC_INNER_PRODUCT, ended.said

    assert command(*made, "--overwrite").code == 0
    manifest = json.loads((index / "search/manifest.json").read_text())
    assert manifest["recipe"]["metric"] == "l2" and metric_of(index) == faiss.METRIC_L2
    assert "already made" in command(*made).said
