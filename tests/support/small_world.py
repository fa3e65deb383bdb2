"""A folder with a finished small output of every command, and the arguments that made each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.command_line import command
from tests.support.pictures import save_scenes
from tests.support.watching import EXTRACTOR

LONGER = ("export", "run", "train", "train-products")
ALIKE = ("--extractor", EXTRACTOR, "--workers", "1")


def arguments_of(world: Path, name: str, but: str = "") -> list[str]:
    """The arguments of a command that is finished in the world, without those of one option."""
    truth, run = ("--ground-truth", "truth.json"), ("--out", "run")
    known: dict[str, list[tuple[str, ...]]] = {
        "extract": [("--images", "photos"), ("--out", "store"), ALIKE[:2]],
        "index": [("--stores", "store"), ("--out", "index")],
        "search": [("--queries", "queries"), ("--index", "index"), run, truth],
        "rerank": [("--queries", "queries"), run, truth, ("--reranker", "mutual_nn")],
        "evaluate": [run, truth],
        "report": [run, truth],
        "tune": [run, truth, ("--result", "tuned.json"), ("--grid", "k=2")],
        "import": [("npy",), ("vectors.npy",), ("--out", "imported"), ("--list", "names.txt")],
        "export": [("store",), ("--out", "arrays")],
        "verify": [("store",)],
        "repair": [("store",)],
        "finish": [("store",)],
        "estimate": [("tune",), run, truth, ("--result", "tuned.json")],
        "convert-delg": [("photos",), ("no.safetensors",)],
        "demo": [("--out", "no-demo"), ("--config", "all.yaml"), ("--seed", "1"), ("--dry-run",)],
        "run": [("--config", "all.yaml")],
        "train": [
            ("--stores", "store"),
            ("--labels", "labels.csv"),
            ("--out", "weights"),
            ("--steps", "1"),
            ("--layers", "1"),
            ("--heads", "1"),
            ("--feedforward", "8"),
            ("--least-positives", "1"),
            ("--validation", "0"),
        ],
        "train-products": [
            ("--images", "photos"),
            ("--labels", "products.csv"),
            ("--out", "products"),
            ("--mode", "global"),
            ("--steps", "1"),
            ("--batch", "4"),
            ("--crop", "32"),
            ("--resize", "36"),
            ("--backbone-weights", "random"),
        ],
    }
    positional = {"format": "npy", "input": "vectors.npy", "store": "store", "model": "photos"}
    positional["output"] = "store"
    left = [
        flags
        for flags in known[name]
        if flags[0] != "--" + but.replace("_", "-") and flags != (positional.get(but),)
    ]
    places = {path.name for path in world.iterdir()} | {"arrays", "imported", "weights", "products"}
    places |= {"index", "run", "queries", "store", "tuned.json", "no-demo", "no.safetensors"}
    return [str(world / word) if word in places else word for flags in left for word in flags]


def make_world(world: Path) -> None:
    """Make all of it, in some seconds."""
    photos = world / "photos"
    photos.mkdir()
    names = save_scenes(photos, [str(scene) for scene in range(4)])
    queries = [
        {"name": f"{scene}_0.png", "box": None, "easy": [3 * scene + 1], "hard": [3 * scene + 2]}
        | {"junk": [3 * scene]}
        for scene in range(3)
    ]
    truth = {"schema": "rrt-ground-truth/1", "name": "w", "gallery": names, "queries": queries}
    (world / "truth.json").write_text(json.dumps(truth))
    (world / "names.txt").write_text("\n".join(names))
    rows = [f"photos/{name},{name[0]}" for name in names]
    (world / "labels.csv").write_text("\n".join(["record_id,label", *rows, ""]))
    rows = [f"{name},{name[0]}" for name in names]
    (world / "products.csv").write_text("\n".join(["path,product", *rows, ""]))
    np.save(world / "vectors.npy", np.random.default_rng(0).random((12, 8), np.float32))
    configuration = {
        "out": str(world / "all"),
        "images": str(photos),
        "ground_truth": str(world / "truth.json"),
        "extract": {"extractor": EXTRACTOR},
        "rerank": {"reranker": "mutual_nn", "shortlist": 5},
    }
    (world / "all.yaml").write_text(json.dumps(configuration))

    first = ("extract", "--images", photos, "--ground-truth", world / "truth.json")
    done = [command(*first, "--take", "queries", "--out", world / "queries", *ALIKE)]
    made = ("extract", "index", "search", "rerank", "evaluate", "report", "tune", "import")
    done += [command(name, *arguments_of(world, name)) for name in (*made, *LONGER)]
    assert not any(ended.code for ended in done), done
