"""The stages against plain numpy on a small real folder: shortlist, union of shortlists, replay,
metrics, skipping.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.engines.settings import RunSettings
from pipelines.evaluate import stage as evaluate
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.jobs.manifests import read_entries
from pipelines.options import build
from pipelines.report import stage as report
from pipelines.rerank import stage as rerank
from pipelines.results import scores as results_scores
from pipelines.results import shortlists as results_shortlists
from pipelines.run.stage import run_config
from pipelines.search import stage as search
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import PROTOCOLS, positions_of
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import (
    GroundTruth,
    QueryTruth,
    load_ground_truth,
    save_ground_truth,
)
from schemas.local_descriptors import read_part
from tests.support.stored import failure_rows

TINY = "tests.tiny_extractor:TinyExtractor"
SETTINGS = RunSettings(workers=2)
INSTANCES, VIEWS, DISTRACTORS = 6, 6, 14


def picture(instance: int, view: int) -> Image.Image:
    """A blocky pattern of the instance with noise of the view."""
    pattern = np.random.default_rng(instance).integers(0, 256, (6, 6, 3)).astype(np.float32)
    big = np.kron(pattern, np.ones((12, 12, 1)))
    noise = np.random.default_rng((instance, view)).normal(0, 12 * view + 4, big.shape)
    return Image.fromarray(np.clip(big + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, ground truth, stores, index and a run over all stages."""
    root = tmp_path_factory.mktemp("stages")
    names, lists = [], [([], [], []) for _ in range(INSTANCES)]
    (root / "images" / "gallery").mkdir(parents=True)
    (root / "images" / "queries").mkdir()
    for instance in range(INSTANCES):
        picture(instance, 0).save(root / "images" / "queries" / f"{instance}.png")
        for view in range(1, VIEWS + 1):
            lists[instance][(view - 1) // 2].append(len(names))  # two easy, two hard, two junk
            names.append(f"gallery/{instance}-{view}.png")
            picture(instance, view).save(root / "images" / names[-1])
    for number in range(DISTRACTORS):
        names.append(f"gallery/distractor-{number}.png")
        picture(100 + number, 1).save(root / "images" / names[-1])
    queries = tuple(
        QueryTruth(f"queries/{i}.png", (6.0, 6.0, 60.0, 60.0), *(tuple(kind) for kind in lists[i]))
        for i in range(INSTANCES)
    )
    save_ground_truth(GroundTruth("small", tuple(names), queries), str(root / "gnd.json"))
    run_all(root, "run")
    return root


def store_options(root: Path, take: str) -> extract_options.Options:
    return build(
        extract_options.Options,
        {
            "images": str(root / "images"),
            "ground_truth": str(root / "gnd.json"),
            "take": take,
            "out": str(root / take),
            "extractor": TINY,
            "rows_per_part": 9,
        },
        "test",
    )


def run_all(root: Path, run: str, key: str = "Flat", **more: object) -> None:
    truth, out = str(root / "gnd.json"), str(root / run)
    extract.run(store_options(root, "gallery"), SETTINGS)
    extract.run(store_options(root, "queries"), SETTINGS)
    indexed = {"stores": (str(root / "gallery"),), "out": f"{out}-index", "key": key, **more}
    index.run(build(index.Options, indexed, "test"), SETTINGS)
    searched = {
        "queries": str(root / "queries"),
        "index": f"{out}-index",
        "out": out,
        "shortlist": 5,
        "nprobe": 4,
    }
    searched.update(ground_truth=truth, queries_per_block=4)
    search.run(build(search.Options, searched, "test"), SETTINGS)
    ranked = {"queries": str(root / "queries"), "out": out, "reranker": "mutual_nn", "shortlist": 5}
    rerank.run(
        build(rerank.Options, {**ranked, "ground_truth": truth, "queries_per_unit": 2}, "test"),
        SETTINGS,
    )
    evaluate.run(build(evaluate.Options, {"out": out, "ground_truth": truth}, "test"), SETTINGS)
    report.run(build(report.Options, {"out": out, "ground_truth": truth}, "test"), SETTINGS)


def all_globals(root: Path, take: str) -> tuple[list[str], np.ndarray]:
    store = Store(str(root / take))
    parts = [store.read_global(part) for part in store.parts]
    return [name for part in parts for name in part.record_ids], np.concatenate(
        [part.descriptors for part in parts]
    )


def shortlist(root: Path, run: str) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for entry in results_shortlists.shortlist_files(str(root / run)):
        for name, rows in results_shortlists.read_shortlist_part(str(root / run), entry.name):
            pairs = zip(
                rows.column("record_id").to_pylist(), rows.column("score").to_pylist(), strict=True
            )
            found[name] = list(pairs)
    return found


def test_store_holds_what_the_extractor_says(made: Path) -> None:
    names, descriptors = all_globals(made, "gallery")
    truth = load_ground_truth(str(made / "gnd.json"))
    assert names == [f"images/{name}" for name in truth.gallery]
    from rrt_core.images import decode
    from tests.tiny_extractor import TinyExtractor

    data = (made / "images" / truth.gallery[10]).read_bytes()
    described = TinyExtractor().describe([decode(data, "x")])[0]
    stored = described.global_descriptor.astype(np.float16)
    np.testing.assert_array_equal(descriptors[10], stored)
    store = Store(str(made / "gallery"))
    row = store.row_ids(store.parts[1], np.array([1]))
    read = LocalsReader(Gallery([store])).read(row, descriptors[10:11], 7)[0]
    np.testing.assert_array_equal(
        read.descriptors, described.descriptors[:7].astype(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(read.xy, described.xy[:7])
    whole = read_part(store.place.path(store.parts[1].locals.name))
    assert whole["offset"].tolist() == [16 * i for i in range(10)]


def test_queries_are_cropped(made: Path) -> None:
    store = Store(str(made / "queries"))
    rows = [
        row
        for part in store.parts
        for row in pq.read_table(store.place.path(part.globals.name)).to_pylist()
    ]
    assert rows[0]["record_id"] == "images/queries/0.png#6,6,60,60"
    assert rows[0]["box"] == [6, 6, 60, 60] and rows[0]["width"] == 72
    assert rows[0]["resize_factor"] == pytest.approx(60 / 72)


def test_shortlist_equals_numpy(made: Path) -> None:
    names, gallery = all_globals(made, "gallery")
    asked, queries = all_globals(made, "queries")
    found = shortlist(made, "run")
    assert list(found) == asked
    for name, query in zip(asked, queries, strict=True):
        exact = (gallery.astype(np.float64) * query.astype(np.float64)).sum(1).astype(np.float32)
        order = sorted(range(len(names)), key=lambda i: (-exact[i], names[i].encode()))
        assert [record for record, _ in found[name]] == [names[i] for i in order]
        assert [score for _, score in found[name]] == [float(exact[i]) for i in order]


@pytest.mark.parametrize("key", ["Flat", "IVF4,Flat"])
def test_many_shards_files_and_blocks_give_the_same_shortlist(made: Path, key: str) -> None:
    run = f"sharded-{key.replace(',', '-')}"
    options = {
        "stores": (str(made / "gallery"),),
        "out": f"{made / run}-index",
        "key": key,
        "rows_per_shard": 18,
    }
    index.run(
        build(index.Options, {**options, "max_memory": 8_000, "training_rows": 50}, "test"),
        SETTINGS,
    )
    files = read_entries(f"{made / run}-index/search")
    assert len(files) > 1
    searched = {
        "queries": str(made / "queries"),
        "index": f"{made / run}-index",
        "out": str(made / run),
        "nprobe": 4,
    }
    search.run(build(search.Options, {**searched, "queries_per_block": 2}, "test"), SETTINGS)
    assert shortlist(made, run) == shortlist(made, "run")


def test_each_pair_is_scored_once_and_rankings_replay(made: Path) -> None:
    truth = load_ground_truth(str(made / "gnd.json"))
    place = open_place(str(made / "run" / "scores"))
    tables = [
        pq.read_table(io.BytesIO(place.read(entry.name))) for entry in read_entries(place.url)
    ]
    scored = {
        (r["query_id"], r["record_id"]): r["logit"] for table in tables for r in table.to_pylist()
    }
    assert len(scored) == sum(len(table) for table in tables)
    position = {f"images/{name}": number for number, name in enumerate(truth.gallery)}
    before = shortlist(made, "run")
    union = set()
    for protocol in ("deploy", "medium", "hard"):
        rankings = dict(results_scores.read_ranking(str(made / "run"), protocol))
        for number, (query, listed) in enumerate(before.items()):
            order = [record for record, _ in listed]
            rule = (
                ()
                if protocol == "deploy"
                else positions_of(truth.queries[number], PROTOCOLS[protocol].junk)
            )
            junk = {record for record in order if position[record] in set(rule)}
            kept = [record for record in order if record not in junk]
            union |= {(query, record) for record in kept[:5]}
            best = sorted(kept[:5], key=lambda record: -scored[query, record])
            expected = [*best, *kept[5:], *[record for record in order if record in junk]]
            rows = rankings[query].to_pylist()
            assert [row["record_id"] for row in rows] == expected
            assert [row["reranked"] for row in rows] == [True] * 5 + [False] * (len(order) - 5)
            assert all(np.isnan(row["logit"]) != row["reranked"] for row in rows)
    assert set(scored) == union


def test_metrics_are_those_of_the_rankings(made: Path) -> None:
    metrics = evaluate.read_metrics(str(made / "run"))
    assert list(metrics["rankings"]) == ["global", "reranked", "deploy"]
    truth = load_ground_truth(str(made / "gnd.json"))
    position = {f"images/{name}": number for number, name in enumerate(truth.gallery)}
    precisions = []
    for query, listed in zip(truth.queries, shortlist(made, "run").values(), strict=True):
        places, junk_before = [], 0
        for rank, (record, _) in enumerate(listed):
            if position[record] in query.junk:
                junk_before += 1
            elif position[record] in (*query.easy, *query.hard):
                places.append(rank - junk_before)
        pairs = [((j / p if p else 1.0) + (j + 1) / (p + 1)) / 2 for j, p in enumerate(places)]
        precisions.append(sum(pairs) / 4)
    assert metrics["rankings"]["global"]["medium"]["mAP"] == pytest.approx(
        np.mean(precisions), abs=1e-12
    )


def test_report_is_one_page(made: Path) -> None:
    page = (made / "run" / "report" / "report.html").read_text()
    assert page.startswith("<!") and "queries/0.png" in page and "mutual_nn" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page


def test_a_second_run_skips_everything(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    run_all(made, "run")
    after = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if before.get(path) != time} == {}
    assert capfd.readouterr().err.count("already made") == 11


def test_k_below_what_the_protocols_need_is_refused(made: Path) -> None:
    searched = {
        "queries": str(made / "queries"),
        "index": f"{made}/run-index",
        "out": str(made / "other"),
        "k": 8,
    }
    with pytest.raises(UserError, match="at least 9"):  # 5 + 2 easy + 2 junk
        search.run(
            build(
                search.Options,
                {**searched, "shortlist": 5, "ground_truth": f"{made}/gnd.json"},
                "t",
            ),
            SETTINGS,
        )


def test_a_mix_of_extractors_is_refused(made: Path) -> None:
    options = build(
        extract_options.Options,
        {
            "images": str(made / "images" / "queries"),
            "out": str(made / "others"),
            "extractor": TINY,
            "extractor_option": {"max_locals": 3},
        },
        "test",
    )
    extract.run(options, SETTINGS)
    searched = {
        "queries": str(made / "others"),
        "index": f"{made}/run-index",
        "out": str(made / "mixed"),
    }
    with pytest.raises(UserError, match="other settings or weights"):
        search.run(build(search.Options, searched, "test"), SETTINGS)
    stores = (str(made / "gallery"), str(made / "others"))
    with pytest.raises(UserError, match="other settings or weights"):
        index.run(
            build(index.Options, {"stores": stores, "out": str(made / "mixed-index")}, "test"),
            SETTINGS,
        )


def test_another_recipe_is_refused_by_name(made: Path) -> None:
    options = {
        "queries": str(made / "queries"),
        "out": str(made / "run"),
        "reranker": "mutual_nn",
        "shortlist": 6,
    }
    with pytest.raises(UserError, match="shortlist was 5, is now 6"):
        rerank.run(
            build(rerank.Options, {**options, "ground_truth": f"{made}/gnd.json"}, "test"), SETTINGS
        )


def test_two_stores_in_one_index(made: Path) -> None:
    stores = (str(made / "gallery"), str(made / "queries"))
    index.run(
        build(index.Options, {"stores": stores, "out": f"{made}/both-index"}, "test"), SETTINGS
    )
    searched = {
        "queries": str(made / "queries"),
        "index": f"{made}/both-index",
        "out": f"{made}/both",
    }
    search.run(build(search.Options, {**searched, "shortlist": 3}, "test"), SETTINGS)
    for query, listed in shortlist(made, "both").items():
        assert listed[0][0] == query and listed[0][1] == pytest.approx(1.0, abs=1e-3)
        assert len(listed) == INSTANCES * VIEWS + DISTRACTORS + INSTANCES
    manifest = json.loads((made / "both-index" / "search" / "manifest.json").read_text())
    assert [store["base"] for store in manifest["facts"]["stores"]] == [0, 6]


def test_an_id_that_stands_twice_is_a_failed_row_wherever_it_stands(made: Path) -> None:
    listed = made / "list.csv"
    names = [
        "gallery/0-1.png",
        "gallery/1-1.png",
        "gallery/0-1.png",
        "gallery/2-1.png",
        "gallery/1-1.png",
    ]
    listed.write_text("path,label\n" + "".join(f"{name},7\n" for name in names))
    options = {
        "images": str(made / "images"),
        "list": str(listed),
        "out": str(made / "twice"),
        "extractor": TINY,
    }
    manifest = extract.run(
        build(extract_options.Options, {**options, "rows_per_part": 2}, "test"), SETTINGS
    )
    assert (manifest.counts.inputs, manifest.counts.succeeded, manifest.counts.failed) == (5, 3, 2)
    store = Store(str(made / "twice"))
    lost = failure_rows(store.place, [part.failures.name for part in store.parts if part.failures])
    assert [(row.record_id, row.error_class) for row in lost] == [
        ("images/gallery/0-1.png", "duplicate"),
        ("images/gallery/1-1.png", "duplicate"),
    ]


def test_a_run_without_ground_truth_is_ranked_and_shown(made: Path) -> None:
    config = {
        "images": str(made / "images" / "gallery"),
        "queries": str(made / "images" / "queries"),
        "out": str(made / "plain"),
        "extract": {"extractor": TINY},
        "rerank": {"reranker": "mutual_nn", "shortlist": 10},
    }
    results = run_config(config, "test", SETTINGS)
    assert "metrics" not in results
    page = Path(results["report"]).read_text()
    assert "There is no ground truth" in page
    rankings = dict(results_scores.read_ranking(str(made / "plain" / "run"), "deploy"))
    assert len(rankings) == INSTANCES
    assert sum(rankings["queries/0.png"].column("reranked").to_pylist()) == 10


def test_weights_for_other_descriptors_are_refused(made: Path) -> None:
    options = {
        "queries": str(made / "queries"),
        "out": str(made / "run"),
        "reranker": "rrt",
        "shortlist": 5,
    }
    with pytest.raises(
        UserError, match="trained for descriptors of efficientnet .* holds those of tiny"
    ):
        rerank.run(build(rerank.Options, options, "test"), SETTINGS)
