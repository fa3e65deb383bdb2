"""import: stores from others' descriptors, in the commit protocol, and through index, search and
rerank.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.evaluate import stage as evaluate
from pipelines.exchange import import_options as exchange_import_options
from pipelines.exchange import import_store
from pipelines.index import stage as index
from pipelines.jobs.manifests import read_entries
from pipelines.options import build
from pipelines.report import stage as report
from pipelines.rerank import stage as rerank
from pipelines.results import shortlists as results_shortlists
from pipelines.search import stage as search
from pipelines.sources.listing import list_images
from pipelines.sources.spec import SourceSpec
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, save_ground_truth
from schemas.image_list import make_record_id
from schemas.importers import delg
from schemas.manifest import Manifest
from tests.support.stored import failure_rows

SETTINGS = RunSettings(workers=1)
GLOBAL_DIM, LOCAL_DIM = 48, 128


def imported(out: Path, **options: Any) -> Manifest:
    made = build(exchange_import_options.Options, {"out": str(out), **options}, "import")
    return import_store.run(made, SETTINGS)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def write_delg(
    folder: Path, name: str, vector: np.ndarray, locals_: np.ndarray, scale: float = 1.0
) -> None:
    kinds = delg.messages()
    made = kinds["DatumProto"]()
    made.float_list.value.extend(vector.tolist())
    made.shape.dim.append(len(vector))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.delg_global").write_bytes(made.SerializeToString())
    listed = kinds["DelfFeatures"]()
    for place, row in enumerate(locals_):
        feature = listed.feature.add(
            x=10.0 + place, y=20.0, scale=scale, orientation=0.0, strength=900.0 - place
        )
        feature.descriptor.float_list.value.extend(row.tolist())
        feature.descriptor.shape.dim.append(len(row))
    (folder / f"{name}.delg_local").write_bytes(listed.SerializeToString())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve scenes of two pictures each: the same locals with noise; the first of a scene asks."""
    rng = np.random.default_rng(0)
    for scene in range(12):
        vector, rows = unit(rng, GLOBAL_DIM), unit(rng, 20, LOCAL_DIM)
        for shot in range(2):
            noisy = vector + shot * 0.05 * unit(rng, GLOBAL_DIM)
            seen = rows + shot * 0.1 * unit(rng, 20, LOCAL_DIM)
            seen /= np.linalg.norm(seen, axis=1, keepdims=True)
            write_delg(tmp_path / "delg", f"{scene:02}_{shot}", noisy / np.linalg.norm(noisy), seen)
    names = [f"{scene:02}_1" for scene in range(12)]
    queries = tuple(
        QueryTruth(f"{scene:02}_0", (5.0, 6.4, 50.0, 50.0), (scene,), (), ()) for scene in range(12)
    )
    save_ground_truth(GroundTruth("scenes", tuple(names), queries), str(tmp_path / "gnd.json"))
    return tmp_path / "delg"


def reasons(store: Path) -> dict[str, str]:
    names = [entry.name for entry in read_entries(str(store)) if entry.name.startswith("failures/")]
    return {
        row.record_id: f"{row.error_class}: {row.reason}"
        for row in failure_rows(open_place(str(store)), names)
    }


def test_delg_becomes_a_store(folder: Path, tmp_path: Path) -> None:
    manifest = imported(tmp_path / "store", format="delg", input=str(folder), rows_per_part=10)
    assert (manifest.counts.inputs, manifest.counts.succeeded) == (24, 24)
    store = Store(str(tmp_path / "store"))
    assert (len(store.parts), store.dimension, store.scales) == (3, GLOBAL_DIM, delg.SCALES)
    read = store.read_global(store.parts[1])
    assert read.record_ids[0] == "delg/05_0"
    vector = delg.parse_global((folder / "05_0.delg_global").read_bytes())
    np.testing.assert_array_equal(read.descriptors[0], vector)
    row_ids = store.row_ids(store.parts[1], np.array([0]))
    found = LocalsReader(Gallery([store])).read(row_ids, read.descriptors[:1], 7)[0]
    parsed = delg.parse_local((folder / "05_0.delg_local").read_bytes())
    np.testing.assert_array_equal(
        found.descriptors, parsed.descriptors[:7].astype(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(found.xy, np.stack([parsed.x, parsed.y], 1)[:7])
    assert set(found.scale) == {4}
    row = pq.read_table(io.BytesIO(store.place.read(store.parts[1].globals.name))).to_pylist()[0]
    assert (row["width"], row["height"], row["sha256"], row["status"]) == (0, 0, "", "ok")


def test_what_cannot_be_taken_is_a_failed_row(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (folder / "01_0.delg_local").unlink()
    (folder / "02_0.delg_global").unlink()
    data = (folder / "03_0.delg_local").read_bytes()
    (folder / "03_0.delg_local").write_bytes(data[:-3])
    write_delg(folder, "04_0", unit(rng, 47), unit(rng, 3, LOCAL_DIM))
    write_delg(folder, "05_0", unit(rng, GLOBAL_DIM), unit(rng, 3, 64))
    write_delg(folder, "06_0", unit(rng, GLOBAL_DIM) * np.nan, unit(rng, 3, LOCAL_DIM))
    write_delg(folder, "07_0", unit(rng, GLOBAL_DIM) * 0, unit(rng, 3, LOCAL_DIM))
    write_delg(folder, "08_0", unit(rng, GLOBAL_DIM), unit(rng, 3, LOCAL_DIM), scale=1.1)
    write_delg(
        folder, "09_0", unit(rng, GLOBAL_DIM), unit(rng, 0, LOCAL_DIM)
    )  # nothing found: no failure
    manifest = imported(tmp_path / "store", format="delg", input=str(folder))
    told = reasons(tmp_path / "store")
    words = {
        "01_0": "missing: its .delg_local",
        "02_0": "missing: its .delg_global",
        "03_0": "damaged: .delg_local",
    }
    words |= {
        "04_0": "dimension: .delg_global",
        "05_0": "dimension: .delg_local",
        "06_0": "not_finite: .delg_global",
    }
    words |= {"07_0": "zero: .delg_global", "08_0": "scale: .delg_local"}
    assert set(told) == {f"delg/{name}" for name in words}
    for name, word in words.items():
        assert told[f"delg/{name}"].startswith(word)
    assert (manifest.counts.succeeded, manifest.counts.failed) == (16, 8)


def test_one_odd_file_does_not_set_the_dimension(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    write_delg(folder, "00_0", unit(rng, 7), unit(rng, 3, 9))
    write_delg(folder, "00_1", unit(rng, GLOBAL_DIM), unit(rng, 0, LOCAL_DIM))
    manifest = imported(tmp_path / "store", format="delg", input=str(folder))
    assert (manifest.counts.succeeded, set(reasons(tmp_path / "store"))) == (23, {"delg/00_0"})


def test_killed_and_begun_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = {"format": "delg", "input": str(folder), "rows_per_part": 5}
    imported(tmp_path / "a", **options)
    imported(tmp_path / "b", **options)
    for name in ("manifest.json", "done/part-00001.json", "done/part-00003.json"):
        (tmp_path / "b" / name).unlink()
    imported(tmp_path / "b", **options)
    first, second = (read_entries(str(tmp_path / name)) for name in "ab")
    assert first == second
    skipped = (tmp_path / "a" / "manifest.json").read_bytes()
    imported(tmp_path / "a", **options)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == skipped
    write_delg(
        folder, "03_1", np.eye(1, GLOBAL_DIM)[0], np.eye(3, LOCAL_DIM)
    )  # another size: other input
    with pytest.raises(UserError, match="made by another recipe.*inputs.descriptors"):
        imported(tmp_path / "a", **options)


def test_ground_truth_names_the_images_and_places_count_from_the_corner(
    folder: Path, tmp_path: Path
) -> None:
    truth = {"format": "delg", "input": str(folder), "ground_truth": str(tmp_path / "gnd.json")}
    manifest = imported(tmp_path / "q", take="queries", **truth)
    assert manifest.facts["unlisted"] == 12
    store = Store(str(tmp_path / "q"))
    read = store.read_global(store.parts[0])
    assert read.record_ids[3] == "delg/03_0.jpg#5,6.4,50,50"
    row_ids = store.row_ids(store.parts[0], np.array([3]))
    found = LocalsReader(Gallery([store])).read(row_ids, read.descriptors[3:4], 1)[0]
    assert found.xy.tolist() == [[15.0, 26.0]]
    imported(tmp_path / "w", take="queries", queries_cropped=False, **truth)
    store = Store(str(tmp_path / "w"))
    assert store.read_global(store.parts[0]).record_ids[3] == "delg/03_0.jpg"
    found = LocalsReader(Gallery([store])).read(row_ids, read.descriptors[3:4], 1)[0]
    assert found.xy.tolist() == [[10.0, 20.0]]


def test_a_list_asks_for_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gallery/a/03_1.jpg\n04_1.png\nnowhere.jpg\n04_1.png\n")
    (tmp_path / "both.txt").write_text("a/04_1.jpg\nb/04_1.jpg\n")
    with pytest.raises(UserError, match=r"04_1.*would belong to both"):
        imported(tmp_path / "x", format="delg", input=str(folder), list=str(tmp_path / "both.txt"))
    manifest = imported(
        tmp_path / "store", format="delg", input=str(folder), list=str(tmp_path / "list.txt")
    )
    assert (manifest.counts.succeeded, manifest.counts.failed) == (2, 2)
    assert {reason.partition(":")[0] for reason in reasons(tmp_path / "store").values()} == {
        "missing",
        "duplicate",
    }


def run_search(
    tmp_path: Path, truth: str, shortlist: int = 12
) -> dict[str, list[tuple[str, float]]]:
    indexed = {"stores": (str(tmp_path / "g"),), "out": str(tmp_path / "index"), "key": "Flat"}
    index.run(build(index.Options, indexed, "test"), SETTINGS)
    searched = {
        "queries": str(tmp_path / "q"),
        "index": str(tmp_path / "index"),
        "out": str(tmp_path / "run"),
    }
    given = {**searched, "shortlist": shortlist, **({"ground_truth": truth} if truth else {})}
    search.run(build(search.Options, given, "test"), SETTINGS)
    found: dict[str, list[tuple[str, float]]] = {}
    for entry in results_shortlists.shortlist_files(str(tmp_path / "run")):
        for name, rows in results_shortlists.read_shortlist_part(str(tmp_path / "run"), entry.name):
            found[name] = list(
                zip(
                    rows.column("record_id").to_pylist(),
                    rows.column("score").to_pylist(),
                    strict=True,
                )
            )
    return found


def test_rerank_over_imported_delg(folder: Path, tmp_path: Path) -> None:
    truth = str(tmp_path / "gnd.json")
    for take in ("queries", "gallery"):
        imported(
            tmp_path / take[0], format="delg", input=str(folder), ground_truth=truth, take=take
        )
    run_search(tmp_path, truth)
    ranked = {
        "queries": str(tmp_path / "q"),
        "out": str(tmp_path / "run"),
        "reranker": "mutual_nn",
        "shortlist": 5,
    }
    rerank.run(build(rerank.Options, {**ranked, "ground_truth": truth}, "test"), SETTINGS)
    evaluate.run(
        build(evaluate.Options, {"out": str(tmp_path / "run"), "ground_truth": truth}, "test"),
        SETTINGS,
    )
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert "1.0" in json.dumps(metrics)
    report.run(
        build(report.Options, {"out": str(tmp_path / "run"), "ground_truth": truth}, "test"),
        SETTINGS,
    )
    assert (
        (tmp_path / "run" / "report" / "report.html").stat().st_size
    )  # without pictures: there are none


def test_search_over_imported_npy_is_faiss_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gallery, queries = unit(rng, 300, 32), unit(rng, 9, 32)
    np.save(tmp_path / "g.npy", 3 * gallery)  # lengths do not matter
    np.save(tmp_path / "q.npy", queries.T)
    (tmp_path / "q.txt").write_text("".join(f"query {row}.jpg\n" for row in range(9)))
    imported(tmp_path / "g", format="npy", input=str(tmp_path / "g.npy"), rows_per_part=70)
    manifest = imported(
        tmp_path / "q", format="npy", input=str(tmp_path / "q.npy"), list=str(tmp_path / "q.txt")
    )
    assert manifest.recipe["locals"] == "none" and not any(
        entry.name.startswith("local/") for entry in read_entries(str(tmp_path / "q"))
    )
    found = run_search(tmp_path, "")
    flat = faiss.IndexFlatIP(32)
    flat.add(gallery)
    scores, rows = flat.search(queries, 12)
    for number in range(9):
        listed = found[f"q/query {number}.jpg"]
        assert [name for name, _ in listed[:12]] == [f"g/{row:09}" for row in rows[number]]
        np.testing.assert_allclose([score for _, score in listed[:12]], scores[number], atol=1e-5)


def test_revisitop_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    X, Q = unit(rng, 12, 16), unit(rng, 2, 16)
    savemat(tmp_path / "f.mat", {"X": X.T, "Q": Q.T})
    queries = (
        QueryTruth("a", (1.0, 2.0, 3.0, 4.0), (1,), (), ()),
        QueryTruth("b", None, (2,), (), ()),
    )
    save_ground_truth(
        GroundTruth("t", tuple(f"im{row}" for row in range(12)), queries),
        str(tmp_path / "gnd.json"),
    )
    given = {
        "format": "mat",
        "input": str(tmp_path / "f.mat"),
        "ground_truth": str(tmp_path / "gnd.json"),
    }
    for take, wanted, last in (("gallery", X, "f/im11.jpg"), ("queries", Q, "f/b.jpg")):
        imported(tmp_path / take, take=take, **given)
        store = Store(str(tmp_path / take))
        read = store.read_global(store.parts[0])
        np.testing.assert_array_equal(read.descriptors, wanted)
        assert read.record_ids[-1] == last
    with pytest.raises(UserError, match=r"holds 12 images, but 2 are named"):
        imported(tmp_path / "x", take="queries", variable="X", **given)


def test_ames_with_its_globals(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    block = rng.standard_normal((6, 4, 5 + LOCAL_DIM)).astype(np.float32)
    block[..., 2:4], block[..., 4] = 0, np.float32([4, 3, 2, 1])
    block[1, 2:, 3] = 1
    block[4, 1, 9] = np.nan
    with h5py.File(tmp_path / "local.hdf5", "w") as file:
        file["features"] = block
    with h5py.File(tmp_path / "global.hdf5", "w") as file:
        file["features"] = unit(rng, 6, 16)
    (tmp_path / "names.txt").write_text("".join(f"{row}.jpg\n" for row in range(6)))
    given = {
        "format": "ames",
        "input": str(tmp_path / "local.hdf5"),
        "list": str(tmp_path / "names.txt"),
    }
    with pytest.raises(UserError, match="--globals"):
        imported(tmp_path / "x", **given)
    manifest = imported(tmp_path / "store", globals=str(tmp_path / "global.hdf5"), **given)
    assert (manifest.counts.succeeded, manifest.counts.failed) == (5, 1)
    assert reasons(tmp_path / "store")["local/4.jpg"].startswith("not_finite")
    store = Store(str(tmp_path / "store"))
    read = store.read_global(store.parts[0])
    found = LocalsReader(Gallery([store])).read(
        np.array([0, 1, 5]), read.descriptors[[0, 1, 5]], 99
    )
    assert [len(item.scale) for item in found] == [4, 2, 4]
    np.testing.assert_array_equal(found[0].xy, block[0][:, [1, 0]])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["delg", "nowhere", "--out", "x"], "no such folder"),
        (["delg", ".", "--out", "x"], "holds no .delg_global"),
        (["pickle", "f", "--out", "x"], "must be one of|invalid choice"),
        (["npy", "f.npy", "--out", "x"], "f.npy: there is no such file"),
        (["npy", "--out", "x"], "INPUT is missing"),
        (["npy", "f.npy", "--out", "x", "--ground-truth", "g.json"], "--take"),
        (["npy", "f.npy", "--out", "x", "--list", "a", "--record-ids", "b"], "give one of"),
        (["npy", "memory://bucket/f.npy", "--out", "x"], "only local files"),
        (["npy", "f.npy", "--out", "x", "--scales", "0"], "--scales is 0.0; it must be above 0"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments]) == 2
    printed = capsys.readouterr().err
    assert re.search(told, printed) and "Traceback" not in printed


@pytest.mark.parametrize("record_id", ["../../0", "photos/../0", "photos//etc/0", "./0"])
def test_record_ids_stay_within_their_source(
    record_id: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4), np.float32))
    (tmp_path / "ids.txt").write_text(f"{record_id}\n")
    given = [str(tmp_path / "one.npy"), "--record-ids", str(tmp_path / "ids.txt")]
    assert main(["import", "npy", *given, "--out", str(tmp_path / "store")]) == 2
    printed = capsys.readouterr().err
    assert "ids.txt: line 1" in printed and "outside its source" in printed
    assert not (tmp_path / "store").exists()


def test_sigkill_in_the_middle(folder: Path, tmp_path: Path, start: Any) -> None:
    for scene in range(40):  # enough to be interrupted
        write_delg(folder, f"more/{scene}", np.eye(1, GLOBAL_DIM)[0], np.eye(2, LOCAL_DIM))
    command = ["import", "delg", folder, "--rows-per-part", "3", "--workers", "1"]
    assert start(*command, "--out", tmp_path / "a").end() == 0
    running = start(*command, "--out", tmp_path / "b")
    running.until(lambda: len(list((tmp_path / "b").glob("done/*.json"))) > 2, "three parts")
    running.kill_all()
    assert not (tmp_path / "b" / "manifest.json").exists()
    again = start(*command, "--out", tmp_path / "b")
    assert again.end() == 0, again.text
    assert read_entries(str(tmp_path / "a")) == read_entries(str(tmp_path / "b"))


def test_with_the_images_records_are_those_of_extract(photographs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for path in sorted(photographs.iterdir())[:-1]:
        write_delg(tmp_path / "delg", path.stem, unit(rng, GLOBAL_DIM), unit(rng, 3, LOCAL_DIM))
    given = {
        "format": "delg",
        "input": str(tmp_path / "delg"),
        "images": str(photographs),
        "locals": False,
    }
    manifest = imported(tmp_path / "store", **given)
    listed = list_images(SourceSpec(str(photographs)))
    assert (manifest.counts.inputs, manifest.counts.failed, manifest.recipe["locals"]) == (
        len(listed),
        1,
        "none",
    )
    assert set(reasons(tmp_path / "store")) == {listed[-1].record_id}
    store = Store(str(tmp_path / "store"))
    assert store.references([listed[0].record_id])[listed[0].record_id] == listed[0]
    np.save(tmp_path / "v.npy", unit(rng, 30, 8))
    with pytest.raises(UserError, match="which row is which image"):
        imported(
            tmp_path / "x", format="npy", input=str(tmp_path / "v.npy"), images=str(photographs)
        )


def test_clip_retrieval_by_the_names_of_its_metadata(tmp_path: Path) -> None:
    wanted = unit(np.random.default_rng(0), 5, 8).astype(np.float16)
    (tmp_path / "clip" / "img_emb").mkdir(parents=True)
    (tmp_path / "clip" / "metadata").mkdir()
    np.save(tmp_path / "clip" / "img_emb" / "img_emb_0.npy", wanted)
    names = pa.table({"image_path": [f"/data/{row} 100%.jpg" for row in range(5)]})
    pq.write_table(names, tmp_path / "clip" / "metadata" / "metadata_0.parquet")
    imported(tmp_path / "store", format="clip", input=str(tmp_path / "clip"), source="laion")
    store = Store(str(tmp_path / "store"))
    read = store.read_global(store.parts[0])
    assert read.record_ids[4] == "laion/data/4 100%25.jpg"
    np.testing.assert_array_equal(read.descriptors, wanted.astype(np.float32))


def test_record_ids_of_awkward_sources_pass_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [make_record_id("50% #1\n", f"{row}.jpg") for row in range(3)]
    ids.append(make_record_id("50% #1\n", b"\xff#.jpg", (1.0, 2.5, 3.0, 1e-7)))
    (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8-sig")
    np.save(tmp_path / "v.npy", unit(np.random.default_rng(0), 4, 8))
    given = {
        "format": "npy",
        "input": str(tmp_path / "v.npy"),
        "record_ids": str(tmp_path / "ids.txt"),
    }
    assert imported(tmp_path / "store", **given).counts.succeeded == 4
    store = Store(str(tmp_path / "store"))
    assert list(store.read_global(store.parts[0]).record_ids) == ids
    assert main(["verify", str(tmp_path / "store")]) == 0, capsys.readouterr().out
    for line, told in (("a/b#1,2,3,e", "is no record id"), ("a%FF/b", "no record can hold it")):
        (tmp_path / "ids.txt").write_text("\n".join([*ids[:3], line]))
        with pytest.raises(UserError, match=f"line 4: .*{told}"):
            imported(tmp_path / "x", **given)


def test_imported_stores_pass_verify(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "01_0.delg_local").unlink()
    imported(tmp_path / "store", format="delg", input=str(folder))
    assert main(["verify", str(tmp_path / "store")]) == 0
    assert "is whole: 24 inputs = 23 succeeded + 1 failed" in capsys.readouterr().out


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", unit(np.random.default_rng(0), 5, 8))
    assert (
        main(
            [
                "import",
                "npy",
                str(tmp_path / "v.npy"),
                "--out",
                str(tmp_path / "s"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert main(["export", str(tmp_path / "s"), "--out", str(tmp_path / "e")]) == 0
    assert "5 images of 8 dimensions" in capsys.readouterr().out
