"""The variants of tests/support/variants, found by name through the command line: an extractor, a
reranker, a result format and a form of ground truth, as an installed package would add them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.spatial.distance import cdist

from pipelines.evaluate.stage import read_metrics
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist
from rrt_core import extractors, rerankers
from rrt_core.extractors import Description, Extractor, Failure
from rrt_core.images import Image
from rrt_core.rerankers import Locals, Reranker
from schemas.errors import UserError
from schemas.exporters import FORMATS
from schemas.ground_truth.ground_truth import READERS, load_ground_truth
from schemas.registry import Registry
from tests.support.command_line import command, end_workers
from tests.support.pictures import picture

SCENES = 3
VIEWS = (1, 2)
QUERIES = [f"wanted/{scene}.png" for scene in range(SCENES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, and all stages over them, each variant by its name.

    Of each scene there is a query, two views that are relevant to it, and the query itself turned
    upside down, which is not: its colours are the query's to the last pixel, its gradients are not.
    """
    root = tmp_path_factory.mktemp("variants")
    for folder in ("photos", "wanted"):
        (root / folder).mkdir()
    for scene in range(SCENES):
        whole = picture(scene)
        query = whole.crop((0, 0, 90, 60))
        query.save(root / "wanted" / f"{scene}.png")
        query.transpose(PillowImage.Transpose.ROTATE_180).save(
            root / "photos" / f"{scene} turned.png"
        )
        for view in VIEWS:
            moved = whole.crop((3 * view, 2 * view, 90 + view, 60 + view))
            moved.save(root / "photos" / f"{scene} view {view}.png")

    lines = [
        f"{scene}.png,{scene}%20view%201.png {scene}%20view%202.png" for scene in range(SCENES)
    ]
    (root / "truth.csv").write_text("\n".join(["query,relevant", *lines, ""]))

    truth = ("--ground-truth", root / "truth.csv")
    described = ("--extractor", "colours", "--extractor-option", "cells=5")
    reranked = ("--reranker", "chamfer", "--reranker-option", "tokens=25")
    asked = ("--queries", root / "queries", "--out", root / "run")
    exported = ("--format", "submission", "--out", root / "submission.csv")
    for arguments in (
        ("extract", "--images", root / "photos", "--out", root / "gallery", *described),
        ("extract", "--images", root / "wanted", "--out", root / "queries", *described),
        ("index", "--stores", root / "gallery", "--out", root / "index"),
        ("search", *asked, "--index", root / "index", *truth),
        ("rerank", *asked, *reranked, *truth),
        ("evaluate", "--out", root / "run", *truth),
        ("export", root / "run", *exported),
    ):
        one_worker = () if arguments[0] == "export" else ("--workers", 1)
        ended = command(*arguments, *one_worker)
        assert ended.code == 0, ended.said
    end_workers()
    return root


def test_relevant_images_come_first_and_mean_average_precision_is_100(made: Path) -> None:
    ranked = {
        query: rows.column("record_id").to_pylist()
        for query, rows in read_ranking(str(made / "run"), "deploy")
    }
    assert sorted(ranked) == QUERIES
    for scene, query in enumerate(QUERIES):
        views = {f"photos/{scene} view {view}.png" for view in VIEWS}
        assert set(ranked[query][: len(VIEWS)]) == views
        assert len(ranked[query]) == len(set(ranked[query])) == SCENES * (len(VIEWS) + 1)

    rankings = read_metrics(str(made / "run"))["rankings"]
    assert set(rankings["global"]) == {"medium"}  # the CSV knows no levels
    assert rankings["reranked"]["medium"]["mAP"] == rankings["deploy"]["medium"]["mAP"] == 1.0
    assert rankings["deploy"]["medium"]["counted"] == SCENES
    # Colours alone put the turned picture first, so that precision is 1/2 and 2/3 at best.
    assert rankings["global"]["medium"]["mAP"] < 0.6

    table = command("evaluate", "--out", made / "run", "--ground-truth", made / "truth.csv").said
    assert [line.split()[-1] for line in table.splitlines() if "reranked" in line] == ["100.00"] * 2


def test_the_order_by_colours_alone_begins_with_the_turned_picture(made: Path) -> None:
    for query, rows in read_shortlist(str(made / "run")):
        scene = Path(query).stem
        assert rows.column("record_id").to_pylist()[0] == f"photos/{scene} turned.png"


def test_the_exported_file_has_the_order_of_the_ranking(made: Path) -> None:
    with (made / "submission.csv").open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["query", "records"]

    exported = [(query, records.replace("%20", "_").split(" ")) for query, records in lines]
    assert exported == [
        (query, [one.replace(" ", "_") for one in rows.column("record_id").to_pylist()])
        for query, rows in read_ranking(str(made / "run"), "deploy")
    ]


def test_what_the_variants_made_verifies(made: Path) -> None:
    ended = command("verify", made)
    assert ended.code == 0, ended.said


def an_image(pixels: np.ndarray) -> Image:
    """A decoded picture of these pixels, uint8 [H, W, 3]."""
    return Image("a/b.png", np.ascontiguousarray(pixels), pixels.shape[1], pixels.shape[0])


def described(pixels: np.ndarray, cells: int = 4) -> Description:
    """What the extractor `colours` says of the pixels."""
    [answer] = extractors.create("colours", cells=cells).describe([an_image(pixels)])
    assert isinstance(answer, Description)
    return answer


def test_the_histogram_is_opencvs() -> None:
    pixels = np.asarray(picture(5))
    bins, ranges = [4] * 3, [0, 256] * 3
    counts = cv2.calcHist([pixels], [0, 1, 2], None, bins, ranges).ravel()
    np.testing.assert_allclose(
        described(pixels).global_descriptor, np.sqrt(counts / counts.sum()), atol=1e-6
    )


def test_descriptions_keep_the_contract() -> None:
    pictures = [an_image(np.asarray(picture(seed, 60 + seed, 50))) for seed in range(3)]
    extractor = extractors.create("colours")
    together = extractor.describe(pictures)
    for image, answer in zip(pictures, together, strict=True):
        [alone] = extractor.describe([image])
        assert isinstance(answer, Description) and isinstance(alone, Description)
        assert answer.descriptors.tobytes() == alone.descriptors.tobytes()
        assert answer.descriptors.shape == (16, extractor.local_dim)
        np.testing.assert_allclose(np.linalg.norm(answer.descriptors, axis=1), 1, atol=1e-6)
        assert np.all(np.diff(answer.strength) <= 0)
        assert np.all((answer.xy >= 0) & (answer.xy <= (image.width, image.height)))


def test_pictures_with_nothing_to_describe() -> None:
    assert len(described(np.full((20, 20, 3), 77, np.uint8)).descriptors) == 0
    [small] = extractors.create("colours", cells=4).describe(
        [an_image(np.zeros((3, 9, 3), np.uint8))]
    )
    assert isinstance(small, Failure) and small.error_class == "too_small"
    with pytest.raises(UserError, match="cells must be a whole number from 1, not 'x'"):
        extractors.create("colours", cells="x")


def test_chamfer_is_scipys_nearest_distance() -> None:
    rng = np.random.default_rng(4)

    def some(count: int) -> Locals:
        rows = rng.standard_normal((count, 8)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        nothing = np.zeros(count, np.float32)
        places = np.zeros((count, 2), np.float32)
        return Locals(rows[0] if count else rows, rows, places, nothing, nothing, (1.0,))

    query, gallery = some(30), some(40)
    reranker = rerankers.create("chamfer")
    near = 1 - cdist(query.descriptors, gallery.descriptors, "cosine").min(axis=1).mean()
    logits = reranker.score([(query, gallery), (query, some(0)), (some(0), gallery)])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, [near, -1, -1], atol=1e-6)


def test_a_csv_that_is_no_ground_truth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    for text, complaint in (
        ("", "must begin with the line query,relevant"),
        ("query,relevant\na.png\n", r"truth\.csv, row 2: .* not 1 values"),
        ("query,relevant\n", "has no query"),
        ("query,relevant\na.png,b.png b.png\n", "positive twice"),
        ('query,relevant\n"a', "is no CSV"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_ground_truth(str(path))


def test_the_longest_ending_counts_and_a_reader_gives_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {".old.json": str(READERS.target(".csv")), ".bool": "operator:is_"}
    more = replace(READERS, built_in={**READERS.built_in, **lines})
    monkeypatch.setattr("schemas.ground_truth.ground_truth.READERS", more)
    for name in ("truth.old.json", "truth.bool"):
        (tmp_path / name).write_text("query,relevant\na.png,b.png\n")

    assert load_ground_truth(str(tmp_path / "truth.old.json")).gallery == ("b.png",)
    with pytest.raises(UserError, match=r"truth\.bool is read as bool, not as a dictionary"):
        load_ground_truth(str(tmp_path / "truth.bool"))


@pytest.mark.parametrize("registry", [extractors.REGISTRY, rerankers.REGISTRY, FORMATS, READERS])
def test_every_line_of_the_registries_loads(registry: Registry) -> None:
    bases = {"extractor": Extractor, "reranker": Reranker}
    for name in registry.built_in:
        if base := bases.get(registry.kind):
            assert registry.load_class(name, base)
        else:
            assert registry.load_function(name)


@pytest.mark.parametrize(
    ("module", "create", "name"),
    [(extractors, extractors.create, "colours"), (rerankers, rerankers.create, "chamfer")],
)
def test_one_line_in_the_registry_does_what_the_entry_point_does(
    module: object,
    create: Callable[[str], Extractor | Reranker],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry: Registry = module.REGISTRY  # type: ignore[attr-defined]
    installed = registry.target(name)
    assert installed
    line = replace(registry, built_in={**registry.built_in, "a line": installed})
    monkeypatch.setattr(module, "REGISTRY", line)

    assert type(create("a line")) is type(create(name))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ("extract", "--images", ".", "--out", "OUT", "--extractor", "colour"),
            [*extractors.REGISTRY.built_in, "colours"],
        ),
        (
            ("rerank", "--queries", "queries", "--out", "run", "--reranker", "chanfer"),
            [*rerankers.REGISTRY.built_in, "chamfer"],
        ),
        (
            ("export", "run", "--out", "OUT", "--format", "kaggle"),
            [*FORMATS.built_in, "submission"],
        ),
        (
            ("evaluate", "--out", "run", "--ground-truth", "wanted/0.png"),
            [*READERS.built_in, ".csv"],
        ),
    ],
)
def test_an_unknown_name_gets_a_sentence_with_the_installed_ones(
    made: Path, arguments: tuple[str, ...], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    ended = command(*arguments)

    assert ended.code != 0
    assert "Traceback" not in ended.said
    for name in names:
        assert name in ended.said
    assert not (made / "OUT").exists()
