"""Training of the Reranking Transformer: the loop, its options, one step.

The loop follows the paper (section 4; RRT_GLD/experiment.py): binary cross-entropy on positive and
negative pairs, AdamW, dropout 0. What differs is noted where it stands. Data is the caller's:
`train` asks a function for the pairs of a step, so that a step depends on its number and the seed
alone and a resumed run sees the same pairs as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.options import check_choice
from rrt_core.training.processes import Processes
from rrt_core.training.state import Progressed
from rrt_core.training.steps import Run, go_on, resume
from rrt_core.transformer.model import RerankingTransformer
from schemas.errors import UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEDULES = ("constant", "cosine")


class _Tensors:
    """What is done alike to all tensors of a dataclass."""

    def take(self, rows: slice) -> Self:
        """Some of the batch."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        """The batch on a device; from pinned memory the copy overlaps with work."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The batch in pinned memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {
            name: value._each(change) if isinstance(value, _Tensors) else change(value)
            for name, value in vars(self).items()
            if value is not None
        }
        return type(self)(**changed)


@dataclass(frozen=True)
class Side(_Tensors):
    """One side of a batch of pairs.

    descriptor: float32 [B, global_dim].
    local: float32 [B, n, d_model].
    scale_rows: int64 [B, n].
    mask: bool [B, n], True at padding; None if no image has fewer than n locals.
    """

    descriptor: Tensor
    local: Tensor
    scale_rows: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class PairBatch(_Tensors):
    """Pairs of images; label: float32 [B], 1 = the same instance."""

    query: Side
    gallery: Side
    label: Tensor


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained. Steps are optimiser steps.

    lr: peak learning rate.
    schedule: `cosine` goes from lr to `final_lr` * lr at the last step, `constant` stays (the
        paper); either is reached over `warmup` steps.
    clip: largest gradient norm, 0 = any.
    precision: float32, or bfloat16 or (CUDA only, with loss scaling) float16 by autocast: weights,
        norms' sums and loss stay in float32; bfloat16 makes two to four times the pairs a second on
        a CPU with AVX-512 BF16.
    micro_batch: pairs in memory at once, 0 = all of a step; gradients are summed over them.
    """

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
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"Training: {name} must be at least 1, not {getattr(self, name)}.")
        for name in ("weight_decay", "warmup", "final_lr", "clip", "micro_batch"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"Training: {name} must not be negative, and is {getattr(self, name)}."
                )
        if not self.lr > 0:
            raise UserError(f"Training: lr must be above 0, not {self.lr}.")
        check_choice("Training: precision", self.precision, PRECISIONS)
        check_choice("Training: schedule", self.schedule, SCHEDULES)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UserError where a precision cannot be had on a device."""
    if precision == "float16" and device.type != "cuda":
        raise UserError(
            "Training in float16 needs a CUDA device, for its loss scaling; give bfloat16 or "
            "float32."
        )


def logits_of(model: RerankingTransformer, batch: PairBatch) -> Tensor:
    """float32 [B], with gradients."""
    query, gallery = batch.query, batch.gallery
    tokens = model.embed(
        query.descriptor,
        query.local,
        query.scale_rows,
        gallery.descriptor,
        gallery.local,
        gallery.scale_rows,
    )
    if query.mask is None and gallery.mask is None:
        return model.classify(tokens)
    always = torch.ones(len(tokens), 2, dtype=torch.bool, device=tokens.device)

    def real(side: Side) -> Tensor:
        if side.mask is None:
            return torch.ones(side.local.shape[:2], dtype=torch.bool, device=tokens.device)
        return ~side.mask

    return model.classify(tokens, torch.cat([always, real(query), always, real(gallery)], dim=1))


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Linear warm-up, then the schedule; `step` counts from 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return options.lr * (options.final_lr + (1 - options.final_lr) * cosine)


class _Pairs(nn.Module):
    """logits_of as a module's forward, where DistributedDataParallel listens."""

    def __init__(self, model: RerankingTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> Tensor:
        return logits_of(self.model, batch)


def train(
    model: RerankingTransformer,
    batch_of: Callable[[int], PairBatch],
    evaluate: Callable[[RerankingTransformer], dict[str, float]],
    options: TrainingOptions,
    folder: Path,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    *,
    processes: Processes | None = None,
    pairs: int = 0,
    identity: str = "",
    select: str = "",
    keep_best: Callable[
        [RerankingTransformer, int, dict[str, float]], None
    ] = lambda model, step, figures: None,
    tick: Callable[[int], None] = lambda done: None,
) -> Progressed:
    """Train `model` in place, on the device where it is.

    Args:
        batch_of: the pairs of a step, a function of the step's number (from 0) alone; of several
            processes each is given its own share.
        evaluate: figures of the held-out split, logged every `evaluate_every` steps and at the end.
            Every process calls it.
        folder: holds `state.pt` (a rerun continues from it) and `log.csv` (step, name, value:
            seconds, lr, loss and accuracy since the lines before, figures of `evaluate`).
        report: called by the first process with each row of the log.
        processes: the processes that train together; None: this one alone.
        pairs: pairs of a step over all processes; 0: those of the batch.
        identity: names data and options; a checkpoint of another is refused.
        select: the figure of `evaluate` by which the best step is chosen (higher is better; of
            equal ones the first); "": none is chosen.
        keep_best: called by the first process whenever a step is better than all before; after a
            kill perhaps twice with the same.
        tick: called after each step, by every process.
    Returns: how far it came, with the figures of the last and of the best evaluation.
    Raises:
        UserError: `folder` holds a checkpoint of another model or identity; precision and device do
            not fit; the loss is no number any more.
    """
    processes = processes or Processes(device=next(model.parameters()).device)
    check_precision(options.precision, processes.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    scaler = torch.amp.GradScaler("cuda") if options.precision == "float16" else None
    every = options.checkpoint_every, options.evaluate_every
    run = Run(folder, options.steps, *every, identity, processes)
    progressed = resume(run, model, optimiser, scaler)
    module: nn.Module = _Pairs(model)
    if processes.world > 1:
        module = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def take_step(step: int) -> Tensor:
        batch = batch_of(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(options, step)
        optimiser.zero_grad(set_to_none=True)
        sums = _backward(module, batch.to(processes.device), options, processes, pairs, scaler)
        _update(model, optimiser, options, scaler)
        return sums

    return go_on(
        run,
        progressed,
        model,
        optimiser,
        take_step,
        lambda: evaluate(model),
        scaler=scaler,
        report=report,
        tick=tick,
        select=select,
        keep_best=lambda step, figures: keep_best(model, step, figures),
    )


def _backward(
    module: nn.Module,
    batch: PairBatch,
    options: TrainingOptions,
    processes: Processes,
    pairs: int,
    scaler: torch.amp.GradScaler | None,
) -> Tensor:
    """Add a step's gradients to the parameters'.

    Returns float64 [3]: loss summed over the pairs, hits, pairs.
    """
    own = len(batch.label)
    # DistributedDataParallel gives the mean over processes: times `world` it is the sum, which is
    # divided by all pairs, so that the gradient is one process's, however unequal the shares.
    weight = processes.world / (pairs or own)
    device = batch.label.device
    sums: list[Tensor] = []

    for first in range(0, own, options.micro_batch or own):
        part = batch.take(slice(first, first + (options.micro_batch or own)))
        more = first + len(part.label) < own
        waits = module.no_sync() if more and processes.world > 1 else nullcontext()  # type: ignore[operator]
        with waits:
            kind = PRECISIONS[options.precision]
            with torch.autocast(device.type, kind, enabled=kind != torch.float32):
                logits = module(part).float()
            loss = F.binary_cross_entropy_with_logits(logits, part.label, reduction="sum")
            scaled = loss * weight
            (scaled if scaler is None else scaler.scale(scaled)).backward()  # type: ignore[no-untyped-call]
        hits = ((logits.detach() > 0) == (part.label > 0.5)).sum()
        sums.append(
            torch.stack(
                [loss.detach().double(), hits.double(), hits.new_tensor(len(part.label)).double()]
            )
        )

    return torch.stack(sums).sum(0)


def _update(
    model: RerankingTransformer,
    optimiser: torch.optim.Optimizer,
    options: TrainingOptions,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Clip the gradients and take an optimiser step."""
    if scaler is not None:
        scaler.unscale_(optimiser)
    _zero_key_bias_gradients(model)
    if options.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)
        scaler.update()


def _zero_key_bias_gradients(model: RerankingTransformer) -> None:
    """Set the gradients of the keys' biases to zero.

    A key's bias adds the same to all likenesses of a query, which the softmax ignores: its gradient
    is zero but for rounding. AdamW would make steps of full length of it, in another direction on
    every machine.
    """
    width = model.config.d_model
    for layer in model.layers:
        gradient = layer.self_attn.in_proj_bias.grad
        if gradient is not None:
            gradient[width : 2 * width] = 0
