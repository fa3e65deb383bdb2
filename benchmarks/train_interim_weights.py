"""Train the weights that ship with the package, for the extractor `efficientnet`, on a CPU.

    python benchmarks/train_interim_weights.py describe --work DIR
    python benchmarks/train_interim_weights.py train    --work DIR
    python benchmarks/train_interim_weights.py export   --work DIR

They serve until weights trained on a real collection take their place; the paper trains on Google
Landmarks. Here instances are cut from 800 photographs (RRT_TEST_DATA/photos) and rendered into
views (interim_views.py); the views of 80 photographs are held out. Positives are views of one instance;
negatives are mined as the paper mines them, among the nearest by global descriptor, and among
other regions of the same photograph. `train` goes on where it was stopped. `export` writes the weights and
a JSON that says what made them, with figures of the held-out photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import interim_views
import numpy as np
import torch
from interim_views import VALIDATION_PHOTOS, VIEW_KINDS, Views

from rrt_core.checkpoints import save_checkpoint
from rrt_core.extractors import create as create_extractor
from rrt_core.metrics import average_precision
from rrt_core.rerankers import Locals, Reranker
from rrt_core.rerankers.mutual_nn import MutualNNReranker
from rrt_core.rerankers.rrt import EMBEDDED_WEIGHTS, RRTReranker
from rrt_core.scorer import PairScorer, TokenSet
from rrt_core.training import PairBatch, Side, TrainingOptions, initialise_matching, train
from rrt_core.transformer import ModelConfig, RerankingTransformer, bin_scales

PHOTOS = Path(os.environ.get("RRT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared")) / "photos"
BINNING = "fixed"
NEIGHBOURS = 50  # hard negatives are drawn from so many nearest of other instances
SHORTLIST = 100


class PairSampler:
    """Pairs of a step, a function of the step's number and the seed alone.

    Couples whose backgrounds make them neither positive nor negative (`entangled`) are left out of the negatives.
    """

    def __init__(self, views: Views, rows: np.ndarray, args: argparse.Namespace) -> None:
        """rows: int64 [8], row of the scale embedding of each ordinal."""
        self.views, self.rows, self.args = views, rows, args
        by_instance = {i: np.flatnonzero(views.instance == i) for i in np.unique(views.instance)}
        self.same = [by_instance[i] for i in views.instance]
        by_photo = {p: np.flatnonzero(views.photo == p) for p in np.unique(views.photo)}
        self.lookalike = [
                near[(views.instance[near] != views.instance[i]) & ~entangled(views, i, near)]
            for i, near in ((i, by_photo[photo]) for i, photo in enumerate(views.photo))
        ]
        self.anchors = np.flatnonzero([len(same) > 1 for same in self.same])
        self.nearest = [self._negatives(i) for i in range(len(views))]

    def _negatives(self, i: int) -> np.ndarray:
        views = self.views
        order = np.argsort(-(views.descriptor @ views.descriptor[i]), kind="stable")[: 4 * NEIGHBOURS]
        keep = (views.instance[order] != views.instance[i]) & ~entangled(views, i, order)
        return order[keep][:NEIGHBOURS]

    def pairs(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query views, gallery views int64 [count], label float32 [count]; half of them positive."""
        query, gallery, label = [], [], []
        for anchor in rng.choice(self.anchors, count // 2):
            same = self.same[anchor]
            positive = rng.choice(same[same != anchor])
            near, alike = self.nearest[anchor], self.lookalike[anchor]
            pool = alike if len(alike) and rng.uniform() < self.args.lookalikes else near
            for other, truth in ((positive, 1.0), (rng.choice(pool), 0.0)):
                # Not symmetric: each couple serves in either order.
                pair = (anchor, other) if rng.uniform() < 0.5 else (other, anchor)
                query.append(pair[0])
                gallery.append(pair[1])
                label.append(truth)
        return np.asarray(query), np.asarray(gallery), np.asarray(label, np.float32)

    def batch_of(self, step: int) -> PairBatch:
        args = self.args
        rng = np.random.default_rng((args.seed, step))
        query, gallery, label = self.pairs(rng, args.batch)
        # Short sequences first, since they are quick; all budgets at the end, so that one model serves any.
        low, high = args.tokens_first if step < args.long_from * args.steps else args.tokens_last
        tokens = rng.integers(low, high + 1, 2)
        return PairBatch(
            self.side(query, int(tokens[0])), self.side(gallery, int(tokens[1])), torch.from_numpy(label)
        )

    def side(self, index: np.ndarray, tokens: int) -> Side:
        count = self.views.count[index]
        tokens = min(tokens, int(count.max()))
        mask = torch.from_numpy(np.arange(tokens)[None] >= count[:, None])
        return Side(
            torch.from_numpy(self.views.descriptor[index]),
            torch.from_numpy(self.views.local[index, :tokens].astype(np.float32)),
            torch.from_numpy(self.rows[self.views.scale[index, :tokens]]),
            mask if bool(mask.any()) else None,
        )


def entangled(views: Views, i: int, others: np.ndarray) -> np.ndarray:
    """bool [len(others)]: the two pictures may show one thing beside their instances.

    Either the background of one is the photograph that the other's instance was cut from, or both have
    a background or clutter in common (of which a crop shows next to nothing).
    """
    in_theirs = (views.others[others] == views.photo[i]).any(axis=1)
    in_ours = np.isin(views.photo[others], views.others[i])
    common = np.isin(views.others[others], views.others[i]).any(axis=1) & ~views.crop[others] & ~views.crop[i]
    return np.asarray(in_theirs | in_ours | common)


def pair_figures(model: RerankingTransformer, views: Views, sampler: PairSampler, tokens: int, count: int) -> dict:
    """Area under the ROC curve and loss on fixed held-out pairs."""
    query, gallery, label = sampler.pairs(np.random.default_rng(12345), count)

    def image(i: int) -> TokenSet:
        n = min(tokens, int(views.count[i]))
        local = views.local[i, :n].astype(np.float32)
        return TokenSet(views.descriptor[i], local, sampler.rows[views.scale[i, :n]])

    logits = PairScorer(model).score([(image(q), image(g)) for q, g in zip(query, gallery, strict=True)])
    positive, negative = logits[label > 0.5], logits[label < 0.5]
    higher = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    loss = np.logaddexp(0, np.where(label > 0.5, -logits, logits)).mean()
    return {"val_auc": float(higher), "val_loss": float(loss)}


def retrieval_figures(
    views: Views, rerankers: dict[str, Reranker], scales: tuple[float, ...], queries: int, seed: int
) -> dict[str, dict[str, float]]:
    """mAP (and by kind of the query) of global order and of each reranker on its first SHORTLIST.

    Queries: held-out crops. Gallery: all held-out whole views, without those entangled with the query.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(views.crop))[:queries])
    gallery = np.flatnonzero(~views.crop)

    def stored(i: int) -> Locals:
        n = int(views.count[i])
        local = views.local[i, :n].astype(np.float32)
        falling = np.arange(n, 0, -1, dtype=np.float32)
        return Locals(views.descriptor[i], local, np.zeros((n, 2), np.float32), views.scale[i, :n], falling, scales)

    images = {int(i): stored(int(i)) for i in np.union1d(chosen, gallery)}
    precision: dict[str, list[float]] = {name: [] for name in ("global", *rerankers, "perfect reranking")}
    kinds = []
    for i in chosen:
        same = views.instance[gallery] == views.instance[i]
        use = gallery[same | ~entangled(views, int(i), gallery)]
        positives = int((views.instance[use] == views.instance[i]).sum())
        if not positives:
            continue
        kinds.append(VIEW_KINDS[views.kind[i]][0])
        order = use[np.argsort(-(views.descriptor[use] @ views.descriptor[i]), kind="stable")]
        top, rest = order[:SHORTLIST], order[SHORTLIST:]
        hit = views.instance[top] == views.instance[i]
        rankings = {"global": order, "perfect reranking": np.concatenate([top[hit], top[~hit], rest])}
        for name, reranker in rerankers.items():
            scores = reranker.score([(images[int(i)], images[int(j)]) for j in top])
            rankings[name] = np.concatenate([top[np.argsort(-scores, kind="stable")], rest])
        for name, ranking in rankings.items():
            places = np.flatnonzero(views.instance[ranking] == views.instance[i])
            precision[name].append(average_precision(places, positives))
    labels = np.asarray(kinds)
    return {
        name: {"mAP": round(float(np.mean(values)), 4)}
        | {kind: round(float(np.mean(np.asarray(values)[labels == kind])), 4) for kind in sorted(set(kinds))}
        for name, values in precision.items()
    }


def open_views(args: argparse.Namespace) -> tuple[Views, Views]:
    """Training views, held-out views."""
    views = interim_views.load(args.work / "views", args.photographs)
    held_out = views.photo < VALIDATION_PHOTOS
    return views.take(~held_out), views.take(held_out)


def extractor_of(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    return create_extractor("efficientnet", sizes=tuple(args.sizes), max_locals=args.locals)


def run_describe(args: argparse.Namespace) -> None:
    files = interim_views.photographs(args.photos, args.seed)
    cache = args.work / "views"
    extractor = extractor_of(args)
    interim_views.describe_all(
        files, args.photographs, cache, extractor, args.locals, args.seed, args.part, args.parts
    )


def new_model(args: argparse.Namespace, global_dim: int) -> RerankingTransformer:
    torch.manual_seed(args.seed)
    model = RerankingTransformer(ModelConfig(global_dim=global_dim, scale_binning=BINNING))
    initialise_matching(model, args.sharpness)
    return model


def training_options(args: argparse.Namespace) -> TrainingOptions:
    return TrainingOptions(
        steps=args.steps, lr=args.lr, warmup=args.warmup, seed=args.seed, evaluate_every=args.evaluate_every
    )


def run_train(args: argparse.Namespace) -> None:
    training, held_out = open_views(args)
    scales = tuple(size / args.sizes[0] for size in args.sizes)
    rows = bin_scales(scales, BINNING)
    sampler, validation = PairSampler(training, rows, args), PairSampler(held_out, rows, args)
    print(f"{len(training)} views of {len(np.unique(training.instance))} instances,"
          f" held out {len(held_out)} of {len(np.unique(held_out.instance))}", flush=True)
    model = new_model(args, training.descriptor.shape[1])
    train(
        model,
        sampler.batch_of,
        lambda trained: pair_figures(trained, held_out, validation, 64, args.validation_pairs),
        training_options(args),
        args.work / args.name,
        lambda row: print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True),
    )


def run_export(args: argparse.Namespace) -> None:
    training, held_out = open_views(args)
    folder = args.work / args.name
    saved = torch.load(folder / "state.pt", weights_only=True)
    model = new_model(args, training.descriptor.shape[1])
    model.load_state_dict(saved["model"])
    extractor = extractor_of(args)
    lines = (folder / "log.csv").read_text().splitlines()
    notes = {
        "extractor": {
            "name": extractor.name,
            "revision": extractor.revision,
            "weights_sha256": extractor.weights_sha256,
            "config": extractor.config,
        },
        "data": {
            "photographs": args.photographs,
            "held_out_photographs": VALIDATION_PHOTOS,
            "instances": len(np.unique(training.instance)),
            "views": len(training),
            "view_kinds": [name for name, _, _ in VIEW_KINDS],
        },
        "training": asdict(training_options(args))
        | {key: getattr(args, key) for key in ("batch", "tokens_first", "tokens_last", "long_from", "lookalikes")}
        | {"sharpness": args.sharpness, "steps_done": saved["step"], "pairs_seen": saved["step"] * args.batch},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sha256 = save_checkpoint(str(args.out), model, notes)
    tables = {}
    for tokens in args.table_tokens:
        rerankers: dict[str, Reranker] = {
            "mutual nearest neighbours": MutualNNReranker(tokens, tokens),
            "RRT": RRTReranker(str(args.out), tokens, tokens),
        }
        tables[f"{tokens}+{tokens} tokens"] = retrieval_figures(
            held_out, rerankers, extractor.scales, args.table_queries, args.seed
        )
        print(tokens, json.dumps(tables[f"{tokens}+{tokens} tokens"], indent=1), flush=True)
    card = {
        "made_by": "benchmarks/train_interim_weights.py: describe, train, export",
        "sha256": sha256,
        "config": asdict(model.config),
        **notes,
        "validation": {"rerank": SHORTLIST, "queries": args.table_queries, **tables},
        "log_tail": lines[:1] + lines[-10:],
        "made_with": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "made_on": time.strftime("%Y-%m-%d"),
    }
    args.out.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("describe", "train", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder for views, checkpoints and the log")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--photographs", type=int, default=640, help="how many of them give instances")
    parser.add_argument("--name", default="run", help="folder of this training run inside the work folder")
    parser.add_argument("--out", type=Path, default=Path(EMBEDDED_WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 224])
    parser.add_argument("--locals", type=int, default=192, help="locals stored of each view")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="processes that share the stage `describe`")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=32, help="pairs a step, half of them positive")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--sharpness", type=float, default=25.0)
    parser.add_argument("--tokens-first", type=int, nargs=2, default=[40, 80], metavar=("LOW", "HIGH"))
    parser.add_argument("--tokens-last", type=int, nargs=2, default=[48, 144], metavar=("LOW", "HIGH"))
    parser.add_argument("--long-from", type=float, default=0.7, help="share of the steps with --tokens-first")
    parser.add_argument("--lookalikes", type=float, default=0.15, help="share of negatives from the same photograph")
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--validation-pairs", type=int, default=600)
    parser.add_argument("--table-queries", type=int, default=100)
    parser.add_argument("--table-tokens", type=int, nargs="+", default=[64, 128])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    {"describe": run_describe, "train": run_train, "export": run_export}[args.stage](args)


if __name__ == "__main__":
    main()
