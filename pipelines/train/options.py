"""Options and settings of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import MOST_SEED, Checked, option
from schemas.errors import UserError

STAGE = "train"


@dataclass(frozen=True)
class Options(Checked, command="train"):
    """Options of `train`. The defaults are the paper's recipe, a held-out split aside."""

    stores: tuple[str, ...] = option(
        "stores of the training images, described alike (required)", (), unique=True
    )
    labels: str = option(
        "file of `record id or path,label`, or 'folder': the parent folder's name (required)", ""
    )
    out: str = option("folder for weights, log, plot and checkpoint (required)", "")
    config: str = option("YAML with values of these options; flags go before it", "")
    dry_run: bool = option("mine, say what would be trained, write nothing", False)
    shortlist: str = option(
        "run folder of `search` of the store against its own index; default: exact neighbours", ""
    )
    neighbours: int = option(
        "nearest records by global descriptor in which pairs are mined", 100, least=1, most=100_000
    )
    least_positives: int = option(
        "an anchor has so many of its own label among its neighbours", 5, least=1
    )
    triplets: int = option(
        "triplets a step over all processes; each is a positive and a negative pair",
        12,
        least=1,
        most=100_000,
    )
    epochs: float = option(
        "how often each anchor comes", 15.0, above=0, most=1e6, excludes=("steps",)
    )
    steps: int = option("optimiser steps, in place of epochs", 0, least=0, most=10**9)
    lr: float = option("learning rate of AdamW", 1e-4, above=0)
    weight_decay: float = option("weight decay of AdamW", 5e-4, least=0, most=10)
    clip: float = option("largest norm of the gradient; 0: any", 0.1, least=0)
    schedule: str = option("of the learning rate", "constant", choices=("constant", "cosine"))
    warmup: int = option("steps over which the learning rate rises", 0, least=0)
    final_lr: float = option(
        "share of the learning rate at the end of a cosine", 0.03, least=0, most=1
    )
    query_tokens: str = option(
        "local descriptors of a query, the first stored; of a range 50-500 one a step", "500"
    )
    gallery_tokens: str = option("the same of a gallery image", "500")
    symmetric_order: bool = option("each pair in either order, by chance", False)
    init: str = option(
        "start: random (the paper), identity, matching, or a file of weights", "random"
    )
    sharpness: float = option(
        "of the start identity or matching; 0: its default", 0.0, least=0, most=1e4
    )
    layers: int = option(
        "encoder layers; 0: 6, or those of the file of weights", 0, least=0, most=64
    )
    heads: int = option(
        "attention heads; 0: 4, or those of the file of weights", 0, least=0, most=256
    )
    feedforward: int = option(
        "width of the feed-forward; 0: 1024, or that of the file of weights",
        0,
        least=0,
        most=65_536,
    )
    scale_binning: str = option(
        "scales: fixed or rrt_legacy; default: fixed, or what the file of weights has",
        "",
        choices=("", "fixed", "rrt_legacy"),
    )
    precision: str = option(
        "of products; float16 needs CUDA", "float32", choices=("float32", "bfloat16", "float16")
    )
    micro_batch: int = option(
        "pairs in memory at once, a process; 0: all of its share of a step", 0, least=0
    )
    validation: float = option(
        "share of the labels that is held out; 0: none, and no step is chosen",
        0.05,
        least=0,
        most=0.99,
    )
    validation_anchors: int = option(
        "held-out anchors whose neighbours are reranked at an evaluation", 50, least=1
    )
    validation_pairs: int = option(
        "held-out pairs scored at an evaluation, half of them positive", 1000, least=1
    )
    validation_tokens: str = option(
        "local descriptors of each image there; default: the most of training", ""
    )
    evaluate_every: int = option("steps between evaluations", 1000, least=1)
    checkpoint_every: int = option(
        "steps between checkpoints, from which a killed run goes on", 100, least=1
    )
    seed: int = option("seed of split, mining and start", 0, least=0, most=MOST_SEED)
    cache_mb: int = option("local descriptors kept in memory, a process", 2048, least=0, most=10**7)
    device: str = option("auto, cpu, cuda or cuda:N", "auto")


@dataclass(frozen=True)
class Settings(Checked, command="train"):
    """How to run, never what."""

    threads: int = option(
        "threads of torch, a process; 0: all cores, shared out among the processes",
        0,
        least=0,
        most=1_024,
    )
    overwrite: bool = option("train again where another recipe's output is", False)


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """The options given by flags, and below them those of the configuration that the flag --config
    names.
    """
    path = str(values.get("config") or "")
    if not path:
        return values
    from pipelines.configurations import read_configuration

    config = read_configuration(path)
    if not isinstance(config.get(STAGE, {}), dict):
        raise UserError(f"{path}: it must be a mapping of options, or hold one under '{STAGE}'")
    return {**config.get(STAGE, config), **values}
