"""rerank with a cascade, over locals stored as int8: each protocol's list keeps its own best, and
labels never leak.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.jobs.manifests import read_entries
from pipelines.options import build
from pipelines.rerank import stage as rerank
from pipelines.results import scores as results_scores
from pipelines.search import stage as search
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, save_ground_truth
from schemas.local_descriptors import decoded, read_part

TINY = "tests.tiny_extractor:TinyExtractor"
SETTINGS = RunSettings(workers=1)
CASCADE = {
    "keep": 3,
    "first": "mutual_nn",
    "second": "geometric",
    "first_options": {"query_tokens": 5, "gallery_tokens": 5, "min_similarity": 0.0},
    "second_options": {"max_distance": 1.3, "query_tokens": 14},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two queries, 24 images, eight of them views of each query, easy ones most alike; run with and
    without truth.
    """
    root = tmp_path_factory.mktemp("cascade")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    names, patterns = [], rng.integers(0, 256, (2, 6, 6, 3)).astype(np.float32)
    for number in range(26):
        noise = rng.normal(0, 4 + 6 * number, (72, 72, 3))
        pattern = (
            patterns[number % 2]
            if number < 18
            else rng.integers(0, 256, (6, 6, 3)).astype(np.float32)
        )
        picture = np.clip(np.kron(pattern, np.ones((12, 12, 1))) + noise, 0, 255).astype(np.uint8)
        names.append(f"{number:02}.png")
        Image.fromarray(picture).save(root / "images" / names[-1])
    box = (0.0, 0.0, 72.0, 72.0)
    queries = tuple(
        QueryTruth(
            names[q], box, tuple(range(q, 6, 2)), tuple(range(6 + q, 12, 2)), (12 + q, 14 + q)
        )
        for q in (0, 1)
    )
    save_ground_truth(GroundTruth("small", tuple(names[2:]), queries), str(root / "gnd.json"))
    for take in ("gallery", "queries"):
        described = {
            "images": str(root / "images"),
            "ground_truth": str(root / "gnd.json"),
            "take": take,
        }
        described.update(out=str(root / take), extractor=TINY, local_dtype="int8")
        extract.run(build(extract_options.Options, described, "test"), SETTINGS)
    index.run(
        build(
            index.Options, {"stores": (str(root / "gallery"),), "out": str(root / "index")}, "test"
        ),
        SETTINGS,
    )
    for run in ("labelled", "unlabelled"):
        searched = {
            "queries": str(root / "queries"),
            "index": str(root / "index"),
            "out": str(root / run),
        }
        truth = {"ground_truth": str(root / "gnd.json")} if run == "labelled" else {}
        search.run(build(search.Options, {**searched, "shortlist": 10, **truth}, "test"), SETTINGS)
        ranked = {
            "queries": str(root / "queries"),
            "out": str(root / run),
            "reranker": "cascade",
            "shortlist": 10,
        }
        rerank.run(
            build(rerank.Options, {**ranked, "reranker_option": CASCADE, **truth}, "test"), SETTINGS
        )
    return root


def stored_rows(run: Path) -> list[dict[str, object]]:
    place = open_place(str(run / "scores"))
    return [
        row
        for e in read_entries(place.url)
        for row in pq.read_table(io.BytesIO(place.read(e.name))).to_pylist()
    ]


def test_each_protocol_reranks_its_own_best(made: Path) -> None:
    stored = {(row["query_id"], row["record_id"]): row for row in stored_rows(made / "labelled")}
    depth = set()
    for protocol in ("deploy", "medium", "hard"):
        for query, rows in results_scores.read_ranking(str(made / "labelled"), protocol):
            listed = [row for row in rows.to_pylist() if row["reranked"]]
            assert len(listed) == 10
            by_global = sorted(listed, key=lambda row: -row["global_score"])
            by_first = sorted(
                by_global, key=lambda row: -stored[query, row["record_id"]]["first_logit"]
            )
            kept = sorted(by_first[:3], key=by_global.index)
            kept.sort(key=lambda row: -stored[query, row["record_id"]]["logit"])
            assert [row["record_id"] for row in listed] == [
                row["record_id"] for row in kept + by_first[3:]
            ]
            assert [row["logit"] for row in listed[:3]] == [
                stored[query, r["record_id"]]["logit"] for r in kept
            ]
            assert all(float(row["logit"]).is_integer() for row in kept)  # inliers, raw
            assert listed[3]["logit"] <= listed[2]["logit"] - 1
            depth.add(tuple(sorted(row["record_id"] for row in kept)))
    assert len(depth) > 2  # the protocols keep different ones


def test_without_labels_the_ranking_is_the_same(made: Path) -> None:
    with_labels = list(results_scores.read_ranking(str(made / "labelled"), "deploy"))
    without = list(results_scores.read_ranking(str(made / "unlabelled"), "deploy"))
    assert len(with_labels) == len(without) == 2
    for (query, rows), (same, expected) in zip(with_labels, without, strict=True):
        assert query == same and repr(rows.to_pylist()) == repr(expected.to_pylist())


def test_int8_locals_are_read_by_byte_ranges(made: Path) -> None:
    store = Store(str(made / "gallery"))
    assert (
        store.manifest.recipe["local_dtype"] == "int8"
        and store.manifest.facts["bytes_a_local"] == 128 + 13
    )
    part = store.parts[0]
    whole = read_part(store.place.path(part.locals.name))
    assert whole["descriptor"].dtype == np.int8
    rows = np.array([0, 5, 11])
    read = LocalsReader(Gallery([store])).read(
        store.row_ids(part, rows), np.zeros((3, 96), np.float32), 7
    )
    for row, image in zip(rows, read, strict=True):
        start = whole["offset"][row]
        np.testing.assert_array_equal(
            image.descriptors, decoded(whole["descriptor"])[start : start + 7]
        )
        np.testing.assert_array_equal(image.xy, whole["xy"][start : start + 7])
        np.testing.assert_allclose(np.linalg.norm(image.descriptors, axis=1), 1, atol=1e-6)


def test_int8_is_another_recipe_and_refused(made: Path) -> None:
    described = {
        "images": str(made / "images"),
        "ground_truth": str(made / "gnd.json"),
        "take": "gallery",
    }
    described.update(out=str(made / "gallery"), extractor=TINY, local_dtype="float16")
    with pytest.raises(UserError, match='local_dtype was "int8", is now "float16"'):
        extract.run(build(extract_options.Options, described, "test"), SETTINGS)
