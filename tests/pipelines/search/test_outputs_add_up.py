"""What a stage calls finished adds up to its inputs, and is finite; lists shorter than asked, and
stores of globals alone, are said at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.command_line import Ended, command
from tests.support.damage import rewrite, set_descriptor
from tests.support.stored import imported

pytestmark = pytest.mark.usefixtures("workers_end")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gallery` of 300, `queries` of 10 beside the first of them, an exact and an IVF index."""
    folder = tmp_path_factory.mktemp("imported")
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 16))
    imported(folder, "gallery", rows)
    imported(folder, "queries", rows[:10] + 0.1 * random.normal(size=(10, 16)))
    for key, name in (("Flat", "flat"), ("IVF16,PQ8x4", "ivf")):
        good("index", "--stores", folder / "gallery", "--key", key, "--out", folder / name)
    return folder


def good(*arguments: object) -> Ended:
    ended = command(*arguments, "--workers", "1")
    assert ended.code == 0, ended.said
    return ended


def search(stores: Path, index: str, out: Path, *options: object) -> Ended:
    given = ("--queries", stores / "queries", "--index", stores / index, "--out", out)
    return command("search", *given, "--workers", "1", *options)


# ------------------------------------------------------------------------------------- short lists


def test_lists_shorter_than_requested_are_said_and_counted(stores: Path, tmp_path: Path) -> None:
    ended = search(stores, "ivf", tmp_path, "--nprobe", "1", "--k", "200")
    assert ended.code == 0, ended.said
    assert "10 of 10 queries have fewer than 200 candidates (" in ended.said
    assert "at least): raise --nprobe" in ended.said

    facts = json.loads((tmp_path / "shortlist/manifest.json").read_text())["facts"]
    assert facts["notes"]["short_lists"] == 10 and facts["truncated"]
    assert 0 < facts["notes"]["least_candidates"] < 200
    again = search(stores, "ivf", tmp_path, "--nprobe", "1", "--k", "200")
    assert "already made" in again.said and "raise --nprobe" in again.said


def test_a_whole_gallery_that_was_requested_is_cut_where_lists_are_short(
    stores: Path, tmp_path: Path
) -> None:
    """The defaults rank a small gallery whole: `truncated` is false by what was requested."""
    from pipelines.results.outputs import shortlist_facts

    assert search(stores, "ivf", tmp_path, "--nprobe", "2").code == 0
    facts = shortlist_facts(str(tmp_path))
    assert facts.cut and facts.shortest < facts.k == 300


def test_full_lists_have_no_notes(stores: Path, tmp_path: Path) -> None:
    assert "raise" not in search(stores, "flat", tmp_path).said
    manifest = json.loads((tmp_path / "shortlist/manifest.json").read_text())
    assert "notes" not in manifest["facts"] and not manifest["facts"]["truncated"]


# ----------------------------------------------------------------------------- finished but empty


@pytest.mark.parametrize("option", ["--queries-per-block", "--nprobe", "--k"])
def test_options_that_would_leave_a_list_empty(option: str, stores: Path, tmp_path: Path) -> None:
    for value in ("-1", "0") if option != "--k" else ("-1",):
        ended = search(stores, "ivf", tmp_path / "run", option, value)
        assert ended.code == 2 and f"{option} is {value}; it must be" in ended.said, ended.said
    assert not (tmp_path / "run").exists()


def test_a_descriptor_that_is_not_finite_is_not_indexed(stores: Path, tmp_path: Path) -> None:
    store = imported(tmp_path, "gallery", np.random.default_rng(1).normal(size=(40, 16)))
    nan = set_descriptor(5, lambda vector: np.full_like(vector, np.nan), "<f4")
    rewrite(store, "global", "part-00000", nan)
    ended = command("index", "--stores", store, "--out", tmp_path / "index", "--workers", "1")
    assert ended.code == 1, ended.said
    assert "the global descriptor of gallery/gallery000005.jpg is not finite" in ended.said
    assert not (tmp_path / "index/search/manifest.json").exists()


# ----------------------------------------------------------------------------------- globals alone


def test_globals_alone_are_refused_at_once(stores: Path, tmp_path: Path) -> None:
    truth = {
        "schema": "rrt-ground-truth/1",
        "name": "own",
        "gallery": [f"gallery{row:06}.jpg" for row in range(300)],
        "queries": [
            {"name": f"queries{row:06}.jpg", "box": None, "easy": [row], "hard": [], "junk": []}
            for row in range(10)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    run = tmp_path / "run"
    assert search(stores, "flat", run).code == 0

    for command_of in (
        ("report", "--out", run),
        ("rerank", "--queries", stores / "queries", "--out", run),
        ("rerank", "--queries", stores / "queries", "--out", run, "--reranker", "mutual_nn"),
    ):
        ended = command(*command_of)
        assert ended.code == 2, ended.said
        assert "holds global descriptors alone, so that there is nothing to rerank" in ended.said
        assert ended.said.count("\n") == 1

    given = ("--out", run, "--ground-truth", tmp_path / "truth.json")
    assert good("evaluate", *given).code == 0  # the global order
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert list(metrics["rankings"]) == ["global"]
    assert metrics["rankings"]["global"]["easy"]["mP@1"] == 1.0
    ended = command("evaluate", *given, "--ensemble", "0.5,0.3")
    assert ended.code == 2 and "holds global descriptors alone" in ended.said, ended.said

    lazy = ("extract", "--locals-for", run, "--out", stores / "queries")
    ended = command(*lazy)
    assert ended.code == 2 and "import them with the globals" in ended.said, ended.said
