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
from rrt_core.training.loop import TrainingOptions, learning_rate
from rrt_core.training.state import Progressed
from rrt_core.training.steps import Run, go_on, resume
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
    tick: Callable[[int], None] = lambda done: None,
) -> Progressed:
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
        tick: called after each step.

    Returns how far it came. Raises UserError as the steps of any run do.
    """
    if network.trained != options.of_backbone:
        raise ValueError(
            f"a network with {network.trained} trained cannot be trained with {options.of_backbone}"
        )

    groups = parameter_groups(network, options)
    optimiser = make_optimiser(groups, options)
    schedule = TrainingOptions(steps=options.steps, lr=1.0, warmup=options.warmup, final_lr=0.03)
    device = next(network.model.parameters()).device
    parameters = [parameter for group in groups for parameter in group["params"]]

    def take_step(step: int) -> Tensor:
        for group, own in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = own["lr"] * learning_rate(schedule, step)
        batch = _batch(sampler, options, step, near)
        maps = network.maps(inputs.batch(batch.rows, batch.copies).to(device))
        loss, accuracy = _loss(network, maps, batch, options)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip:
            nn.utils.clip_grad_norm_(parameters, options.clip)
        optimiser.step()
        return torch.tensor([float(loss.detach()), accuracy, 1.0], dtype=torch.float64)

    run = Run(folder, options.steps, options.checkpoint_every, options.evaluate_every, identity)
    return go_on(
        run,
        resume(run, network, optimiser),
        network,
        optimiser,
        take_step,
        evaluate,
        report=report,
        tick=tick,
        without="accuracy" if options.mode == "global" else "",
    )


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
