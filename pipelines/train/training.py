"""What `train` does: records, neighbours, anchors, model, loop, weights and, last, the manifest."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.engines import signals as stopping
from pipelines.engines.processes import limit_threads
from pipelines.jobs.manifests import as_input
from pipelines.train.anchors import Mined, describe, mine, steps_of
from pipelines.train.batches import Budget, PairBatches, Prefetched, TokenCache, read_budget
from pipelines.train.neighbours import require_shortlist
from pipelines.train.options import STAGE, Options, Settings
from pipelines.train.output import (
    BEST,
    CACHE,
    WEIGHTS,
    Output,
    Speaker,
    open_output,
    save_weights,
    say_slow,
)
from pipelines.train.records import Records, open_stores_of, read_records
from pipelines.train.validation import SELECT, Validation
from rrt_core.checkpoints import load_checkpoint
from rrt_core.training.log import LOG_NAME, PLOT_NAME, plot, read
from rrt_core.training.loop import TrainingOptions, check_precision, train
from rrt_core.training.mining import TripletSampler
from rrt_core.training.processes import Processes, join
from rrt_core.training.state import Progressed
from rrt_core.transformer.initialisation import initialise_identity, initialise_matching
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import UserError
from schemas.manifest import Counts, Manifest, Marker
from schemas.plan import Job, Unit, WholeJob

TITLE = f"{STAGE:<9}"
STARTS: dict[str, Callable[..., None]] = {
    "identity": initialise_identity,
    "matching": initialise_matching,
}
# These change where or how, not what; `labels` and `init` stand in the recipe by their content.
NOT_OF_THE_RECIPE = {
    "stores",
    "labels",
    "out",
    "config",
    "dry_run",
    "shortlist",
    "cache_mb",
    "device",
    "init",
}


def run(options: Options, settings: Settings) -> Manifest | None:
    """As train.run."""
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        _be_silent()
    try:
        processes = join(options.device)
        check_precision(options.precision, processes.device)
        if options.triplets < processes.world:
            raise UserError(
                f"train: {options.triplets} triplets a step are too few for "
                f"{processes.world} processes"
            )
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes.world > 1 else 1
        limit_threads(settings.threads or max(1, len(os.sched_getaffinity(0)) // local))
        made = None
        if options.dry_run:
            _dry_run(options, processes)
        else:
            made = _train(options, settings, processes)
    except UserError:
        if not first:
            # a mistake that the first process meets too is said there, and torchrun ends this one
            time.sleep(5)
        raise
    processes.leave()
    return made


def _be_silent() -> None:
    """Leave the last sentence after a signal to the first process."""
    for number in stopping.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _dry_run(options: Options, processes: Processes) -> None:
    if not processes.first:
        return
    records, model, _ = _prepare(options)
    alone = Processes(device=processes.device)
    with tempfile.TemporaryDirectory(prefix="rrt-train-") as folder:
        mined = mine(options, records, Path(folder), alone)
        print(describe(options, mined, model, processes))
        del mined
    print("Dry run: nothing was written.")


def _train(options: Options, settings: Settings, processes: Processes) -> Manifest | None:
    started = time.monotonic()
    records, model, start = _prepare(options)
    job = _job(options, records, model, start)
    with open_output(job, processes, settings.overwrite) as output:
        if output.made is not None:
            return output.made if processes.first else None
        if processes.first:
            output.begin()
            say_slow(STAGE, options.precision, processes.device)
        processes.wait()
        try:
            mined = mine(options, records, output.folder / CACHE, processes)
        except UserError:
            if processes.first:
                output.withdraw()
            raise
        if processes.first:
            print(describe(options, mined, model, processes), file=sys.stderr)
        return _learn(options, processes, output, mined, model, started)


# ---------------------------------------------------------------------------------- what is trained


def _prepare(options: Options) -> tuple[Records, RerankingTransformer, str]:
    """Records, the model at its start, and what names the start."""
    _budgets(options)
    _recipe(options, 1)
    stores = open_stores_of(options.stores)
    extractor = stores[0].extractor
    model, start = _new_model(options, int(extractor["global_dim"]), int(extractor["local_dim"]))
    return read_records(stores, options.labels, options.validation, options.seed), model, start


def _recipe(options: Options, steps: int) -> TrainingOptions:
    """The loop's options, checked."""
    names = {field.name for field in fields(TrainingOptions)} & {
        field.name for field in fields(Options)
    }
    return TrainingOptions(**{**{name: getattr(options, name) for name in names}, "steps": steps})


def _new_model(
    options: Options, global_dim: int, local_dim: int
) -> tuple[RerankingTransformer, str]:
    """The model at its start, and the start's name or, of a file of weights, SHA-256."""
    chosen = {
        name: getattr(options, name) for name in ("layers", "heads", "feedforward", "scale_binning")
    }
    chosen = {name: value for name, value in chosen.items() if value}
    if options.init == "random" or options.init in STARTS:
        torch.manual_seed(options.seed)
        model = RerankingTransformer(
            ModelConfig(
                **{
                    "global_dim": global_dim,
                    "d_model": local_dim,
                    "scale_binning": "fixed",
                    **chosen,
                }
            )
        )
        if options.init in STARTS:
            more = {"sharpness": options.sharpness} if options.sharpness else {}
            STARTS[options.init](model, **more)
        return model, options.init
    checkpoint = load_checkpoint(options.init, options.scale_binning or None)
    config = checkpoint.model.config
    if (config.global_dim, config.d_model) != (global_dim, local_dim):
        raise UserError(
            f"train: {options.init} is for globals of {config.global_dim} and locals of "
            f"{config.d_model} dimensions, "
            f"the stores have {global_dim} and {local_dim}; give other weights, or --init random"
        )
    for name, value in chosen.items():
        if getattr(config, name) != value:
            raise UserError(
                f"train: --{name} is {value}, but {options.init} has {getattr(config, name)}; "
                "leave it out"
            )
    return checkpoint.model, checkpoint.sha256


def _budgets(options: Options) -> tuple[Budget, Budget, int]:
    """Of query and gallery, and the number of validation."""
    query, gallery = (
        read_budget(getattr(options, name), f"--{name.replace('_', '-')}")
        for name in ("query_tokens", "gallery_tokens")
    )
    most = max(query[1], gallery[1])
    tokens = (
        read_budget(options.validation_tokens, "--validation-tokens")[1]
        if options.validation_tokens
        else most
    )
    return query, gallery, tokens


def _job(options: Options, records: Records, model: RerankingTransformer, start: str) -> Job:
    """Identity of the training: options by value, stores, labels and start by content."""
    recipe = {
        field.name: getattr(options, field.name)
        for field in fields(Options)
        if field.name not in NOT_OF_THE_RECIPE
    }
    recipe |= {"model": asdict(model.config), "init": start, "labels_sha256": records.sha256}
    recipe["extractor"] = records.stores[0].extractor
    inputs = {f"store-{number}": store.as_input for number, store in enumerate(records.stores)}
    if options.shortlist:
        manifest = require_shortlist(options.shortlist, records, options.neighbours)
        inputs["shortlist"] = as_input(f"{options.shortlist}/shortlist", manifest)
    return Job(STAGE, options.out, "", recipe, inputs, (), facts={"kind": "weights"})


# ----------------------------------------------------------------------------------------- training


def _learn(
    options: Options,
    processes: Processes,
    output: Output,
    mined: Mined,
    model: RerankingTransformer,
    started: float,
) -> Manifest | None:
    folder, records, steps = output.folder, mined.records, steps_of(options, mined)
    query, gallery, tokens = _budgets(options)
    cache = TokenCache(
        records,
        mined.descriptors,
        max(query[1], gallery[1], tokens),
        model.config.scale_binning,
        options.cache_mb * 1_000_000,
    )
    sampler = TripletSampler(mined.neighbours, records.labels, mined.anchors.rows, options.seed)
    pairs = PairBatches(
        cache, sampler, options.triplets, (query, gallery), options.symmetric_order, processes
    )
    batches = Prefetched(pairs, steps)
    validation = None
    if options.validation:
        validation = Validation(
            cache,
            mined.neighbours,
            mined.held_out.rows,
            options.validation_anchors,
            options.validation_pairs,
            (tokens, tokens),
            options.seed,
            processes,
        )
    model.to(processes.device)
    notes = _notes(options, output.job, mined, steps)
    speaker = Speaker(TITLE, folder, steps, lambda row: _said(row, steps), plotted=SELECT)

    def keep_best(trained: RerankingTransformer, step: int, figures: dict[str, float]) -> None:
        save_weights(folder / BEST, trained, {**notes, "step": step, "figures": figures})

    def tick(done: int) -> None:
        stopping.pass_or_wait()
        if processes.first:
            speaker.tick(done)

    try:
        progressed = train(
            model,
            batches,
            validation or (lambda _: {}),
            _recipe(options, steps),
            folder,
            speaker.report,
            processes=processes,
            pairs=2 * options.triplets,
            identity=output.job.recipe_hash,
            select=SELECT if validation else "",
            keep_best=keep_best,
            tick=tick,
        )
    finally:
        batches.close()
        speaker.close()
    if not processes.first:
        return None
    save_weights(folder / WEIGHTS, model, {**notes, "step": steps, "figures": progressed.figures})
    return _finish(output, notes, progressed, time.monotonic() - started)


def _said(row: dict[str, float], steps: int) -> str:
    """What is said of a row of the log, where it was evaluated, and of the last one."""
    if SELECT not in row and int(row["step"]) != steps:
        return ""
    text = f"step {int(row['step']):,}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}"
    if SELECT in row:
        text += (
            f"; held out: loss {row['val_loss']:.4f}, AUC {row['val_auc']:.4f}, "
            f"mAP {row[SELECT]:.4f} (global {row['val_map_global']:.4f})"
        )
    return text


def _finish(
    output: Output, notes: dict[str, Any], progressed: Progressed, seconds: float
) -> Manifest:
    """Draw the plot, and write the manifest, last."""
    plot(output.folder / PLOT_NAME, read(output.folder / LOG_NAME), progressed.best_step)
    selected = {"step": progressed.best_step, **progressed.best} if progressed.best_step else None
    summary = {"figures": progressed.figures, "selected": selected}
    facts = {"kind": "weights", "steps": progressed.step, "data": notes["data"], **summary}
    facts["selected_by"] = notes["selected_by"]
    unit = Unit("weights", WholeJob(), 0)
    recipe = output.job.recipe_hash
    marker = Marker(unit.name, recipe, "", (), Counts(0, 0), summary, progressed.seconds)
    names = [WEIGHTS, *([BEST] if progressed.best_step else [])]
    job = replace(output.job, facts=facts, units=(unit,))
    manifest = output.finish(job, names, marker, seconds)
    output.swap_in()
    return manifest


def _notes(options: Options, job: Job, mined: Mined, steps: int) -> dict[str, Any]:
    """What the weights say of their making; nothing of time and place, so that equal training gives
    equal bytes.
    """
    records = mined.records
    return {
        "made_by": "train",
        "extractor": records.stores[0].extractor,
        "data": {
            "stores": [store.manifest.content for store in records.stores],
            "labels_sha256": records.sha256,
            "records": len(records),
            "labels": len(records.names),
            "held_out_labels": len(np.unique(records.labels[records.held_out])),
            "held_out_records": int(records.held_out.sum()),
            "anchors": len(mined.anchors.rows),
            "held_out_anchors": len(mined.held_out.rows),
        },
        "training": {**job.recipe, "steps": steps},
        "selected_by": _selected_by(options),
        "recipe_hash": job.recipe_hash,
    }


def _selected_by(options: Options) -> str:
    if not options.validation:
        return "nothing was held out: no step is chosen"
    return (
        "the step with the highest mAP of held-out labels, none of which was trained on or is "
        "test data"
    )
