"""train on a small real store: labels, mining from both sources, resuming after kills, two
processes, its mistakes.
"""

from __future__ import annotations

import csv
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.options import build
from pipelines.rerank import stage as rerank
from pipelines.search import stage as search
from pipelines.stores.store import Store
from pipelines.train import options as train_options
from pipelines.train import stage as train
from pipelines.train.batches import PairBatches, Prefetched, TokenCache, read_budget
from pipelines.train.neighbours import exact_neighbours, shortlist_neighbours
from pipelines.train.records import copy_globals, open_stores_of, read_records
from rrt_core.checkpoints import load_checkpoint
from rrt_core.devices import choose_device
from rrt_core.rerankers import create
from rrt_core.training.loop import PairBatch
from rrt_core.training.mining import NONE, TripletSampler, choose_anchors
from rrt_core.training.processes import Processes
from schemas.errors import UserError
from tests.support.watching import EXTRACTOR, ROOT, Running, wait_for

LABELS, VIEWS = 14, 8
PATIENCE = 500.0  # a command imports torch, which takes long on a busy machine
SETTINGS = RunSettings(workers=1)
SMALL = {
    "labels": "folder",
    "neighbours": 20,
    "least_positives": 2,
    "triplets": 5,
    "layers": 2,
    "feedforward": 32,
    "validation": 0.2,
    "validation_anchors": 4,
    "validation_pairs": 20,
    "query_tokens": "4-8",
    "gallery_tokens": "8",
    "symmetric_order": True,
    "checkpoint_every": 5,
    "evaluate_every": 15,
    "lr": 1e-3,
}


def view(label: int, number: int) -> Image.Image:
    """A blocky pattern of the label under noise and another brightness."""
    rng = np.random.default_rng((label, number))
    pattern = np.random.default_rng(label).integers(0, 256, (8, 8, 3)).astype(np.float32)
    big = np.kron(pattern, np.ones((8, 8, 1))) * rng.uniform(0.5, 1.0)
    return Image.fromarray(np.clip(big + rng.normal(0, 25, big.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of LABELS folders with VIEWS pictures each, in parts of 40, beside its images."""
    root = tmp_path_factory.mktemp("train")
    for label in range(LABELS):
        folder = root / "images" / "shots" / f"thing {label:02}"
        folder.mkdir(parents=True)
        for number in range(VIEWS):
            view(label, number).save(folder / f"{number}.png")
    given = {
        "images": str(root / "images"),
        "out": str(root / "store"),
        "extractor": EXTRACTOR,
        "rows_per_part": 40,
    }
    extract.run(build(extract_options.Options, given, "test"), SETTINGS)
    return root / "store"


def options(store: Path, out: Path, **more: Any) -> train_options.Options:
    return build(
        train_options.Options, {"stores": (str(store),), "out": str(out), **SMALL, **more}, "test"
    )


def train_here(store: Path, out: Path, overwrite: bool = False, **more: Any) -> Any:
    before = torch.get_num_threads()
    try:
        return train.run(
            options(store, out, **more), train_options.Settings(threads=1, overwrite=overwrite)
        )
    finally:
        torch.set_num_threads(before)


def flags(store: Path, out: Path, **more: Any) -> list[str]:
    """The same as options and train_here, for a command line."""
    words = ["train", "--stores", str(store), "--out", str(out), "--threads", "1"]
    for name, value in {**SMALL, **more}.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return words


def notes_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "numpy") as file:
        found: dict[str, Any] = json.loads(file.metadata()["notes"])
    return found


def log_of(out: Path) -> list[list[str]]:
    """Lines of the log without wall times."""
    with (out / "log.csv").open(newline="") as file:
        return [row for row in csv.reader(file) if row[1] != "seconds"]


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole training that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "weights"
    train_here(store, out, steps=60)
    return out


def test_what_a_training_leaves(
    store: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in undisturbed.iterdir()} - {"tensorboard"}
    assert names == {
        "best.safetensors",
        "log.csv",
        "manifest.json",
        "parts.parquet",
        "plan",
        "plot.png",
        "state.pt",
        "weights.safetensors",
    }
    rows = log_of(undisturbed)
    steps = [int(row[0]) for row in rows[1:] if row[1] == "loss"]
    assert rows[0] == ["step", "name", "value"] and steps == list(range(5, 61, 5))
    losses = [float(row[2]) for row in rows if row[1] == "loss"]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    held_out = {int(row[0]): float(row[2]) for row in rows if row[1] == "val_map"}
    assert list(held_out) == [15, 30, 45, 60]
    manifest = json.loads((undisturbed / "manifest.json").read_bytes())
    selected = manifest["facts"]["selected"]
    best = max(held_out, key=lambda step: (held_out[step], -step))
    assert selected["step"] == best and selected["val_map"] == pytest.approx(
        held_out[best], abs=1e-5
    )
    notes = notes_of(undisturbed / "best.safetensors")
    assert notes["step"] == best and notes["figures"]["val_map"] == selected["val_map"]
    assert notes["extractor"] == Store(str(store)).extractor
    assert notes["data"]["records"] == LABELS * VIEWS and notes["training"]["seed"] == 0
    assert "held-out" in notes["selected_by"]
    assert (undisturbed / "plot.png").read_bytes()[:4] == b"\x89PNG"
    train_here(store, undisturbed, steps=60)
    assert "already made" in capsys.readouterr().err


def test_other_options_are_refused(store: Path, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another recipe \(lr was 0\.001, is now 0\.002\)"):
        train_here(store, undisturbed, steps=60, lr=2e-3)
    labels = tmp_path / "labels.csv"
    names = [row.record_id for row in Store(str(store)).references(_ids(store)).values()]
    labels.write_text("".join(f'"{name}",{number % 3}\n' for number, name in enumerate(names)))
    with pytest.raises(UserError, match="labels_sha256 was"):
        train_here(store, undisturbed, steps=60, labels=str(labels))


def _ids(store: Path) -> list[str]:
    opened = Store(str(store))
    return [name for part in opened.parts for name in opened.read_global(part).record_ids]


def _reached(out: Path, step: int) -> bool:
    log = out / "log.csv"
    return log.exists() and f"\n{step},loss" in log.read_text()


def _reached_or_ended(out: Path, step: int, ended: Callable[[], int | None]) -> bool:
    return _reached(out, step) or ended() is not None


def test_a_killed_run_goes_on_to_the_same_weights(
    start: Any, store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weights"
    running: Running = start(*flags(store, out, steps=60))
    ended = running.process.poll
    wait_for(functools.partial(_reached_or_ended, out, 20, ended), "step 20", PATIENCE)
    running.kill_all()
    assert _reached(out, 20) and not (out / "manifest.json").exists(), running.text
    with (out / "log.csv").open(
        "a"
    ) as log:  # what a kill between log and checkpoint leaves, and half a line
        log.write("60,loss,9\n60,accu")
    running = start(*flags(store, out, steps=60))
    assert running.end(PATIENCE) == 0, running.text
    assert "goes on from step" in running.text and "Traceback" not in running.text
    for name in ("weights.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert log_of(out) == log_of(undisturbed)
    contents = [
        json.loads((folder / "manifest.json").read_bytes())["content"]
        for folder in (out, undisturbed)
    ]
    assert contents[0] == contents[1]


def test_two_processes_equal_one(store: Path, tmp_path: Path) -> None:
    """20 steps of 5 triplets, 2 and 3 a process: weights to 1e-5 after AdamW at lr 1e-3."""
    train_here(store, tmp_path / "one", steps=20)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, "-m", "pipelines", *flags(store, tmp_path / "two", steps=20)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr and done.stderr.count("step 20:") == 1
    one, two = (
        load_checkpoint(str(tmp_path / name / "weights.safetensors")) for name in ("one", "two")
    )
    for key, value in one.model.state_dict().items():
        assert float((value - two.model.state_dict()[key]).abs().max()) <= 1e-5, key
    figures = [
        notes_of(tmp_path / name / "weights.safetensors")["figures"] for name in ("one", "two")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)


def test_dry_run_writes_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(store, tmp_path / "weights", epochs=2)
    assert main([*given, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{LABELS * VIEWS} with {LABELS} labels" in said and "nothing was written" in said
    assert "(2.0" in said and "anchors" in said and "records; 0 have fewer than 2" in said
    assert not (tmp_path / "weights").exists()


def test_weights_serve_rerank_and_refuse_other_descriptors(
    store: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(undisturbed / "best.safetensors")
    index.run(
        build(index.Options, {"stores": (str(store),), "out": str(tmp_path / "index")}, "test"),
        SETTINGS,
    )
    given = {"queries": str(store), "index": str(tmp_path / "index"), "out": str(tmp_path / "run")}
    search.run(build(search.Options, {**given, "shortlist": 5}, "test"), SETTINGS)
    ranked = {"queries": str(store), "out": str(tmp_path / "run"), "shortlist": 5}
    ranked["reranker_option"] = {"weights": weights}
    manifest = rerank.run(build(rerank.Options, ranked, "test"), SETTINGS)
    assert manifest.counts.inputs == LABELS * VIEWS
    notes = create("rrt", weights=weights).notes
    assert notes["extractor"]["name"] == "tiny"
    other = Store(str(store))
    other.extractor = {**other.extractor, "name": "other"}
    with pytest.raises(UserError, match="were trained for descriptors of tiny"):
        rerank._check_descriptors(notes, other)
    capsys.readouterr()
    rerank._check_descriptors(None, other)  # mutual nearest neighbours have no weights
    rerank._check_descriptors({}, other)  # a .pt of the paper's
    assert "do not say for whose descriptors they were trained" in capsys.readouterr().err

    # imported descriptors, first of a known name, then of another
    trained = {"extractor": {"name": "tiny", "weights_sha256": "ab" * 32}}
    other.extractor = {**other.extractor, "name": "tiny", "weights_sha256": ""}
    rerank._check_descriptors(trained, other)
    assert "of weights that it does not name" in capsys.readouterr().err
    other.extractor = {**other.extractor, "name": "imported"}
    with pytest.raises(UserError, match=f"--extractor-name tiny --weights-sha256 {'ab' * 32}"):
        rerank._check_descriptors(trained, other)
    # The same run's shortlist serves mining: what exact neighbours give, where nothing is held out.
    records = read_records(open_stores_of([str(store)]), "folder", 0.0, 0)
    copy_globals(records, tmp_path / "globals.npy")
    descriptors = np.load(tmp_path / "globals.npy", mmap_mode="r")
    exact = exact_neighbours(
        records, descriptors, 20, tmp_path / "cache", Processes(), lambda done: None
    )
    found = shortlist_neighbours(records, str(tmp_path / "run"), 20)
    assert (found == exact).mean() > 0.99  # nearly equal products may change places
    made = train_here(store, tmp_path / "weights", steps=3, shortlist=str(tmp_path / "run"))
    assert "shortlist" in made.inputs


def test_start_from_weights(store: Path, undisturbed: Path, tmp_path: Path) -> None:
    weights = str(undisturbed / "weights.safetensors")
    with pytest.raises(UserError, match="--layers is 3, but .* has 2"):
        train_here(store, tmp_path / "a", steps=2, init=weights, layers=3)
    made = train_here(
        store, tmp_path / "b", steps=2, init=weights, layers=0, feedforward=0, validation=0
    )
    assert made.facts["selected"] is None and not (tmp_path / "b" / "best.safetensors").exists()
    assert load_checkpoint(str(tmp_path / "b" / "weights.safetensors")).model.config.layers == 2
    for init in ("identity", "matching"):
        train_here(
            store,
            tmp_path / init,
            steps=2,
            init=init,
            validation=0,
            precision="bfloat16",
            micro_batch=3,
        )


def test_configuration_and_flags(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train_options.complete({"config": str(ROOT / "configs/train/landmarks.yaml"), "lr": 5.0})[
            "lr"
        ]
        == 5.0
    )
    paper = build(
        train_options.Options,
        train_options.complete({"config": str(ROOT / "configs/train/landmarks.yaml")}),
        "test",
    )
    assert (paper.lr, paper.clip, paper.epochs, paper.triplets, paper.schedule) == (
        1e-4,
        0.1,
        15.0,
        12,
        "constant",
    )
    (tmp_path / "my.yaml").write_text("train: {learning: 1}\n")
    assert main(["train", "--config", str(tmp_path / "my.yaml")]) == 2
    assert "there is no option 'learning'" in capsys.readouterr().err
    assert main(["train", "--runner", "SparkRunner"]) == 2
    assert "unknown argument '--runner'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"labels": "nowhere.csv"}, "nowhere.csv: there is no such file of labels"),
        (
            {"least_positives": 8},
            "none of the .* records has 8 of its own label among its 20 nearest neighbours",
        ),
        ({"validation": 1.0}, "--validation is 1.0; it must be at least 0 and at most 0.99"),
        ({"validation": 0.001}, "none of the 0 held-out records"),
        ({"query_tokens": "9-3"}, "--query-tokens is '9-3'"),
        ({"precision": "float16", "device": "cpu"}, "float16 needs a CUDA device"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"heads": 5}, "d_model 128 cannot be shared out among 5 heads"),
        ({"init": "weights.pt"}, "weights.pt: no such file"),
        ({"shortlist": "run"}, "the shortlist is not there"),
        ({"out": "memory://weights"}, "must be a local folder"),
        ({"labels": ""}, "--labels is missing"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"clip": float("nan")}, "--clip is nan; it must be a finite number"),
    ],
)
def test_mistakes_are_one_sentence(
    store: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        given = {"out": str(tmp_path / "weights"), "steps": 2, **more}
        train.run(
            build(train_options.Options, {"stores": (str(store),), **SMALL, **given}, "test"),
            train_options.Settings(threads=1),
        )
    assert not (tmp_path / "weights").exists()  # the next try finds no other's folder


def test_a_loss_that_is_no_number(store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="the loss is no number any more at step 5; lower the learning rate"
    ):
        train_here(store, tmp_path / "weights", steps=5, lr=1e9, clip=0)


def test_labels_in_their_forms(store: Path, tmp_path: Path) -> None:
    stores = open_stores_of([str(store)])
    ids = sorted(_ids(store))
    wanted = {name: name.split("/")[-2] for name in ids}
    paths = [name.partition("/")[2] for name in ids]
    forms = {
        "ids.csv": "record_id,label\n" + "".join(f"{name},{wanted[name]}\n" for name in ids),
        "train.txt": "".join(
            f"{path},{wanted[name]},64,64\n" for path, name in zip(paths, ids, strict=True)
        ),
        "more.csv": "label,date,path\r\n"
        + "".join(f'"{wanted[name]}",,./{path}\r\n' for path, name in zip(paths, ids, strict=True)),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
    pq.write_table(
        pa.table({"path": paths, "label": list(wanted.values())}), tmp_path / "labels.parquet"
    )
    folder = read_records(stores, "folder", 0.2, 0)
    for name in (*forms, "labels.parquet"):
        found = read_records(stores, str(tmp_path / name), 0.2, 0)
        assert found.sha256 == folder.sha256, name
        assert {
            i: found.names[k] for i, k in zip(found.record_ids, found.labels, strict=True)
        } == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,1\nb.png\n", r"labels.csv, row 2: 1 columns, the rows before have 2"),
        ("a,b,c\n", r"labels.csv, row 1: 3 columns and no head"),
        ("path,label\na.png,\n", r"labels.csv, row 2: the label is empty"),
        ("file,label\na.png,1\n", r"labels.csv, row 1: its head names no column record_id or path"),
        (
            "shots/thing 00/0.png,1\n\n./shots/thing 00/0.png,2\n",
            r"row 3: './shots/thing 00/0.png' has the label '2'",
        ),
        (
            "nobody.png,1\n",
            r"labels.csv names no described record of the stores: 1 rows? .* row 1, 'nobody.png'",
        ),
        ("shots/thing 00/0.png,1\n", r"all records have the label '1'"),
        ("", r"labels.csv holds no label"),
    ],
)
def test_labels_with_mistakes(store: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_records(open_stores_of([str(store)]), str(tmp_path / "labels.csv"), 0.0, 0)


def test_split_is_by_label_and_stable(store: Path, tmp_path: Path) -> None:
    """Without some labels, the others stay on their side; no label is on both; other seeds split
    otherwise.
    """
    stores = open_stores_of([str(store)])
    whole = read_records(stores, "folder", 0.3, 0)
    sides = dict(zip(whole.labels.tolist(), whole.held_out.tolist(), strict=True))
    assert [
        sides[label] for label in whole.labels
    ] == whole.held_out.tolist() and 0 < whole.held_out.mean() < 1
    some = [name for name in whole.record_ids if "thing 0" in name]
    (tmp_path / "some.csv").write_text("".join(f"{name},{name.split('/')[-2]}\n" for name in some))
    part = read_records(stores, str(tmp_path / "some.csv"), 0.3, 0)
    assert "described records without a label" in part.dropped[0]
    by_name = dict(zip(whole.record_ids, whole.held_out, strict=True))
    assert part.held_out.tolist() == [by_name[name] for name in part.record_ids]
    others = [read_records(stores, "folder", 0.3, seed).held_out for seed in range(1, 5)]
    assert any(not np.array_equal(other, whole.held_out) for other in others)


def batches(
    store: Path, folder: Path, cache_bytes: int, processes: Processes | None = None
) -> PairBatches:
    records = read_records(open_stores_of([str(store)]), "folder", 0.2, 0)
    copy_globals(records, folder / "globals.npy")
    descriptors = np.load(folder / "globals.npy", mmap_mode="r")
    processes = processes or Processes()
    neighbours = exact_neighbours(
        records, descriptors, 20, folder / "cache", Processes(), lambda done: None
    )
    near, own = (
        neighbours[neighbours != NONE],
        np.repeat(np.arange(len(records)), (neighbours != NONE).sum(1)),
    )
    assert np.array_equal(
        records.held_out[near], records.held_out[own]
    )  # held-out records stay among themselves
    assert not (near == own).any()
    anchors = choose_anchors(neighbours, records.labels, np.flatnonzero(~records.held_out), 2).rows
    cache = TokenCache(records, descriptors, 16, "fixed", cache_bytes)
    sampler = TripletSampler(neighbours, records.labels, anchors, 0)
    return PairBatches(
        cache, sampler, 5, (read_budget("2-16", "q"), read_budget("8", "g")), True, processes
    )


def equal(one: PairBatch, two: PairBatch) -> bool:
    sides = [(one.query, two.query), (one.gallery, two.gallery)]
    return torch.equal(one.label, two.label) and all(
        torch.equal(a.local, b.local) and torch.equal(a.descriptor, b.descriptor) for a, b in sides
    )


def test_batches_are_what_the_store_holds(store: Path, tmp_path: Path) -> None:
    make = batches(store, tmp_path, 10**9)
    records = make.cache.records
    seen = set()
    for step in range(12):
        batch = make(step)
        anchor, positive, negative = make.sampler.triplets(step, 5)
        seen.add(batch.query.local.shape[1])
        assert batch.gallery.local.shape[1] == 8 and batch.label.tolist() == [1.0, 0.0] * 5
        for pair in range(10):
            other = (positive if pair % 2 == 0 else negative)[pair // 2]
            given = {
                batch.query.descriptor[pair].numpy().tobytes(),
                batch.gallery.descriptor[pair].numpy().tobytes(),
            }
            assert given == {
                make.cache.descriptors[row].astype(np.float32).tobytes()
                for row in (anchor[pair // 2], other)
            }
    assert len(seen) > 4 and max(seen) <= 16
    (image,) = make.cache.read([7], 5)
    reader = make.cache._reader.read(records.row_ids[7:8], make.cache.descriptors[7:8], 5)[0]
    np.testing.assert_array_equal(image.local, reader.descriptors)


def test_small_cache_and_prefetch_change_nothing(store: Path, tmp_path: Path) -> None:
    plain, small = batches(store, tmp_path, 10**9), batches(store, tmp_path, 10_000)
    ahead = Prefetched(small, 8)
    for step in range(3, 8):
        assert equal(ahead(step), plain(step))
    ahead.close()
    assert small.cache._bytes <= 10_000 and plain.cache._bytes > 100_000


def test_shares_of_processes_make_up_the_batch(store: Path, tmp_path: Path) -> None:
    whole = batches(store, tmp_path, 10**9)(4)
    parts = [batches(store, tmp_path, 10**9, Processes(rank, 2))(4) for rank in range(2)]
    assert [len(part.label) for part in parts] == [4, 6]
    for side in ("query", "gallery"):
        together = torch.cat([getattr(part, side).descriptor for part in parts])
        assert torch.equal(together, getattr(whole, side).descriptor)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="sees 0 CUDA devices"):
            choose_device("cuda")


def test_tensorboard_where_it_is_installed(undisturbed: Path) -> None:
    pytest.importorskip("tensorboard")
    assert list((undisturbed / "tensorboard").glob("events.*"))
