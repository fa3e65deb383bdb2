"""Transformers for products: global, frozen and joint training on photographs of cartons in shops.

    python benchmarks/quality/products_joint.py --out DIR
    python benchmarks/quality/products_joint.py --out DIR --inner

The first is the experiment of docs/products.md, the second the split on which its settings were
chosen.

Data: $RRT_TEST_DATA/products (31 products) and photos/ (800 distractors, some of them instances
of their own in training). Products sorted by name, fold = position mod 3. For each fold models are
trained on all photographs of the products of the other two folds and on 200 of photos/, and tested
on the fold's `val` photographs against the `train` photographs of all products and photos/. Queries
of all folds are pooled. `--inner` knows the products of folds 1 and 2 alone: trained on those of
fold 1, tested with the `val` photographs of those of fold 2.

DIR keeps what is done; the same command goes on after a kill. `--folds 0` and `--folds 1 2` can run
side by side once the early maps exist; the command without it then prints the table of all.
Results: results.json and results.csv in DIR.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.products.backbone import create_backbone
from rrt_core.products.crops import CropOptions, CropReader
from rrt_core.products.evaluation import (
    Described,
    average_precisions,
    figures,
    rank,
    reordered,
    score,
)
from rrt_core.products.initialisation import principal_components, start_from_triplets
from rrt_core.products.inputs import CropInputs, Inputs, frozen_part, keep
from rrt_core.products.model import ProductsConfig, ProductsTransformer
from rrt_core.products.sampling import Ints, Sampler, neighbours
from rrt_core.products.training import ProductsNetwork, ProductsOptions, describe, train
from rrt_core.training.state import write_whole

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
TOP = 100
LAMBDA = 0.5  # of the ensembles with the global score, set beforehand
SETTINGS: dict[str, Any] = {
    "backbone": "efficientnet_lite0+stride16",
    "crops": {"area": [0.3, 1.0], "degrees": 10.0, "jitter": 0.25},
    "copies": 6,
    "photos": 200,
    "lone_share": 0.3,
    "near": 100,
    "seed": 0,
    "global": {"steps": 40, "batch": 48, "lr": 3e-4, "backbone_lr": 0.1, "warmup": 5},
    "frozen": {"steps": 600, "batch": 72, "lr": 3e-5, "warmup": 10, "checkpoint_every": 10},
    "joint": {
        "steps": 60,
        "batch": 72,
        "lr": 2e-5,
        "backbone_lr": 0.3,
        "warmup": 5,
        "checkpoint_every": 10,
    },
}


# The settings that make a mode's weights.
_GLOBAL = ("backbone", "crops", "copies", "photos", "lone_share", "seed", "global")
MADE_BY = {
    "global": _GLOBAL,
    "frozen": (*_GLOBAL, "near", "frozen"),
    "joint": (*_GLOBAL, "near", "frozen", "joint"),
}


@dataclass(frozen=True)
class Collection:
    """Files and, for each, its product ("" for photos/), its product's number and its split.

    Each of photos/ counts as a product of its own, with a number above those of the products.
    """

    files: list[Path]
    product: np.ndarray
    label: Ints
    split: np.ndarray
    fold: Ints  # -1 for photos/


def collection(data: Path) -> Collection:
    with (data / "products" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    photos = sorted((data / "photos").glob("*.jpg"))
    names = sorted({row["product"] for row in rows})
    number = {name: position for position, name in enumerate(names)}
    labels = [number[row["product"]] for row in rows] + [len(names) + i for i in range(len(photos))]
    return Collection(
        [data / "products" / row["path"] for row in rows] + photos,
        np.array([row["product"] for row in rows] + [""] * len(photos)),
        np.array(labels, np.int64),
        np.array([row["split"] for row in rows] + ["photo"] * len(photos)),
        np.array([number[row["product"]] % 3 for row in rows] + [-1] * len(photos), np.int64),
    )


@dataclass(frozen=True)
class Split:
    """Rows to train on, to query with, and to search in."""

    name: str
    training: Ints
    queries: Ints
    gallery: Ints


def splits(images: Collection, inner: bool, photos: int) -> list[Split]:
    others = np.flatnonzero(images.split == "photo")[photos:]  # distractors only
    usable = ~np.isin(np.arange(len(images.files)), others)
    gallery = np.flatnonzero(images.split != "val")
    if inner:
        known = np.flatnonzero(((images.fold == 1) | (images.fold == -1)) & usable)
        queries = np.flatnonzero((images.fold == 2) & (images.split == "val"))
        gallery = np.flatnonzero(
            (images.split == "photo") | ((images.split == "train") & (images.fold > 0))
        )
        return [Split("inner", known, queries, gallery)]
    return [
        Split(
            f"fold{fold}",
            np.flatnonzero((images.fold != fold) & usable),
            np.flatnonzero((images.fold == fold) & (images.split == "val")),
            gallery,
        )
        for fold in range(3)
    ]


class Rows:
    """Inputs of some rows."""

    def __init__(self, inputs: Inputs, rows: Ints) -> None:
        self._inputs, self._rows, self.copies = inputs, rows, inputs.copies

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Ints, copies: Ints) -> torch.Tensor:
        return self._inputs.batch(self._rows[rows], copies)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--inner", action="store_true")
    parser.add_argument(
        "--folds",
        type=int,
        nargs="*",
        choices=(0, 1, 2),
        help="train and test these only; no table",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="such as joint.lr=0.0002"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    settings = json.loads(json.dumps(SETTINGS))
    for item in arguments.set:
        key, _, value = item.partition("=")
        *path, last = key.split(".")
        place = settings
        for name in path:
            place = place[name]
        place[last] = json.loads(value)
    print_figures(Experiment(arguments, settings).run())
    return 0


class Experiment:
    """All folds of one command."""

    def __init__(self, arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.out, self.inner, self.precision = arguments.out, arguments.inner, arguments.precision
        self.settings = settings
        self.folds = arguments.folds
        self.images = collection(arguments.data)
        self.seconds: dict[str, float] = {}
        self._logits: dict[str, dict[tuple[int, int], float]] = {}
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Train and test the folds: the table's lines, or those of the folds that were named."""
        early = self.early()
        rankings: dict[str, list[dict[str, Any]]] = {}
        for number, split in enumerate(splits(self.images, self.inner, self.settings["photos"])):
            if self.folds and number not in self.folds:
                continue
            for row in self.fold(split, early):
                rankings.setdefault(row["name"], []).append(row)

        if not self.folds:
            return {"rankings": self.report(rankings), "seconds": self.seconds}
        by_fold = {
            name: {row["fold"]: row["figures"] for row in rows} for name, rows in rankings.items()
        }
        return {"rankings_by_fold": by_fold, "seconds": self.seconds}

    def early(self) -> Both:
        """The early part's output for all images: no fold trains it, so all share it."""
        settings = self.settings
        backbone = create_backbone(settings["backbone"])
        parts = []
        seconds = 0.0
        # The photographs that are distractors only need no augmented copies.
        last = int((self.images.fold >= 0).sum()) + settings["photos"]
        for name, files, copies in (
            ("trained on", self.images.files[:last], settings["copies"]),
            ("distractors", self.images.files[last:], 0),
        ):
            shown = _Timed(f"early maps of images {name}")
            reader = CropReader(files, CropOptions(**_tuples(settings["crops"])), settings["seed"])
            identity = (
                _identity(settings, ("backbone", "crops", "copies", "photos", "seed"))
                + self.precision
            )
            part = frozen_part(backbone, "late", self.precision)
            file = self.out / f"early-{len(parts)}.npy"
            parts.append(keep(part, CropInputs(reader), copies, file, identity, shown))
            seconds += shown.seconds
        self.seconds["early maps"] = seconds
        return Both(*parts)

    def fold(self, split: Split, early: Both) -> list[dict[str, Any]]:
        """Train the three modes one after another; (name, order, seconds ...) of each ranking."""
        folder = self.out / split.name
        labels = self.images.label[split.training]
        settings = self.settings
        sampler = Sampler(labels, early.copies, settings["seed"], settings["lone_share"])
        shown = np.unique(np.concatenate([split.queries, split.gallery]))

        config = ProductsConfig(backbone=settings["backbone"])
        backbone = create_backbone(settings["backbone"])
        torch.manual_seed(settings["seed"])
        model = ProductsTransformer(replace(config, map_channels=backbone.map_channels)).eval()
        untrained = ProductsNetwork(backbone, model, "late")
        sample = np.random.default_rng(0).choice(len(labels), min(400, len(labels)), replace=False)
        self._global_start(untrained, early, split.training, sample)
        rankings = [self._ranking(split, "ImageNet", describe(untrained, early, shown), shown)]

        # Global.
        trained = Rows(early, split.training)
        self._train(folder, "global", untrained, trained, sampler, None)
        described = describe(untrained, early, shown)
        order_of_global = self._ranking(split, "global", described, shown)
        rankings.append(order_of_global)

        # Frozen: maps of the network as it is now, for all copies.
        near = self._near(split, untrained, trained)
        maps: Inputs = Late(backbone, trained)
        identity = _identity(settings, ("backbone", "crops", "copies", "photos", "seed", "global"))
        finished = folder / "frozen" / "finished"
        if not finished.exists():
            maps = keep(
                lambda x: x, maps, early.copies, folder / "maps.npy", identity, _Timed("maps")
            )
        triplets = sampler.triplets(0, 66, near)
        these = maps.batch(triplets.rows, triplets.copies).detach()
        torch.manual_seed(settings["seed"] + 1)
        fresh = ProductsTransformer(model.config).state_dict()
        model.load_state_dict(fresh | _only(model.state_dict(), ("remap.",)))
        start_from_triplets(model, these)
        described = describe(untrained, early, shown)
        rankings += self._reranked(
            split, "start", untrained, described, shown, order_of_global["order"]
        )
        self._train(folder, "frozen", ProductsNetwork(backbone, model, "none"), maps, sampler, near)
        finished.touch()
        for name in ("maps.npy", "maps.json"):
            (folder / name).unlink(missing_ok=True)
        network = ProductsNetwork(backbone, model, "late")
        described = describe(network, early, shown)
        rankings += self._reranked(
            split, "frozen", network, described, shown, order_of_global["order"]
        )

        # Joint.
        self._train(folder, "joint", network, trained, sampler, near)
        described = describe(network, early, shown)
        rankings += self._reranked(
            split, "joint", network, described, shown, order_of_global["order"]
        )
        own = self._ranking(split, "joint, its own global", described, shown)
        rankings.append(own)
        rankings += self._reranked(
            split, "joint over its own global", network, described, shown, own["order"]
        )
        self._logits.clear()
        return rankings

    def _global_start(
        self, network: ProductsNetwork, early: Both, rows: Ints, sample: Ints
    ) -> None:
        """Start `remap` as principal components of the maps' means.

        Without training it is the ImageNet descriptor.
        """
        with torch.no_grad():
            maps = network.maps(early.batch(rows[sample], np.zeros_like(sample)))
            weight, bias = principal_components(
                maps.mean((2, 3)), network.model.config.global_dim, 0.5
            )
            network.model.remap.weight.copy_(weight)
            network.model.remap.bias.copy_(bias)

    def _train(
        self,
        folder: Path,
        mode: str,
        network: ProductsNetwork,
        inputs: Inputs,
        sampler: Sampler,
        near: Ints | None,
    ) -> None:
        given = dict(self.settings[mode])
        options = ProductsOptions(
            mode=mode,
            trained="late",
            precision=self.precision,
            seed=self.settings["seed"],
            evaluate_every=10**9,
            **given,
        )
        title = f"{folder.name} {mode}"
        started = time.monotonic()

        def report(row: dict[str, float]) -> None:
            left = (
                (time.monotonic() - started)
                / max(1e-9, row["step"])
                * (options.steps - row["step"])
            )
            figures = ", ".join(
                f"{name} {row[name]:.3f}" for name in ("loss", "accuracy") if name in row
            )
            print(
                f"{title}: step {row['step']:.0f}/{options.steps}, {figures}, ETA {left:.0f} s",
                flush=True,
            )

        train(
            network,
            inputs,
            sampler,
            options,
            folder / mode,
            near,
            report=report,
            identity=_identity(self.settings, MADE_BY[mode]),
        )
        self.seconds[title] = time.monotonic() - started

    def _near(self, split: Split, network: ProductsNetwork, trained: Rows) -> Ints:
        described = describe(network, trained, np.arange(len(split.training)))
        return neighbours(described.descriptors, self.settings["near"])

    def _ranking(
        self, split: Split, name: str, described: Described, shown: Ints
    ) -> dict[str, Any]:
        queries, gallery = (np.searchsorted(shown, rows) for rows in (split.queries, split.gallery))
        order = rank(described.descriptors[queries], described.descriptors[gallery])
        return self._row(split, name, order)

    def _reranked(
        self,
        split: Split,
        name: str,
        network: ProductsNetwork,
        described: Described,
        shown: Ints,
        order: Ints,
    ) -> list[dict[str, Any]]:
        queries, gallery = (np.searchsorted(shown, rows) for rows in (split.queries, split.gallery))
        started = time.monotonic()
        local = described.local
        logits = self._scored(
            name.split()[0], network, local[queries], local[gallery], order[:, :TOP]
        )
        self.seconds[f"{split.name} {name} scoring"] = time.monotonic() - started
        similarity = np.take_along_axis(
            described.descriptors[queries] @ described.descriptors[gallery].T, order, 1
        )
        ensemble = LAMBDA * similarity[:, :TOP] + (1 - LAMBDA) / (1 + np.exp(-logits))
        return [
            self._row(split, f"{name}, reranked", reordered(order, logits)),
            self._row(
                split, f"{name}, reranked, ensemble", reordered(order, ensemble.astype(np.float32))
            ),
        ]

    def _scored(
        self,
        model: str,
        network: ProductsNetwork,
        queries: torch.Tensor,
        gallery: torch.Tensor,
        top: Ints,
    ) -> np.ndarray:
        """Logits float32 [queries, TOP]; a pair that this model has scored is not scored again."""
        known = self._logits.setdefault(model, {})
        logits = np.empty(top.shape, np.float32)
        for query, chosen in enumerate(top):
            new = np.array(
                [place for place in chosen if (query, int(place)) not in known], np.int64
            )
            if len(new):
                scored = score(
                    network.model.matcher,
                    queries[query : query + 1],
                    gallery,
                    new[None],
                    precision=self.precision,
                )
                known.update(
                    {(query, int(place)): float(x) for place, x in zip(new, scored[0], strict=True)}
                )
            logits[query] = [known[query, int(place)] for place in chosen]
        return logits

    def _row(self, split: Split, name: str, order: Ints) -> dict[str, Any]:
        labels, wanted = self.images.label[split.gallery], self.images.label[split.queries]
        measured = figures(order, wanted, labels)
        print(
            f"{split.name} {name:<32}"
            + "  ".join(f"{key} {value:.3f}" for key, value in measured.items()),
            flush=True,
        )
        return {
            "name": name,
            "order": order,
            "hits": labels[order] == wanted[:, None],
            "fold": split.name,
            "figures": measured,
        }

    def report(self, rankings: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Print and write the pooled table, and return its lines.

        Recall@1 and mAP have a paired bootstrap against the global ranking.
        """
        pooled = {
            name: np.concatenate([row["hits"] for row in rows]) for name, rows in rankings.items()
        }
        base = pooled["global"]
        lines = []
        for name, hits in pooled.items():
            line: dict[str, Any] = {"ranking": name, "queries": len(hits)}
            line["map"] = float(average_precisions(hits).mean())
            line |= {f"recall_{k}": float(hits[:, :k].any(1).mean()) for k in (1, 10, TOP)}
            for key, measure in MEASURES.items():
                line[f"{key}_gain_low"], line[f"{key}_gain_high"] = _interval(
                    measure(hits) - measure(base)
                )
            line["by_fold_recall_1"] = {
                row["fold"]: float(row["hits"][:, 0].mean()) for row in rankings[name]
            }
            lines.append(line)
        record = {
            "settings": self.settings,
            "precision": self.precision,
            "results": lines,
            "seconds": self.seconds,
        }
        write_whole(self.out / "results.json", (json.dumps(record, indent=1) + "\n").encode())
        with (self.out / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(
                file, [key for key in lines[0] if key != "by_fold_recall_1"], extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows(lines)
        print(table(lines))
        return lines


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "map": average_precisions,
    "recall_1": lambda hits: hits[:, 0].astype(np.float64),
}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""
    rows = ["| ranking | mAP | Recall@1 | Recall@10 | Recall@100 |", "|---|---|---|---|---|"]
    rows += [
        f"| {line['ranking']} | {line['map']:.3f} | {line['recall_1']:.2f} | "
        f"{line['recall_10']:.2f}"
        f" | {line['recall_100']:.2f} |"
        for line in lines
    ]
    return "\n".join(rows)


def _interval(gain: np.ndarray, trials: int = 10_000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = gain[rng.integers(0, len(gain), (trials, len(gain)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


class Both:
    """Two inputs in a row; copies are those of the first, the second has only plain crops."""

    def __init__(self, first: Inputs, second: Inputs) -> None:
        self._first, self._second, self.copies = first, second, first.copies

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def batch(self, rows: Ints, copies: Ints) -> torch.Tensor:
        parts = []
        # Runs of one part.
        ends = [*(np.flatnonzero(np.diff(rows < len(self._first))) + 1), len(rows)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            late = rows[start] >= len(self._first)
            inputs, offset = (self._second, len(self._first)) if late else (self._first, 0)
            parts.append(inputs.batch(rows[start:end] - offset, copies[start:end]))
        return torch.cat(parts)


class Late:
    """Inputs after the late part."""

    def __init__(self, backbone: Any, inputs: Inputs) -> None:
        self._backbone, self._inputs, self.copies = backbone.eval(), inputs, inputs.copies

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: Ints, copies: Ints) -> torch.Tensor:
        maps: torch.Tensor = self._backbone.late(self._inputs.batch(rows, copies))
        return maps


def _only(state: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def _identity(settings: dict[str, Any], keys: tuple[str, ...]) -> str:
    chosen = {key: settings[key] for key in keys}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


class _Timed:
    """Prints progress every 20 seconds."""

    def __init__(self, title: str) -> None:
        self.title, self.started, self.last = title, time.monotonic(), time.monotonic()
        self.seconds = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.seconds = now - self.started
        if now - self.last > 20 or done == total:
            self.last = now
            print(
                f"{self.title}: {done}/{total}, ETA {self.seconds / done * (total - done):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
