"""What a training is made of: anchors with their neighbours, counted; and what is said of it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.engines.progress import Progress
from pipelines.train.neighbours import exact_neighbours, shortlist_neighbours
from pipelines.train.options import STAGE, Options
from pipelines.train.records import Records, copy_globals
from rrt_core.training.mining import Anchors, choose_anchors
from rrt_core.training.processes import Processes
from rrt_core.transformer.model import RerankingTransformer
from schemas.errors import UserError
from schemas.manifest import canonical_json, sha256_text


@dataclass(frozen=True)
class Mined:
    """Records with their descriptors, neighbours and anchors.

    `held_out` is empty where nothing is held out.
    """

    records: Records
    descriptors: np.ndarray
    neighbours: np.ndarray
    anchors: Anchors
    held_out: Anchors


# ------------------------------------------------------------------------------------------- mining


def mine(options: Options, records: Records, cache: Path, processes: Processes) -> Mined:
    """Neighbours and anchors; what took long lies in `cache`, under names that tell what it is
    of.
    """
    contents = [store.manifest.content for store in records.stores]
    names = [contents, records.sha256]
    path = cache / f"globals-{sha256_text(canonical_json(names))[:12]}.npy"
    if processes.first:
        for sentence in records.dropped:
            print(f"{STAGE:<9}  {sentence}", file=sys.stderr)
        copy_globals(records, path)
    processes.wait()
    descriptors = np.load(path, mmap_mode="r")
    if options.shortlist:
        neighbours = shortlist_neighbours(records, options.shortlist, options.neighbours)
    else:
        key = [*names, options.seed, options.validation, options.neighbours]
        folder = cache / f"neighbours-{sha256_text(canonical_json(key))[:12]}"
        progress = Progress(f"{'mine':<9}", len(records), "records") if processes.first else None
        neighbours = exact_neighbours(
            records,
            descriptors,
            options.neighbours,
            folder,
            processes,
            progress.show if progress else lambda _: None,
        )
        if progress:
            progress.finish(len(records))
    sides = [np.flatnonzero(records.held_out == side) for side in (False, True)]
    anchors, held_out = (
        choose_anchors(neighbours, records.labels, rows, options.least_positives) for rows in sides
    )
    what = (
        f"has {options.least_positives} of its own label among its {options.neighbours} nearest "
        "neighbours"
    )
    if not len(anchors.rows):
        raise UserError(
            f"train: none of the {len(sides[0]):,} records {what}, and one of another; "
            "lower --least-positives, raise --neighbours, or give more images a label"
        )
    if options.validation and not len(held_out.rows):
        raise UserError(
            f"train: none of the {len(sides[1]):,} held-out records {what}, and one of another; "
            "raise --validation, or hold nothing out with --validation 0"
        )
    return Mined(records, descriptors, neighbours, anchors, held_out)


def steps_of(options: Options, mined: Mined) -> int:
    """Optimiser steps of the whole training."""
    return options.steps or math.ceil(options.epochs * len(mined.anchors.rows) / options.triplets)


def describe(
    options: Options, mined: Mined, model: RerankingTransformer, processes: Processes
) -> str:
    """What is trained, in a few lines."""
    records = mined.records
    aside = len(np.unique(records.labels[records.held_out]))
    steps, anchors = steps_of(options, mined), len(mined.anchors.rows)
    epochs = steps * options.triplets / anchors
    parameters = sum(p.numel() for p in model.parameters())
    several = f", {processes.world} processes" if processes.world > 1 else ""
    lines = {
        "records": f"{len(records):,} with {len(records.names):,} labels, described by "
        f"{records.stores[0].extractor['name']}",
        "held out": f"{aside:,} labels with {int(records.held_out.sum()):,} records",
        "anchors": _counted(mined.anchors, options),
        "held-out anchors": _counted(mined.held_out, options),
        "training": f"{steps:,} steps of {options.triplets} triplets ({epochs:.2f} epochs),"
        f" {options.query_tokens} + {options.gallery_tokens} locals a pair",
        "model": f"{parameters:,} parameters, start: {options.init}",
        "on": f"{processes.device}, {options.precision}{several}",
    }
    if not options.validation:
        lines["held out"] = "nothing: no figures, and the last step is what there is"
        del lines["held-out anchors"]
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items())


def _counted(anchors: Anchors, options: Options) -> str:
    kept, few, without = len(anchors.rows), anchors.too_few, anchors.without_negative
    text = f"{kept:,} of {kept + few + without:,} records; {few:,} have fewer than "
    text += f"{options.least_positives} of their label among their {options.neighbours} nearest"
    return text + (f", {without:,} have nothing else among them" if without else "")
