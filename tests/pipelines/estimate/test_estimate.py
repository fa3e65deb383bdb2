"""estimate and --dry-run: what they say against what a run then makes.

Nothing is made at the place, and nothing stays of the probe.
"""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.estimate import estimate as estimates
from pipelines.estimate.model import Estimate
from pipelines.estimate.schedule import busy_seconds, wall_seconds
from pipelines.estimate.table import table
from pipelines.extract import options as extract_options
from pipelines.extract import sample
from pipelines.extract import stage as extract
from pipelines.extract.sample import count_images
from pipelines.index import stage as index
from pipelines.quantities import byte_text
from pipelines.rerank import stage as rerank
from pipelines.run import stage as run
from pipelines.search import stage as search
from pipelines.sources.archive_images import ArchiveImages
from schemas.errors import UserError
from tests.pipelines.extract.test_archive_extract import archives, jpeg, write_tar  # noqa: F401  a fixture
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR, LONG, wait_for

SETTINGS = RunSettings(workers=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures, some in a folder below."""
    folder = tmp_path_factory.mktemp("estimate") / "pictures"
    for number in range(120):
        path = folder / ("a" if number % 3 else "") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return folder


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The probe's folder is removed, whatever happens."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert not list(folder.glob("*-estimate-*"))


def estimate(name: str, options: Any, settings: RunSettings = SETTINGS) -> list[Estimate]:
    return estimates.run(name, options, settings)


def size_of(*folders: Path) -> int:
    return sum(
        path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()
    )


def describing(out: Path, images: object, **more: Any) -> extract_options.Options:
    return extract_options.Options(out=str(out), images=str(images), extractor=EXTRACTOR, **more)


def test_a_folder(pictures: Path, tmp_path: Path) -> None:
    options = describing(tmp_path / "store", pictures)
    (made,) = estimate("extract", options, RunSettings(workers=2, on=(1, 64)))
    assert not (tmp_path / "store").exists()
    assert (made.inputs, made.known, made.done) == (120, "counted", 0)
    assert made.probe is not None and made.probe.inputs >= 20 and made.workers == 2
    assert made.elsewhere[1] > made.elsewhere[64] > made.probe.start_seconds
    assert made.memory_total > made.memory_worker > 20_000_000
    extract.run(options, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "store"), rel=0.05)
    assert made.disk["locals"] == pytest.approx(size_of(tmp_path / "store" / "local"), rel=0.02)
    assert made.disk["globals"] == pytest.approx(size_of(tmp_path / "store" / "global"), rel=0.02)
    (again,) = estimate("extract", options)
    assert again.done == 120 and again.probe is None and again.notes == ["all of it is done"]


@pytest.mark.parametrize(
    "more", [{"locals": "none"}, {"local_dtype": "binary"}, {"global_dtype": "float16"}]
)
def test_other_forms_of_a_store(pictures: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    options = describing(tmp_path / "store", pictures, **more)
    (made,) = estimate("extract", options)
    extract.run(options, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "store"), rel=0.05)


def test_what_is_done_is_not_counted_again(pictures: Path, tmp_path: Path) -> None:
    options = describing(tmp_path / "store", pictures, rows_per_part=30)
    extract.run(options, SETTINGS)
    whole = size_of(tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    for number in (0, 3):
        (tmp_path / "store" / "done" / f"part-{number:05}.json").unlink()
    left = size_of(tmp_path / "store")
    (made,) = estimate("extract", options)
    assert (made.inputs, made.done) == (120, 60)
    assert made.disk_total == pytest.approx(whole, rel=0.05)
    assert 0 < made.disk_there < made.disk_total
    assert size_of(tmp_path / "store") == left
    with pytest.raises(UserError, match="another recipe"):
        estimate("extract", describing(tmp_path / "store", pictures, rows_per_part=20))


def test_archives(archives: Path, tmp_path: Path) -> None:  # noqa: F811
    options = describing(tmp_path / "store", archives / "images.{1..3}.tar.gz", rows_per_part=8)
    (made,) = estimate("extract", options)
    assert (made.inputs, made.known) == (60, "counted, also in 3 archives")
    extract.run(options, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "store"), rel=0.05)


def test_archives_and_a_list(archives: Path, tmp_path: Path) -> None:  # noqa: F811
    names = [f"jpg/{number % 3}/{number:03}.jpg" for number in range(0, 18, 2)] + ["jpg/none.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    options = describing(
        tmp_path / "store", archives / "images.{1..3}.tar.gz", list=str(tmp_path / "list.txt")
    )
    (made,) = estimate("extract", options)
    assert (made.inputs, made.known) == (10, "counted")
    manifest = extract.run(options, SETTINGS)
    assert manifest.counts.inputs == 10


def test_a_zip_whose_names_are_no_utf8(tmp_path: Path) -> None:
    """As old packers write them, in the code page of a DOS."""
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as packed:
        for number in range(20):
            packed.writestr(f"caf_{number}.jpg", jpeg(number))
    named = (tmp_path / "old.zip").read_bytes().replace(b"caf_", b"caf\x82")
    (tmp_path / "old.zip").write_bytes(named)
    (tmp_path / "list.txt").write_bytes(b"\n".join(b"caf\x82%d.jpg" % n for n in range(10)))
    for more, inputs in (({}, 20), ({"list": str(tmp_path / "list.txt")}, 10)):
        options = describing(tmp_path / f"store-{inputs}", tmp_path / "old.zip", **more)
        (made,) = estimate("extract", options)
        assert made.inputs == inputs
        manifest = extract.run(options, SETTINGS)
        assert (manifest.counts.inputs, manifest.counts.failed) == (inputs, 0)
        assert made.disk_total == pytest.approx(size_of(tmp_path / f"store-{inputs}"), rel=0.05)


def test_several_sources(archives: Path, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    sources = tmp_path / "sources.yaml"
    sources.write_text(f"- images: {pictures}\n- images: {archives}/images.{{1..3}}.tar.gz\n")
    options = describing(tmp_path / "store", "", sources=str(sources))
    (made,) = estimate("extract", options)
    assert (made.inputs, made.known) == (180, "counted, also in 3 archives")
    extract.run(options, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "store"), rel=0.05)


def test_images_are_estimated_by_bytes_where_time_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = []
    for number in range(6):
        members = [(f"{image:03}.jpg", jpeg(image % 9) + bytes(4_000)) for image in range(40)]
        urls.append(str(write_tar(tmp_path / f"{number}.tar", members)))
    sizes = [Path(url).stat().st_size for url in urls]
    images = [ArchiveImages(url, "source", "") for url in urls]
    whole = count_images(images, sizes)
    assert (sum(whole.images), whole.whole, whole.looked) == (240, 6, 6)
    monkeypatch.setattr(sample, "SECONDS", 0.0)
    monkeypatch.setattr(sample, "AT_LEAST", 0.0)
    some = count_images(images, sizes)
    assert some.looked < 6 and sum(some.images) == pytest.approx(240, rel=0.2)


def test_images_that_all_fail_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"none of the \d+ images of the probe could be described.*broken/\d.jpg"
    ):
        estimate("extract", describing(tmp_path / "store", folder))
    assert not (tmp_path / "store").exists()


def test_layers_and_retries(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        picture(number).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"bad")
    options = describing(tmp_path / "store", folder, locals="none")
    extract.run(options, SETTINGS)
    (made,) = estimate(
        "extract", describing(tmp_path / "store", folder, locals="none", retry_failed=True)
    )
    assert made.inputs == 1 and made.probe is None
    ids = [f"pictures/{number}.png" for number in range(0, 40, 2)]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    layer = describing(tmp_path / "store", "", locals_for=str(tmp_path / "ids.txt"))
    (made,) = estimate("extract", layer)
    assert made.inputs == 20 and not (tmp_path / "store" / "layers").exists()
    extract.run(layer, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "store" / "layers"), rel=0.05)


def test_index_search_and_rerank(pictures: Path, tmp_path: Path) -> None:
    store, place, out = str(tmp_path / "store"), str(tmp_path / "index"), str(tmp_path / "run")
    extract.run(describing(tmp_path / "store", pictures), SETTINGS)
    for key, rows in (("Flat", 200_000), ("IVF4,PQ8x4", 40)):
        indexing = index.Options(
            stores=(store,), out=f"{place}-{key[:3]}", key=key, rows_per_shard=rows
        )
        (made,) = estimate("index", indexing)
        assert made.inputs == 120
        index.run(indexing, SETTINGS)
        assert made.disk_total == pytest.approx(size_of(Path(indexing.out)), rel=0.1)
        (made,) = estimate("index", indexing)
        assert made.done == 120
    for number in range(60):
        (tmp_path / "wanted").mkdir(exist_ok=True)
        picture(1_000 + number).save(tmp_path / "wanted" / f"{number}.png")
    queries = str(tmp_path / "queries")
    extract.run(describing(tmp_path / "queries", tmp_path / "wanted"), SETTINGS)
    searching = search.Options(queries=queries, index=f"{place}-Fla", out=out)
    (made,) = estimate("search", searching)
    assert made.inputs == 60 and not Path(out).exists()
    search.run(searching, SETTINGS)
    assert made.disk_total == pytest.approx(size_of(tmp_path / "run"), rel=0.05)
    reranking = rerank.Options(queries=queries, out=out, reranker="mutual_nn", shortlist=10)
    (made,) = estimate("rerank", reranking)
    assert made.inputs == 600 and not (tmp_path / "run" / "scores").exists()
    rerank.run(reranking, SETTINGS)
    size = size_of(tmp_path / "run" / "scores", tmp_path / "run" / "ranking")
    assert made.disk_total == pytest.approx(size, rel=0.05)
    (made,) = estimate("rerank", reranking)
    assert made.done == 600


def test_an_index_of_several_files_is_searched(pictures: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    extract.run(describing(tmp_path / "store", pictures, rows_per_part=30), SETTINGS)
    indexing = index.Options(
        stores=(store,), out=f"{tmp_path}/index", rows_per_shard=30, max_memory=20_000
    )
    index.run(indexing, SETTINGS)
    (made,) = estimate(
        "search", search.Options(queries=store, index=indexing.out, out=str(tmp_path / "run"))
    )
    assert made.inputs == 120 and "4 search files" in made.notes[-1]


def test_a_configuration(configuration: Path, tmp_path: Path) -> None:
    options = run.Options(config=str(configuration), set={"out": str(tmp_path / "all")})
    made = estimate("run", options)
    assert [one.stage for one in made] == ["extract", "extract", "index", "rerank"]
    assert [one.inputs for one in made[:3]] == [30, 4, 30]
    assert (
        made[3].inputs == 4 * 5 + 8 and made[3].probe is not None
    )  # two easy or junk images a query
    assert not (tmp_path / "all").exists()


def test_the_command_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--images",
        str(pictures),
        "--out",
        str(tmp_path / "store"),
        "--extractor",
        EXTRACTOR,
    ]
    many = ["--workers", "2", "--on", "1,8", "--json", str(tmp_path / "estimate.json")]
    assert main(["estimate", "extract", *options, *many]) == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed
        for word in ("120 (counted)", "globals", "with 8 workers", "Nothing was made")
    )
    (made,) = json.loads((tmp_path / "estimate.json").read_text())
    assert (
        made["inputs"] == 120
        and made["disk_total"] == sum(made["disk"].values())
        and "8" in made["elsewhere"]
    )
    assert main(["evaluate", "--out", "x", "--ground-truth", "y", "--dry-run"]) == 0
    assert "seconds" in capsys.readouterr().out
    for arguments, sentence in (
        (["estimate"], "name a stage first"),
        (["estimate", "verify", "x"], "verify has no estimate"),
        (["extract", *options, "--dry-run", "--on", "0"], "at least 1"),
        (
            ["extract", *options, "--dry-run", "--json", str(tmp_path / "no" / "x.json")],
            "there is no folder",
        ),
        (["extract", *options, "--dry-run", "--json", str(tmp_path)], "is a folder; give a file"),
    ):
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(
    start: Any, pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    temporary = tmp_path / "other"
    temporary.mkdir()
    arguments = ("--images", pictures, "--out", tmp_path / "store", "--extractor", EXTRACTOR)
    slow = ("--extractor-option", "seconds=0.5", "--workers", "2", "--dry-run")
    running = start("extract", *arguments, *slow, TMPDIR=str(temporary))
    running.until(
        lambda: list(temporary.glob("*-estimate-*/probe/done/*.json")), "the first round's end"
    )
    running.process.send_signal(number)
    assert running.end(LONG) == 128 + number
    assert "nothing was made" in running.text and "Traceback" not in running.text
    wait_for(lambda: not running.orphans(), "the workers' end")
    assert not list(temporary.iterdir()) and not (tmp_path / "store").exists()


def test_a_place_that_is_too_small_is_reported(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Estimate("extract", "p", "images", 10, "counted", disk={"globals": 3_000}, free=1_000)
    assert "WARNING     it does not fit: 2.0 kB more must be free" in table(made)


def test_the_schedule_of_the_driver() -> None:
    assert wall_seconds([], 2, 5.0, 0.1) == 0.0
    assert wall_seconds([10.0], 8, 5.0, 0.0) == 15.0
    assert wall_seconds([1.0] * 64, 4, 2.0, 0.0) == 18.0
    assert wall_seconds([3.0, 3.0, 3.0], 2, 0.0, 0.5) == 7.0
    assert wall_seconds([1.0] * 10, 64, 2.0, 0.0) == 3.0  # more workers than units


def test_a_commit_beside_the_next_unit_is_no_work() -> None:
    assert busy_seconds([0.0, 10.0], [11.0, 20.0], 1) == 20.0
    assert busy_seconds([0.0, 0.0], [5.0, 8.0], 2) == 13.0


def test_bytes_as_text() -> None:
    assert [byte_text(size) for size in (12, 1_200, 3.4e6, 999e9)] == [
        "12 bytes",
        "1.2 kB",
        "3.4 MB",
        "999 GB",
    ]
