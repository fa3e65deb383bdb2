"""Train the weights that ship with the package, for the extractor `efficientnet`, on a CPU.

    python benchmarks/making/train_weights.py all --work DIR
    python benchmarks/making/train_weights.py describe|train|export --work DIR

`all` renders, describes, trains and exports, which takes hours. The paper trains on a million
photographs of landmarks; these weights come of rendered views of regions of 640 photographs
(rendered_views.py, which also says which photographs are kept for validation and test). `train`
goes on where it was stopped. `export` writes the weights, and a JSON beside them that says what
made them.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from benchmarks.quality import rendered_views
from benchmarks.quality.pair_sampling import (
    LOOKALIKES,
    Budget,
    PairSampler,
    pair_figures,
    rendered_pool,
)
from benchmarks.quality.rendered_views import BINNING, SPLITS, TRAINING_KINDS
from rrt_core.checkpoints import save_checkpoint
from rrt_core.rerankers.rrt import EMBEDDED_WEIGHTS
from rrt_core.training.loop import TrainingOptions, train
from rrt_core.transformer.initialisation import initialise_matching
from rrt_core.transformer.model import ModelConfig, RerankingTransformer

SHARPNESS = 25.0
VALIDATION_PAIRS, VALIDATION_TOKENS = 600, 96


def new_model(global_dim: int, seed: int) -> RerankingTransformer:
    """The model at the start of training."""
    torch.manual_seed(seed)
    model = RerankingTransformer(ModelConfig(global_dim=global_dim, scale_binning=BINNING))
    initialise_matching(model, SHARPNESS)
    return model


def options_of(args: argparse.Namespace) -> TrainingOptions:
    """The recipe."""
    return TrainingOptions(
        steps=args.steps,
        lr=args.lr,
        warmup=args.warmup,
        seed=args.seed,
        evaluate_every=args.evaluate_every,
        precision=args.precision,
        micro_batch=16,
    )


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on: the last value of each figure that was reported."""
    views = rendered_views.load(args.work, "training")
    pool = rendered_pool(views)
    held_out = rendered_pool(rendered_views.load(args.work, "validation"))
    print(
        f"{len(views)} views of {len(np.unique(views.instance))} instances; held out "
        f"{len(held_out)}",
        flush=True,
    )
    sampler = PairSampler(pool, args.steps, args.seed, Budget(), LOOKALIKES)
    validation = PairSampler(held_out, args.steps, args.seed, Budget(), LOOKALIKES)
    model = new_model(views.descriptor.shape[1], args.seed)
    folder = args.work / args.name
    folder.mkdir(parents=True, exist_ok=True)
    last: dict[str, float] = {}

    def report(row: dict[str, float]) -> None:
        last.update(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        if "val_auc" in row:  # to look at, and for products_quality.py to start from
            save_checkpoint(str(folder / f"step-{int(row['step']):06}.safetensors"), model, {})

    train(
        model,
        sampler.batch_of,
        lambda trained: pair_figures(
            trained, held_out, validation, VALIDATION_TOKENS, VALIDATION_PAIRS
        ),
        options_of(args),
        folder,
        report,
    )
    return {"trained": last}


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    """Write the weights and their card: what the card ends with."""
    views = rendered_views.load(args.work, "training")
    folder = args.work / args.name
    saved = torch.load(folder / "state.pt", weights_only=True)
    model = new_model(views.descriptor.shape[1], args.seed)
    model.load_state_dict(saved["model"])
    extractor = rendered_views.extractors()[0]
    with (folder / "log.csv").open(newline="") as file:
        log = [
            row
            for row in csv.DictReader(file)
            if row["name"] in ("loss", "accuracy", "val_auc", "val_loss")
        ]
    sampler = PairSampler(rendered_pool(views), args.steps, args.seed, Budget(), LOOKALIKES)
    notes = {
        "extractor": {
            "name": extractor.name,
            "revision": extractor.revision,
            "weights_sha256": extractor.weights_sha256,
            "config": extractor.config,
        },
        "data": {
            "photographs": len(SPLITS["training"]),
            "instances": len(np.unique(views.instance)),
            "views": len(views),
            "view_kinds": [name for name, _, _ in TRAINING_KINDS],
            "seeds": rendered_views.SEEDS,
            "quick_sizes": list(rendered_views.QUICK_SIZES),
            "quick_share": rendered_views.QUICK_SHARE,
        },
        "training": asdict(options_of(args))
        | {
            "budget": asdict(Budget()),
            "lookalikes": LOOKALIKES,
            "sharpness": SHARPNESS,
            "steps_done": saved["step"],
            "pairs_seen": sum(sampler.pair_count(step) for step in range(saved["step"])),
        },
    }
    sha256 = save_checkpoint(str(args.out), model, notes)
    card = {
        "made_by": "benchmarks/making/train_weights.py all --work DIR",
        "sha256": sha256,
        "config": asdict(model.config),
        **notes,
        "validation": {"pairs": VALIDATION_PAIRS, "tokens": VALIDATION_TOKENS},
        "log": {
            name: [[int(row["step"]), float(row["value"])] for row in log if row["name"] == name]
            for name in ("loss", "accuracy", "val_auc", "val_loss")
        },
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "made_on": time.strftime("%Y-%m-%d"),
    }
    args.out.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{args.out}: {sha256}")
    return {
        "exported": {
            "weights": str(args.out),
            "sha256": sha256,
            "steps": saved["step"],
            **{name: pairs[-1][1] for name, pairs in card["log"].items() if pairs},
        }
    }


def run_describe(args: argparse.Namespace) -> dict[str, Any]:
    """Render and describe, a process a core: the number of views of each split."""
    for split in SPLITS:
        command = [
            sys.executable,
            rendered_views.__file__,
            split,
            "--work",
            str(args.work),
            "--parts",
            "2",
        ]
        parts = [subprocess.Popen([*command, "--part", str(part)]) for part in range(2)]
        exits = [part.wait() for part in parts]
        if any(exits):
            raise SystemExit(f"rendering {split} failed; the lines above say why")
    return {"views": {split: len(rendered_views.load(args.work, split)) for split in SPLITS}}


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, each step only where it is not done."""
    return run_describe(args) | run_train(args) | run_export(args)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("all", "describe", "train", "export"))
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for views, checkpoints and the log"
    )
    parser.add_argument(
        "--name", default="run", help="folder of this training run inside the work folder"
    )
    parser.add_argument("--out", type=Path, default=Path(EMBEDDED_WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--evaluate-every", type=int, default=300)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    stages = {"all": run_all, "describe": run_describe, "train": run_train, "export": run_export}
    print_figures(stages[args.stage](args))


if __name__ == "__main__":
    main()
