"""A folder of results that is moved, renamed, copied or mounted elsewhere goes on with every later
stage: inputs are known by their content, a place is a hint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import Ended, command, findings
from tests.support.comparing import state
from tests.support.watching import EXTRACTOR

pytestmark = pytest.mark.usefixtures("workers_end")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """`project/`, with images, their truth, a configuration and the results of all stages."""
    project = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(photographs, project / "ph")
    shutil.copy(photographs.parent / "ground_truth.json", project / "truth.json")
    run_all(project, project / "res")
    return project


def run_all(project: Path, results: Path) -> Ended:
    config = project / "all.yaml"
    text = {
        "images": str(project / "ph"),
        "ground_truth": str(project / "truth.json"),
        "out": str(results),
        "extract": {"extractor": EXTRACTOR, "rows_per_part": 5},
        "rerank": {"reranker": "mutual_nn", "shortlist": 5, "queries_per_unit": 2},
    }
    config.write_text(json.dumps(text))  # JSON is YAML
    ended = command("run", "--config", config, "--workers", "1")
    assert ended.code == 0, ended.said
    return ended


@pytest.fixture
def moved(whole: Path, tmp_path: Path) -> Path:
    """The project at another place, under another name of the folder of results."""
    copy = tmp_path / "elsewhere" / "project"
    shutil.copytree(whole, copy)
    (copy / "res").rename(copy / "res_nov")
    return copy


@pytest.fixture
def gone(whole: Path, moved: Path) -> Iterator[Path]:
    """The same, while the old place is no more."""
    hidden = whole.rename(whole.with_name("hidden"))
    yield moved
    hidden.rename(whole)


def good(*arguments: object) -> Ended:
    ended = command(*arguments)
    assert ended.code == 0, ended.said
    return ended


def later_stages(project: Path, run: Path, stores: Path, index: Path, *how: object) -> None:
    """Search, rerank, evaluate and report anew, below `run`."""
    truth, queries = project / "truth.json", stores / "queries"
    of = ("--out", run, "--ground-truth", truth)
    good("search", "--queries", queries, "--index", index, *of, "--k", "30", *how)
    reranking = ("--reranker", "mutual_nn", "--shortlist", "4")
    good("rerank", "--queries", queries, *of, *reranking, *how)
    good("evaluate", *of)
    good("report", *of, *how)


def test_every_later_stage_goes_on_at_another_place(gone: Path) -> None:
    results = gone / "res_nov"
    stores = [results / name for name in ("gallery", "queries", "index")]
    before = state(*stores)
    truth = ("--ground-truth", gone / "truth.json")
    assert "already made" in good("report", "--out", results / "run", *truth).said
    said = good("report", "--out", results / "run", "--overwrite").said
    assert "cannot be read" not in said
    good("evaluate", "--out", results / "run", "--ground-truth", gone / "truth.json")
    later_stages(gone, results / "again", results, results / "index")
    assert state(*stores) == before  # what is read is not written to
    assert all(not one["problems"] for one in findings(results))


def test_run_finds_all_made_and_goes_on(gone: Path) -> None:
    said = run_all(gone, gone / "res_nov").said
    assert said.count("already made") == 11
    manifest = (gone / "res_nov/run/shortlist/manifest.json").read_text()
    assert str(gone) in manifest and "whole" not in manifest  # the hints are those of now
    before = state(gone / "res_nov")
    run_all(gone, gone / "res_nov")
    assert state(gone / "res_nov") == before


def test_stores_that_cannot_be_written_to(gone: Path) -> None:
    """As on a disk that is mounted to be read alone. Root may write anywhere: so the state, too."""
    results = gone / "res_nov"
    closed = [path for name in ("gallery", "queries", "index") for path in (results / name,)]
    folders = [path for one in closed for path in (one, *one.rglob("*")) if path.is_dir()]
    before = state(*closed)
    for folder in folders:
        folder.chmod(0o555)
    try:
        later_stages(gone, results / "again", results, results / "index")
        assert state(*closed) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_copy_reads_its_own_stores(moved: Path, whole: Path) -> None:
    """The old place is still there, with the same content."""
    results = moved / "res_nov"
    good("report", "--out", results / "run", "--overwrite")
    job = json.loads((results / "run/report/plan/job.json").read_text())
    assert job["settings"]["queries"] == str(results / "queries")
    assert [one["url"] for one in job["settings"]["stores"]] == [str(results / "gallery")]


def test_a_run_that_was_moved_alone_reads_the_stores_where_they_were(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "res/run", tmp_path / "run")
    good("report", "--out", tmp_path / "run", "--overwrite")


def test_stores_at_another_place_are_named(gone: Path, tmp_path: Path) -> None:
    results, stores = gone / "res_nov", tmp_path / "stores"
    stores.mkdir()
    for name in ("gallery", "queries"):
        (results / name).rename(stores / name)

    run = ("--out", results / "run", "--overwrite")
    ended = command("report", *run)
    assert ended.code == 2 and "give its place by --stores" in ended.said, ended.said
    assert (results / "run/report/report.html").exists()
    both = ("--stores", f"{stores}/queries,{stores}/gallery")
    good("report", *run, *both)

    ended = command("rerank", "--queries", stores / "queries", "--reranker", "mutual_nn", *run)
    assert ended.code == 2 and "--stores" in ended.said, ended.said
    later_stages(
        gone, results / "again", stores, results / "index", "--stores", f"{stores}/gallery"
    )

    good("index", "--stores", stores / "gallery", "--out", results / "index")  # the new hint
    later_stages(gone, results / "third", stores, results / "index")


def test_another_store_at_the_place_is_refused(moved: Path, whole: Path) -> None:
    results = moved / "res_nov"
    queries = results / "queries"
    other = ("--stores", queries, "--overwrite", "--reranker", "mutual_nn")
    ended = command("rerank", "--queries", queries, "--out", results / "run", *other)
    assert ended.code == 2, ended.said
    assert f"--stores {results}/queries: that store has the content" in ended.said
    assert str(whole / "res/gallery") in ended.said  # both are named


def test_a_store_made_again_in_the_old_place_is_not_read_in_silence(
    gone: Path, whole: Path, tmp_path: Path
) -> None:
    results = gone / "res_nov"
    shutil.copytree(results / "queries", whole / "res/gallery")  # another content there
    shutil.rmtree(results / "gallery")
    try:
        ended = command("report", "--out", results / "run", "--overwrite")
        assert ended.code == 2 and "was made again since" in ended.said, ended.said
        assert (results / "run/report/report.html").exists()
    finally:
        shutil.rmtree(whole)


def test_pictures_that_are_gone_are_said_marked_and_counted(moved: Path, whole: Path) -> None:
    run = ("--out", moved / "res_nov/run")
    (moved / "ph").rename(moved / "ph_moved")
    hidden = (whole / "ph").rename(whole / "hidden")
    try:
        said = good("report", *run, "--overwrite").said
        assert "4 of 4 query pictures cannot be read:" in said
        assert f"gallery pictures cannot be read: {whole}/ph: no such folder" in said
        page = moved / "res_nov/run/report/report.html"
        assert page.read_text().count("no picture: it cannot be read") > 20
        notes = json.loads(page.with_name("manifest.json").read_text())["facts"]["notes"]
        assert notes["gallery_pictures"] == notes["gallery_pictures_missing"] > 9

        said = good("report", *run).said  # said again, too
        assert "already made" in said and "gallery pictures cannot be read" in said
        ended = command("report", *run, "--images", moved / "nowhere")
        assert ended.code == 2 and "there is no such folder" in ended.said

        said = good("report", *run, "--images", moved / "ph_moved").said
        assert "cannot be read" not in said
        assert "no picture: it cannot be read" not in page.read_text()
    finally:
        hidden.rename(whole / "ph")


def test_another_picture_of_the_same_name_is_not_shown(moved: Path, whole: Path) -> None:
    run = ("--out", moved / "res_nov/run", "--overwrite")
    other = (moved / "ph/05_1.png").read_bytes()
    for path in (moved / "ph").glob("00_*.png"):
        path.write_bytes(other)
    hidden = (whole / "ph").rename(whole / "hidden")
    try:
        said = good("report", *run).said
        assert "1 of 4 query pictures cannot be read:" in said, said
        assert "it is not the image that was described" in said
    finally:
        hidden.rename(whole / "ph")


@pytest.mark.parametrize("name", ["shortlist", "scores", "ranking", "evaluation", "report"])
def test_what_is_damaged_is_repaired_at_another_place(name: str, gone: Path) -> None:
    output = gone / "res_nov/run" / name
    marker = next((output / "done").glob("*.json"))
    damaged = output / json.loads(marker.read_text())["files"][0]["name"]
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    extractor = ("--own-class", EXTRACTOR)
    said = good("repair", output, "--workers", "1", *extractor).said
    assert damaged.read_bytes() == data or name == "report", said
    assert all(not one["problems"] for one in findings(gone / "res_nov"))


def test_cut_lists_are_said_and_their_gallery_is_counted_rightly(
    whole: Path, tmp_path: Path
) -> None:
    """Images that no list names were described all the same."""
    results, of = whole / "res", ("--out", tmp_path / "run")
    truth = ("--ground-truth", whole / "truth.json")
    queries = ("--queries", results / "queries")
    good("search", *queries, "--index", results / "index", *of, "--k", "8", "--shortlist", "5")
    good("rerank", *queries, *of, *truth, "--reranker", "mutual_nn", "--shortlist", "5")
    said = good("evaluate", *of, *truth).said
    assert "lists end after 8 images or more, and positives beyond count as not found" in said
    facts = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["facts"]
    assert facts["truncated"] and facts["gallery_images_not_described"] == 0
    assert "lists end" not in command("evaluate", "--out", results / "run", *truth).said

    (results / "gallery").rename(results / "hidden")
    try:
        good("evaluate", *of, *truth, "--overwrite")
        facts = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["facts"]
        assert facts["gallery_images_not_described"] is None  # nobody can say
    finally:
        (results / "hidden").rename(results / "gallery")
