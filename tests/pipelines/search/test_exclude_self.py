"""A query's own image left out of its list, by row or by the bytes of its file: lists and places
are those of the whole gallery without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.command_line import Ended, command
from tests.support.pictures import save_scenes
from tests.support.stored import imported
from tests.support.watching import EXTRACTOR

pytestmark = pytest.mark.usefixtures("workers_end")

ONE = ("--workers", "1")


def good(*arguments: object) -> Ended:
    ended = command(*arguments, *ONE)
    assert ended.code == 0, ended.said
    return ended


def rows_of(run: Path, folder: str) -> dict[str, list[dict[str, Any]]]:
    """Query id -> its rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((run / folder).glob("part-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            found.setdefault(row["query_id"], []).append(row)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery that holds a picture twice; the same pictures as queries; three indexes."""
    folder = tmp_path_factory.mktemp("own")
    photos, wanted = folder / "photos", folder / "wanted"
    photos.mkdir()
    wanted.mkdir()
    names = save_scenes(photos, [f"{scene:02}" for scene in range(8)])
    (photos / "again.png").write_bytes((photos / names[3]).read_bytes())
    for name in (names[0], names[3]):
        (wanted / f"my {name}").write_bytes((photos / name).read_bytes())
    for name, images in (("gallery", photos), ("queries", wanted)):
        given = ("--images", images, "--extractor", EXTRACTOR, "--rows-per-part", "10")
        good("extract", *given, "--out", folder / name)
    stores = ("--stores", folder / "gallery")
    good("index", *stores, "--out", folder / "flat")
    good("index", *stores, "--key", "IVF4,SQ8", "--out", folder / "ivf")
    small = ("--rows-per-shard", "10", "--max-memory", "800")
    good("index", *stores, "--out", folder / "files", *small)
    assert len(list((folder / "files/search").glob("*.faiss"))) > 1
    gallery = [*sorted(names), "again.png"]
    own, twice = gallery.index(names[3]), gallery.index("again.png")
    queries = [
        {"name": f"my {names[3]}", "easy": [4, 20], "hard": [11], "junk": [own, twice]},
        {"name": f"my {names[0]}", "easy": [5], "hard": [1, 2], "junk": [gallery.index(names[0])]},
    ]
    truth = {"schema": "rrt-ground-truth/1", "gallery": gallery, "queries": queries}
    (folder / "truth.json").write_text(json.dumps(truth))
    truth["queries"] = [
        {"name": name, "easy": [(row + 1) % 24], "hard": [], "junk": [row, 23]}
        for row, name in enumerate(gallery[:20])
    ]
    (folder / "own.json").write_text(json.dumps(truth))
    return folder


@pytest.mark.parametrize("how", ["row", "bytes"])
@pytest.mark.parametrize(
    ("index", "options"),
    [
        ("flat", ()),
        ("files", ()),
        ("ivf", ()),
        ("ivf", ("--no-exact", "--queries-per-block", "3")),
        ("flat", ("--k", "12")),
        ("files", ("--k", "12")),
        ("ivf", ("--k", "12")),
    ],
)
def test_lists_and_places_are_those_without_it(
    how: str, index: str, options: tuple[str, ...], world: Path, tmp_path: Path
) -> None:
    queries, truth = ("gallery", "own.json") if how == "row" else ("queries", "truth.json")
    given = ("--queries", world / queries, "--ground-truth", world / truth, "--shortlist", "4")
    good("search", *given, "--index", world / "flat", "--out", tmp_path / "all")
    given = (*given, "--index", world / index, "--exclude-self", how)
    said = good("search", *given, "--out", tmp_path / "own", *options).said
    assert "have fewer than" not in said or "--no-exact" in options

    whole, found = (rows_of(tmp_path / name, "shortlist") for name in ("all", "own"))
    placed = rows_of(tmp_path / "own", "labelled/places")
    before = rows_of(tmp_path / "all", "labelled/places")
    for query, rows in whole.items():
        if how == "row":
            own = {query}
        else:
            mine = query.removeprefix("wanted/my ")
            own = {f"photos/{mine}", *(["photos/again.png"] if mine == "01_0.png" else [])}
        left = [(row["record_id"], row["score"]) for row in rows if row["record_id"] not in own]
        assert len(left) == len(rows) - len(own)
        listed = [(row["record_id"], row["score"]) for row in found[query]]
        if "--no-exact" in options:  # of the lists that are visited
            assert listed == [one for one in left if one in set(listed)]
        else:
            assert listed == left[: 12 if options else None]

        place = {record: number for number, (record, _) in enumerate(left)}
        wanted = [row["record_id"] for row in before.get(query, []) if row["record_id"] not in own]
        assert [row["record_id"] for row in placed.get(query, [])] == wanted
        assert [row["place"] for row in placed.get(query, [])] == [place[one] for one in wanted]

    assert command("verify", tmp_path / "own").code == 0


def test_a_whole_list_without_the_own_image_is_not_cut(world: Path, tmp_path: Path) -> None:
    from pipelines.results.outputs import shortlist_facts

    given = ("--queries", world / "gallery", "--index", world / "flat", "--exclude-self", "row")
    good("search", *given, "--out", tmp_path)
    assert not shortlist_facts(str(tmp_path)).cut
    again = good("search", *given, "--out", tmp_path)
    assert again.said.count("already made") == 2
    refused = command("search", *given[:-2], "--out", tmp_path)
    assert refused.code == 2 and "inputs.excluded was" in refused.said, refused.said


@pytest.mark.parametrize("k", ["0", "14"])
def test_the_own_image_is_no_positive(k: str, world: Path, tmp_path: Path) -> None:
    """Figures are those of a truth in which it is junk, and of lists that hold it."""
    truth = json.loads((world / "own.json").read_text())
    (tmp_path / "junk.json").write_text(json.dumps(truth))
    for row, query in enumerate(truth["queries"]):
        query["easy"], query["junk"] = [row, *query["easy"]], [23]
    (tmp_path / "positive.json").write_text(json.dumps(truth))
    found = []
    for name, options in (("junk", ()), ("positive", ("--exclude-self", "row"))):
        given = ("--out", tmp_path / name, "--ground-truth", tmp_path / f"{name}.json")
        queries = ("--queries", world / "gallery", "--shortlist", "4", *given)
        good("search", *queries, "--index", world / "flat", "--k", k, *options)
        good("rerank", *queries, "--reranker", "mutual_nn")
        good("evaluate", *given)
        metrics = json.loads((tmp_path / name / "evaluation/metrics.json").read_text())
        assert metrics["facts"]["gallery_images_not_described"] == 0
        found.append(metrics["rankings"])
    assert found[0]["global"] == found[1]["global"]
    assert found[0]["reranked"] == found[1]["reranked"]


def test_what_cannot_be_known_is_refused(world: Path, tmp_path: Path) -> None:
    given = ("--index", world / "flat", "--out", tmp_path / "run")
    ended = command("search", "--queries", world / "queries", *given, "--exclude-self", "row")
    assert ended.code == 2 and "is no store of the gallery" in ended.said, ended.said

    store = imported(tmp_path, "vectors", np.random.default_rng(0).normal(size=(30, 8)))
    good("index", "--stores", store, "--out", tmp_path / "index")
    given = ("--queries", store, "--index", tmp_path / "index", "--out", tmp_path / "run")
    ended = command("search", *given, "--exclude-self", "bytes")
    assert ended.code == 2 and "has no SHA-256 of its images' files" in ended.said, ended.said
    ended = command("search", *given, "--exclude-self", "name")
    assert ended.code == 2 and "--exclude-self" in ended.said
    assert not (tmp_path / "run").exists()
    good("search", *given, "--exclude-self", "row")
