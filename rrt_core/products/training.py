"""Training of the products variant: the global descriptor, the reranker, or both jointly.

Three modes, each of which starts from what the one before it made
(RRT_SOP/experiment_{global,rerank}.py):

    global   contrastive loss on the global descriptors of a batch; trains the backbone and `remap`
    frozen   binary cross-entropy on (anchor, positive) and (anchor, negative); trains the 1x1
             convolution and the matcher on the frozen backbone's maps
    joint    the same loss, and the backbone is trained too

The paper's figures: global SGD, lr 1e-3, momentum 0.9 (Nesterov), weight decay 4e-4, batches of 800
with 2 an identity, temperature 0.05; reranker AdamW, lr 1e-4, weight decay 4e-4, 100 triplets a
batch; 100 epochs, a tenth of the lr from epochs 60 and 80 on. Here a cosine takes the place of the
two drops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.options import check_choice
from rrt_core.products.backbone import Backbone
from rrt_core.products.evaluation import Described
from rrt_core.products.inputs import Inputs
from rrt_core.products.model import ProductsTransformer
from rrt_core.products.sampling import Batch, Ints, Sampler
from rrt_core.training import log as training_log
from rrt_core.training.loop import TrainingOptions, learning_rate
from rrt_core.training.state import STATE_NAME, Progressed, load_state, write_state
from schemas.errors import UserError

MODES = ("global", "frozen", "joint")
OPTIMISERS = ("adamw", "sgd")


@dataclass(frozen=True)
class ProductsOptions:
    """How a mode is trained.

    mode: see the module.
    trained: what of the backbone has gradients in the modes global and joint: `all` or `late`.
    steps: optimiser steps.
    batch: images a step (global: two an identity; frozen, joint: whole triplets).
    lr: peak, of `remap`, convolution and matcher.
    backbone_lr: of the backbone, as a share of lr.
    warmup: steps up to the peak, then a cosine to 3% of it.
    temperature: of the contrastive loss.
    global_share: joint: weight of the contrastive loss of anchors and positives, added to the
        reranker's (0 = the paper's).
    precision: bfloat16 lets the matcher compute in it (on a CPU the backbone stays in float32:
        depthwise convolutions in bfloat16 take twice as long backwards).
    clip: largest gradient norm, 0 = any.
    """

    mode: str
    steps: int
    trained: str = "all"
    batch: int = 72
    optimiser: str = "adamw"
    lr: float = 1e-4
    backbone_lr: float = 1.0
    weight_decay: float = 4e-4
    warmup: int = 20
    temperature: float = 0.05
    global_share: float = 0.0
    precision: str = "float32"
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 50
    evaluate_every: int = 200

    def __post_init__(self) -> None:
        for name, known in (
            ("mode", MODES),
            ("optimiser", OPTIMISERS),
            ("trained", ("all", "late")),
            ("precision", ("float32", "bfloat16")),
        ):
            check_choice(name, getattr(self, name), known)
        for name, least in (
            ("steps", 1),
            ("batch", 4 if self.mode == "global" else 3),
            ("checkpoint_every", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}.")

    @property
    def of_backbone(self) -> str:
        """What of the backbone is trained: all, late or none."""
        return "none" if self.mode == "frozen" else self.trained


class ProductsNetwork(nn.Module):
    """A backbone and the model behind it.

    Its input is the output of the kept part, by `trained`.
    """

    def __init__(self, backbone: Backbone, model: ProductsTransformer, trained: str) -> None:
        """Cut the backbone where the training begins.

        trained: all (input: crops), late (input: the early part's output) or none (input: maps).
        """
        super().__init__()
        self.backbone, self.model, self.trained = backbone, model, trained
        backbone.set_trained(trained)

    def maps(self, x: Tensor) -> Tensor:
        """Inputs -> maps, float [B, map_channels, h, w]."""
        if self.trained == "none":
            return x
        return self.backbone.late(x) if self.trained == "late" else self.backbone(x)


def contrastive_loss(descriptors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean of -log of the share of an image's own identity in its likeness to all others.

    descriptors: float [B, D], L2 = 1. labels: int64 [B]. Images without another of their identity
    are left out. The paper's code lets each image itself count with exp(0) among the others, a slip
    that is not repeated here.
    """
    likeness = descriptors @ descriptors.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None]) & ~itself
    everyone = likeness.masked_fill(itself, float("-inf")).logsumexp(1)
    counted = same.any(1)
    alike = likeness.masked_fill(~same, float("-inf"))[counted].logsumexp(1)
    return (everyone[counted] - alike).sum() / max(1, int(counted.sum()))


def triplet_loss(network: ProductsNetwork, maps: Tensor, precision: str) -> tuple[Tensor, float]:
    """Mean binary cross-entropy of T positive and T negative pairs, and their accuracy.

    maps: float [3 * T, map_channels, h, w]: anchor, positive, negative, anchor, ...
    """
    with torch.autocast(maps.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        local = network.model.describe_local(maps)
        anchors, positives, negatives = local[0::3], local[1::3], local[2::3]
        logits = network.model.matcher(
            torch.cat([anchors, anchors]), torch.cat([positives, negatives])
        ).float()
    label = torch.cat([torch.ones(len(anchors)), torch.zeros(len(anchors))]).to(logits)
    accuracy = float(((logits.detach() > 0) == (label > 0.5)).float().mean())
    return F.binary_cross_entropy_with_logits(logits, label), accuracy


def describe(network: ProductsNetwork, inputs: Inputs, rows: Ints, batch: int = 16) -> Described:
    """Descriptors of plain crops. Bits depend on `batch`, as those of any network."""
    network.eval()
    device = next(network.model.parameters()).device
    descriptors, local = [], []
    with torch.inference_mode():
        for first in range(0, len(rows), batch):
            these = rows[first : first + batch]
            maps = network.maps(inputs.batch(these, np.zeros_like(these)).to(device))
            descriptors.append(network.model.describe_global(maps).float().cpu())
            local.append(network.model.describe_local(maps).float().cpu())
    return Described(torch.cat(descriptors).numpy(), torch.cat(local))


def train(
    network: ProductsNetwork,
    inputs: Inputs,
    sampler: Sampler,
    options: ProductsOptions,
    folder: Path,
    near: Ints | None = None,
    evaluate: Callable[[], dict[str, float]] = dict,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    identity: str = "",
) -> None:
    """Train `network` in place.

    Args:
        inputs: of the images that the sampler's rows name, as `network.trained` wants them.
        near: neighbours to draw negatives from (products_sampling.neighbours), for frozen and
            joint.
        evaluate: figures of held-out identities, logged every `evaluate_every` steps and at the
            end.
        folder: holds `state.pt`, from which a rerun continues to the same weights (on a CPU bit by
            bit), and `log.csv`.
        report: called with each row of the log.
        identity: names data and options; the state of another run is refused.
    """
    if network.trained != options.of_backbone:
        raise ValueError(
            f"a network with {network.trained} trained cannot be trained with {options.of_backbone}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    groups = parameter_groups(network, options)
    optimiser = make_optimiser(groups, options)
    schedule = TrainingOptions(steps=options.steps, lr=1.0, warmup=options.warmup, final_lr=0.03)
    state = folder / STATE_NAME
    begun = (
        load_state(state, network, optimiser, None, identity, "network")
        if state.exists()
        else Progressed()
    )
    training_log.truncate(folder / training_log.LOG_NAME, begun.step)
    device = next(network.model.parameters()).device
    started, losses, hits = time.monotonic() - begun.seconds, [], []
    for number in range(begun.step, options.steps):
        network.train()
        for group, own in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = own["lr"] * learning_rate(schedule, number)
        batch = _batch(sampler, options, number, near)
        maps = network.maps(inputs.batch(batch.rows, batch.copies).to(device))
        loss, accuracy = _loss(network, maps, batch, options)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip:
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], options.clip)
        optimiser.step()
        losses.append(float(loss.detach()))
        hits.append(accuracy)
        done = number + 1
        last = done == options.steps
        if done % options.checkpoint_every == 0 or last:
            row = {"step": float(done), "seconds": time.monotonic() - started}
            row |= {"lr": optimiser.param_groups[-1]["lr"], "loss": float(np.mean(losses))}
            if options.mode != "global":
                row["accuracy"] = float(np.mean(hits))
            losses, hits = [], []
            if done % options.evaluate_every == 0 or last:
                row |= evaluate()
            training_log.append(folder / training_log.LOG_NAME, row)
            saved = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            progress = {"step": done, "seconds": time.monotonic() - started}
            write_state(state, {**saved, **progress, "identity": identity})
            report(row)
    network.eval()


def _batch(sampler: Sampler, options: ProductsOptions, step: int, near: Ints | None) -> Batch:
    if options.mode == "global":
        return sampler.identities(step, options.batch)
    if near is None:
        raise ValueError("frozen and joint need neighbours to draw negatives from")
    return sampler.triplets(step, options.batch // 3, near)


def _loss(
    network: ProductsNetwork, maps: Tensor, batch: Batch, options: ProductsOptions
) -> tuple[Tensor, float]:
    labels = torch.from_numpy(batch.labels).to(maps.device)
    if options.mode == "global":
        return contrastive_loss(
            network.model.describe_global(maps), labels, options.temperature
        ), 0.0
    loss, accuracy = triplet_loss(network, maps, options.precision)
    if options.mode == "joint" and options.global_share:
        descriptors = network.model.describe_global(maps)
        loss = loss + options.global_share * contrastive_loss(
            descriptors, labels, options.temperature
        )
    return loss, accuracy


def parameter_groups(network: ProductsNetwork, options: ProductsOptions) -> list[dict[str, Any]]:
    """Parameters that the mode trains, with their peak lr.

    The backbone's come first, where it is trained.
    """
    model = network.model
    parts: list[nn.Module] = (
        [model.remap] if options.mode == "global" else [model.remap_local, model.matcher]
    )
    if options.mode == "joint" and options.global_share:
        parts.append(model.remap)
    groups = [{"params": [p for part in parts for p in part.parameters()], "lr": options.lr}]
    backbone = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    if backbone:
        groups.insert(0, {"params": backbone, "lr": options.lr * options.backbone_lr})
    return groups


def make_optimiser(groups: list[dict[str, Any]], options: ProductsOptions) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9 after Nesterov."""
    if options.optimiser == "adamw":
        return torch.optim.AdamW(
            [dict(group) for group in groups], weight_decay=options.weight_decay
        )
    return torch.optim.SGD(
        [dict(group) for group in groups],
        momentum=0.9,
        nesterov=True,
        weight_decay=options.weight_decay,
    )
