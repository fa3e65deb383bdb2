"""Labelled places against a sort of the whole gallery by hand, and what `evaluate` makes of them
against whole lists.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.command_line import Ended, command
from tests.support.pictures import save_scenes
from tests.support.stored import imported
from tests.support.watching import EXTRACTOR

pytestmark = pytest.mark.usefixtures("workers_end")

ROWS, ASKED, DIMENSIONS = 300, 6, 24
ONE = ("--workers", "1")


def good(*arguments: object) -> Ended:
    ended = command(*arguments, *ONE)
    assert ended.code == 0, ended.said
    return ended


def stored(store: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Record id -> row id in the first store of an index, descriptor as the files hold it."""
    found = {}
    for file in sorted((store / "global").iterdir()):
        table = pq.read_table(file)
        kind = np.dtype(table.schema.metadata[b"dtype"].decode())
        first = int(file.name.split(".")[0].removeprefix("part-")) * 4096
        for row_id, row in enumerate(table.to_pylist(), first):
            found[row["record_id"]] = row_id, np.frombuffer(row["descriptor"], kind)
    return found


def places(run: Path) -> list[dict[str, Any]]:
    return [
        row
        for file in sorted((run / "labelled/places").glob("part-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


@pytest.fixture(scope="module", params=["float32", "float16"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two galleries with many equal rows, queries beside the first, a truth of three levels."""
    folder = tmp_path_factory.mktemp(request.param)
    random = np.random.default_rng(0)
    rows = random.normal(size=(ROWS, DIMENSIONS))
    rows[50:80] = rows[10]  # of one score for any query
    asked = rows[:ASKED] + 0.3 * random.normal(size=(ASKED, DIMENSIONS))
    dtype = ("--global-dtype", request.param)
    imported(folder, "one", rows, *dtype)
    imported(folder, "two", np.concatenate([rows[:40], rows[60:70]]), *dtype)
    imported(folder, "queries", asked, *dtype)
    stores = ",".join(str(folder / name) for name in ("one", "two"))
    for key, name in (("Flat", "flat"), ("IVF16,PQ8x4", "ivf")):
        good("index", "--stores", stores, "--key", key, "--out", folder / name)

    gallery = [f"one{row:06}" for row in range(ROWS)]
    queries = []
    for number in range(ASKED):
        chosen = random.permutation([*range(50, 80), *random.permutation(ROWS)[:20]])
        chosen = np.unique(chosen).tolist()
        lists = {"easy": chosen[0::3], "hard": chosen[1::3], "junk": chosen[2::3]}
        queries.append({"name": f"queries{number:06}", "box": None, **lists})
    truth = {"schema": "rrt-ground-truth/1", "gallery": gallery, "queries": queries}
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


def search(stores: Path, index: str, out: Path, *options: object) -> Ended:
    given = ("--queries", stores / "queries", "--index", stores / index, "--out", out)
    return command("search", *given, "--ground-truth", stores / "truth.json", *ONE, *options)


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_places_are_those_of_a_whole_sort(stores: Path, index: str, tmp_path: Path) -> None:
    options = ("--k", "60", "--shortlist", "10", "--queries-per-block", "4")
    ended = search(stores, index, tmp_path, *options)
    assert ended.code == 0, ended.said

    gallery = {**stored(stores / "one"), **stored(stores / "two")}
    assert len(gallery) == ROWS + 50
    truth = json.loads((stores / "truth.json").read_text())
    wanted = []
    for number, (name, (_, query)) in enumerate(stored(stores / "queries").items()):
        scores = {
            record: np.float32(math.fsum(query.astype(float) * row.astype(float)))
            for record, (_, row) in gallery.items()
        }
        order = sorted(gallery, key=lambda one: (-scores[one], one.encode()))
        place = {record: position for position, record in enumerate(order)}
        label = {
            f"one/one{position:06}.jpg": (position, level)
            for level in ("easy", "hard", "junk")
            for position in truth["queries"][number][level]
        }
        for record in sorted(label, key=place.__getitem__):
            position, level = label[record]
            at, score = gallery[record][0], scores[record]
            wanted.append((name, record, at, position, level, score, place[record]))
    assert [tuple(row.values()) for row in places(tmp_path)] == wanted

    verified = command("verify", tmp_path)
    assert verified.code == 0, verified.said


def test_a_lost_place_is_made_again(stores: Path, tmp_path: Path) -> None:
    assert search(stores, "flat", tmp_path, "--k", "60", "--shortlist", "10").code == 0
    before = places(tmp_path)
    for job in ("scores", "counts", "places"):
        for file in (tmp_path / "labelled" / job).glob("*-00000*.parquet"):
            file.write_bytes(b"no table")
    assert command("verify", tmp_path).code == 1
    repaired = command("repair", tmp_path, *ONE)
    assert repaired.code == 0, repaired.said
    assert places(tmp_path) == before and command("verify", tmp_path).code == 0


def test_an_estimate_counts_them(stores: Path, tmp_path: Path) -> None:
    ended = search(stores, "flat", tmp_path / "run", "--dry-run", "--k", "60", "--shortlist", "10")
    assert ended.code == 0, ended.said
    assert "labelled images in the whole gallery" in ended.said and "labelled places" in ended.said
    assert not (tmp_path / "run").exists()


def test_a_search_that_was_cut_off_goes_on(stores: Path, tmp_path: Path) -> None:
    """What is committed stays; the result is the same."""
    options = ("--k", "60", "--shortlist", "10", "--queries-per-block", "2", "--workers", "2")
    assert search(stores, "ivf", tmp_path, *options).code == 0
    before = places(tmp_path)
    for job, unit in (("counts", "run-00000-00001"), ("places", "part-00002")):
        (tmp_path / "labelled" / job / "manifest.json").unlink()
        (tmp_path / f"labelled/{job}/done/{unit}.json").unlink()
    kept = tmp_path / "labelled/counts/done/run-00000-00000.json"
    written = kept.stat().st_mtime_ns
    ended = search(stores, "ivf", tmp_path, *options)
    assert ended.code == 0 and ended.said.count("already made") == 3, ended.said
    assert places(tmp_path) == before and kept.stat().st_mtime_ns == written


def test_a_truth_that_knows_no_query_is_said(stores: Path, tmp_path: Path) -> None:
    truth = {"schema": "rrt-ground-truth/1", "gallery": ["one000001"], "queries": []}
    truth["queries"] = [{"name": "another", "easy": [0], "hard": [], "junk": []}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    given = ("--ground-truth", tmp_path / "truth.json", "--k", "120")
    ended = search(stores, "flat", tmp_path / "run", *given)
    assert ended.code == 0 and "knows none of the queries" in ended.said, ended.said
    assert not (tmp_path / "run/labelled").exists()


# ---------------------------------------------------------------------------------------- evaluate

SCENES = 10


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs described and indexed, a truth of five queries, a run whose lists are whole."""
    folder = tmp_path_factory.mktemp("described")
    photos = folder / "photos"
    photos.mkdir()
    names = save_scenes(photos, [f"{scene:02}" for scene in range(SCENES)])
    queries = [
        {"name": names[3 * scene], "easy": [3 * scene + 1, 3 * ((scene + 5) % SCENES)]}
        | {"hard": [3 * scene + 2, 3 * ((scene + 3) % SCENES) + 1], "junk": [3 * scene]}
        for scene in range(5)
    ]
    truth = {"schema": "rrt-ground-truth/1", "gallery": names, "queries": queries}
    (folder / "truth.json").write_text(json.dumps(truth))
    given = ("extract", "--images", photos, "--extractor", EXTRACTOR)
    good(*given, "--out", folder / "gallery")
    of_truth = ("--ground-truth", folder / "truth.json", "--take", "queries")
    good(*given, *of_truth, "--out", folder / "queries")
    for key, name in (("Flat", "flat"), ("IVF4,SQ8", "ivf")):
        good("index", "--stores", folder / "gallery", "--key", key, "--out", folder / name)
    evaluated(folder, "flat", folder / "whole")
    return folder


def evaluated(
    folder: Path, index: str, run: Path, *options: object, truth: str = "truth.json"
) -> dict[str, Any]:
    """The metrics of a run that was searched, reranked and evaluated."""
    given = ("--out", run, "--ground-truth", folder / "truth.json")
    queries = ("--queries", folder / "queries", "--shortlist", "4")
    good("search", *queries, "--index", folder / index, *given, *options)
    good("rerank", *queries, *given, "--reranker", "mutual_nn")
    good("evaluate", "--out", run, "--ground-truth", folder / truth, "--ensemble", "0.5,0.3")
    found = (run / "ensemble").glob("*/metrics.json")
    return json.loads(next(found).read_text())


def test_cut_lists_give_the_figures_of_whole_ones(described: Path, tmp_path: Path) -> None:
    whole = json.loads(next((described / "whole/ensemble").glob("*/metrics.json")).read_text())
    cut = evaluated(described, "flat", tmp_path, "--k", "8")
    assert cut["rankings"] == whole["rankings"] and len(cut["rankings"]) == 5
    assert cut["facts"]["exact_places"] and not cut["facts"]["truncated"]

    metrics = [
        pq.read_table(run / "evaluation/per_query.parquet")
        for run in (described / "whole", tmp_path)
    ]
    assert metrics[0].equals(metrics[1])
    given = ("--out", tmp_path, "--ground-truth", described / "truth.json")
    good("report", *given)
    page = (tmp_path / "report/report.html").read_text()
    assert "positives beyond count by their exact places in the whole gallery" in page
    manifest = json.loads((tmp_path / "evaluation/manifest.json").read_text())
    assert manifest["inputs"]["labelled"]["content"]


def test_what_an_index_misses_comes_after_the_list(described: Path, tmp_path: Path) -> None:
    """The order that is evaluated: the list, then all other rows by exact score."""
    found = evaluated(described, "ivf", tmp_path, "--k", "8", "--nprobe", "1", "--oversample", "1")
    whole = pq.read_table(next((described / "whole/shortlist").glob("part-*.parquet"))).to_pylist()
    short = pq.read_table(next((tmp_path / "shortlist").glob("part-*.parquet"))).to_pylist()

    from rrt_core.metrics.revisited import evaluate
    from schemas.ground_truth.ground_truth import load_ground_truth

    truth = load_ground_truth(str(described / "truth.json"))
    positions = {f"photos/{name}": number for number, name in enumerate(truth.gallery)}
    lists: dict[str, list[list[int]]] = {}
    for rows in (short, whole):
        for row in rows:
            mine = lists.setdefault(row["query_id"], [])
            if positions[row["record_id"]] not in mine:
                mine.append(positions[row["record_id"]])
    assert any(row["rank"] >= 3 for row in short)
    rankings = [lists[name] for name in sorted(lists)]
    wanted = evaluate(rankings, truth.queries, "hard")
    assert found["rankings"]["global"]["hard"]["mAP"] == wanted.means["mAP"]


def test_another_truth_is_evaluated_by_the_lists(described: Path, tmp_path: Path) -> None:
    truth = json.loads((described / "truth.json").read_text())
    (described / "other.json").write_text(json.dumps({**truth, "name": "other"}))
    run = tmp_path / "run"
    evaluated(described, "flat", run, "--k", "8")
    shutil.rmtree(run / "evaluation")
    ended = good("evaluate", "--out", run, "--ground-truth", described / "other.json")
    assert "labelled/places is not used: it was made for another ground truth" in ended.said
    assert "positives beyond count as not found" in ended.said
    facts = json.loads((run / "evaluation/metrics.json").read_text())["facts"]
    assert facts["truncated"] and "exact_places" not in facts


def test_places_that_cannot_be_are_damage(described: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluated(described, "flat", run, "--k", "8")
    (file,) = (run / "labelled/places").glob("part-*.parquet")
    table = pq.read_table(file)
    place = table.schema.get_field_index("place")
    for wrong in ([-1] + [5] * (len(table) - 1), [7] * len(table)):
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        column = pa.array(wrong, pa.int64())
        pq.write_table(table.set_column(place, table.schema.field(place), column), file)
        ended = command("evaluate", "--out", run, "--ground-truth", described / "truth.json")
        assert ended.code == 1 and "do not rise" in ended.said, ended.said
        assert "'repair " in ended.said and "Traceback" not in ended.said


def test_an_evaluation_of_lists_stays_until_it_is_made_again(
    described: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    evaluated(described, "flat", run, "--k", "8")
    for folder in ("labelled", "evaluation", "ensemble"):
        shutil.rmtree(run / folder)
    given = ("--out", run, "--ground-truth", described / "truth.json")
    good("evaluate", *given)
    before = (run / "evaluation/metrics.json").read_bytes()
    assert b"exact_places" not in before

    # as a version left it that placed no labelled images: the same command finds all made
    searching = ("--queries", described / "queries", "--shortlist", "4", "--k", "8")
    good("search", *searching, "--index", described / "flat", *given)
    assert not (run / "labelled").exists()
    good("search", *searching, "--index", described / "flat", *given, "--overwrite")
    kept = good("evaluate", *given)
    assert "was made of the lists alone; --overwrite" in kept.said
    assert (run / "evaluation/metrics.json").read_bytes() == before
    good("evaluate", *given, "--overwrite")
    assert b"exact_places" in (run / "evaluation/metrics.json").read_bytes()
