"""Training of the Reranking Transformer: initialisation, one step, schedule, checkpoints, log.

The loop follows the paper (section 4; RRT_GLD/experiment.py): binary cross-entropy on positive and
negative pairs, AdamW, dropout 0. What differs is said where it stands. Data is the caller's: `train`
asks a function for the pairs of a step, so that a step depends on its number and the seed alone and a
resumed run sees the same pairs as an unbroken one.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rrt_core.transformer import SEGMENT_LOCAL_G, SEGMENT_LOCAL_Q, RerankingTransformer
from schemas.errors import UserError


@dataclass(frozen=True)
class Side:
    """One side of a batch of pairs.

    descriptor: float32 [B, global_dim]. local: float32 [B, n, d_model]. scale_rows: int64 [B, n].
    mask: bool [B, n], True at padding; None if no image has fewer than n locals.
    """

    descriptor: Tensor
    local: Tensor
    scale_rows: Tensor
    mask: Tensor | None = None

    def take(self, rows: slice) -> Side:
        """Some of the batch."""
        mask = None if self.mask is None else self.mask[rows]
        return Side(self.descriptor[rows], self.local[rows], self.scale_rows[rows], mask)


@dataclass(frozen=True)
class PairBatch:
    """label: float32 [B], 1 = the same instance."""

    query: Side
    gallery: Side
    label: Tensor

    def take(self, rows: slice) -> PairBatch:
        """Some of the pairs."""
        return PairBatch(self.query.take(rows), self.gallery.take(rows), self.label[rows])


@dataclass(frozen=True)
class TrainingOptions:
    """lr: peak learning rate after `warmup` steps, then a cosine down to `final_lr` * lr at the last step.
    clip: largest gradient norm. Steps are optimiser steps. precision: float32, or bfloat16 (autocast: weights,
    norms' sums and loss stay in float32; two to four times the pairs a second on a CPU with AVX-512 BF16).
    micro_batch: pairs in memory at once, 0 = all of a step; gradients are summed over them."""

    steps: int
    lr: float = 3e-4
    weight_decay: float = 5e-4  # the paper's
    warmup: int = 200
    final_lr: float = 0.03
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100
    evaluate_every: int = 500
    precision: str = "float32"
    micro_batch: int = 0


def initialise_matching(model: RerankingTransformer, sharpness: float = 25.0) -> None:
    """Start from a model whose first layer already compares each local with the most similar one of the other image.

    Not in the paper, which has a million photographs to learn it from. It is for locals in principal
    components, the widest first, whose last few dimensions are empty, as those of the extractor `efficientnet`
    (112 of 128 are used). Two of the empty dimensions are given a meaning: `side` tells the two images' locals
    apart (+1, -1), `ruler` is 1 for every local.

    - Attention: half of the heads compare the first components, half the next ones; an opposite `side` counts
      for, so that a local attends to its likeness in the other image and not to itself.
    - Values and output: the identity without the ruler. A local and its match then add up to a vector that is
      the longer the more alike they are (in all dimensions), and the layer norm makes the ruler's share the smaller.
    - Feed-forward: a unit for each of four degrees of likeness writes to an empty dimension of its own.

    All else is random, embeddings and outputs of the feed-forward smaller than Xavier's, so as not to drown the above.
    """
    config = model.config
    width, head = config.d_model, config.d_model // config.heads
    thresholds = (0.35, 0.45, 0.55, 0.65)
    ruler, side, outputs = width - 1, width - 2, range(width - 3, width - 3 - len(thresholds), -1)
    steepness, strength, side_share = 15.0, 4.0, 0.4
    with torch.no_grad():
        model.scale_encoder.weight.mul_(0.1)
        model.seg_encoder.weight.mul_(0.1)
        model.seg_encoder.weight[[SEGMENT_LOCAL_Q, SEGMENT_LOCAL_G], ruler] += 1
        model.seg_encoder.weight[SEGMENT_LOCAL_Q, side] += 1
        model.seg_encoder.weight[SEGMENT_LOCAL_G, side] -= 1
        for layer in model.layers:
            layer.linear2.weight.mul_(0.3)
        first = model.layers[0]
        query, key, value = first.self_attn.in_proj_weight.chunk(3)
        query.zero_()
        key.zero_()
        for number in range(config.heads):
            component = 0 if number < config.heads // 2 else head
            for place in range(head - 1):
                query[number * head + place, component + place] = sharpness
                key[number * head + place, component + place] = sharpness
            last = (number + 1) * head - 1
            query[last, side] = side_share * sharpness
            key[last, side] = -side_share * sharpness
        value.copy_(torch.eye(width))
        value[ruler] = 0
        first.self_attn.out_proj.weight.copy_(torch.eye(width))
        for unit, (likeness, output) in enumerate(zip(thresholds, outputs, strict=True)):
            # Squared length of local + match: 2 + 2 * likeness, and 1 along the ruler.
            first.linear1.weight[unit] = 0
            first.linear1.weight[unit, ruler] = -steepness
            first.linear1.bias[unit] = steepness * math.sqrt(width / (3 + 2 * likeness))
            first.linear2.weight[:, unit] = 0
            first.linear2.weight[output, unit] = strength


def logits_of(model: RerankingTransformer, batch: PairBatch) -> Tensor:
    """float32 [B], with gradients."""
    query, gallery = batch.query, batch.gallery
    tokens = model.embed(
        query.descriptor, query.local, query.scale_rows, gallery.descriptor, gallery.local, gallery.scale_rows
    )
    if query.mask is None and gallery.mask is None:
        return model.classify(tokens)
    always = torch.ones(len(tokens), 2, dtype=torch.bool)

    def real(side: Side) -> Tensor:
        return torch.ones(side.local.shape[:2], dtype=torch.bool) if side.mask is None else ~side.mask

    return model.classify(tokens, torch.cat([always, real(query), always, real(gallery)], dim=1))


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Linear warm-up, then cosine; `step` counts from 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return options.lr * (options.final_lr + (1 - options.final_lr) * cosine)


def train(
    model: RerankingTransformer,
    batch_of: Callable[[int], PairBatch],
    evaluate: Callable[[RerankingTransformer], dict[str, float]],
    options: TrainingOptions,
    folder: Path,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> None:
    """Train `model` in place, on the CPU.

    Args:
        batch_of: the pairs of a step, a function of the step's number (from 0) alone.
        evaluate: figures of the held-out split, logged every `evaluate_every` steps and at the end.
        folder: holds `state.pt` (model, optimiser, step: a rerun goes on from it) and `log.csv`
            (step, name, value: seconds, lr, loss and accuracy since the lines before, figures of `evaluate`).
        report: called with each row of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    state = folder / "state.pt"
    first = _resume(state, model, optimiser) if state.exists() else 0
    losses: list[float] = []
    hits: list[float] = []
    start = time.monotonic()
    for step in range(first, options.steps):
        model.train()
        batch = batch_of(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(options, step)
        optimiser.zero_grad(set_to_none=True)
        loss, logits = _backward(model, batch, options)
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimiser.step()
        losses.append(loss)
        hits.append(float(((logits > 0) == (batch.label > 0.5)).float().mean()))
        done = step + 1
        last = done == options.steps
        if done % options.checkpoint_every == 0 or last:
            row = {
                "step": float(done),
                "seconds": time.monotonic() - start,
                "lr": learning_rate(options, step),
                "loss": sum(losses) / len(losses),
                "accuracy": sum(hits) / len(hits),
            }
            losses, hits = [], []
            if done % options.evaluate_every == 0 or last:
                model.eval()
                row |= evaluate(model)
            _log(folder / "log.csv", row)
            report(row)
            _save(state, model, optimiser, done)
    model.eval()


def _backward(model: RerankingTransformer, batch: PairBatch, options: TrainingOptions) -> tuple[float, Tensor]:
    """Add a step's gradients to the parameters'; returns the mean loss and the logits, float32 [B]."""
    total, found = 0.0, []
    size = len(batch.label)
    for first in range(0, size, options.micro_batch or size):
        part = batch.take(slice(first, first + (options.micro_batch or size)))
        with torch.autocast(part.label.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = logits_of(model, part).float()
        loss = F.binary_cross_entropy_with_logits(logits, part.label, reduction="sum") / size
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        found.append(logits.detach())
    return total, torch.cat(found)


def _save(path: Path, model: RerankingTransformer, optimiser: torch.optim.Optimizer, step: int) -> None:
    # Written beside and renamed, so that a kill leaves the checkpoint before it.
    beside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, beside)
    beside.replace(path)


def _resume(path: Path, model: RerankingTransformer, optimiser: torch.optim.Optimizer) -> int:
    saved = torch.load(path, weights_only=True)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError:
        raise UserError(f"{path} is of another model: name another folder, or delete it.") from None
    optimiser.load_state_dict(saved["optimiser"])
    return int(saved["step"])


def _log(path: Path, row: dict[str, float]) -> None:
    """Long form, a line a value: evaluation is rarer than the rest, so columns would have holes."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "name", "value"])
        for name, value in row.items():
            if name != "step":
                writer.writerow([int(row["step"]), name, f"{value:.6g}"])
