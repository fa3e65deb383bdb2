"""train-products: photographs and labels -> weights of a backbone and its Reranking Transformer for
products.

One process trains; a rerun goes on from the last checkpoint, and ends with the weights of an
undisturbed run (on a CPU, with as many threads). Files of the output folder:

    weights.safetensors   model and backbone, configuration inside (rrt_core.checkpoints, variant
                          `products`)
    log.csv               step, name, value
    manifest.json         last: recipe, figures of the held-out identities
    state.pt, cache/      checkpoint and kept maps, removed at the end
"""

from __future__ import annotations

import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.engines import signals as stopping
from pipelines.engines.progress import Progress
from pipelines.engines.settings import RunSettings
from pipelines.quantities import duration
from pipelines.storage.local import sha256_file
from pipelines.train.output import CACHE, WEIGHTS, Speaker, open_output, save_weights, say_slow
from pipelines.train.products_options import Options, Photographs, read_photographs
from rrt_core.checkpoints import PRODUCTS, load_checkpoint
from rrt_core.devices import choose_device
from rrt_core.products.backbone import create_backbone, load_backbone_state
from rrt_core.products.crops import CropOptions, CropReader
from rrt_core.products.evaluation import figures, rank, reordered, score
from rrt_core.products.initialisation import principal_components, start_from_triplets
from rrt_core.products.inputs import CropInputs, Inputs, frozen_part, keep
from rrt_core.products.model import ProductsConfig, ProductsTransformer
from rrt_core.products.sampling import Ints, Sampler, neighbours
from rrt_core.products.training import MODES, ProductsNetwork, ProductsOptions, describe, train
from rrt_core.training.log import LOG_NAME
from rrt_core.training.processes import Processes
from rrt_core.training.state import STATE_NAME
from schemas.errors import UserError
from schemas.manifest import Counts, Manifest, Marker
from schemas.plan import Job, Unit, WholeJob

STAGE = "train-products"
SAMPLE = 400  # images whose maps the global descriptor's principal components are of
START_TRIPLETS = 66  # that the matching start sees

# These change where or how often, not what; the files stand in the recipe by their content.
NOT_OF_THE_RECIPE = {
    "images",
    "labels",
    "out",
    "weights",
    "backbone_weights",
    "unlabelled",
    "device",
    "checkpoint_every",
    "evaluate_every",
}


def run(options: Options, settings: RunSettings) -> Manifest:
    """Train (or go on, or skip). Raises UserError."""
    if not options.mode:
        raise UserError(f"{STAGE}: --mode is missing; it is one of {', '.join(MODES)}")
    if len(options.area) != 2:
        raise UserError(
            f"{STAGE}: --area takes two numbers, least and most, not {len(options.area)}"
        )
    started = time.monotonic()
    photographs = read_photographs(options)
    job = _job(options, settings, photographs)
    with open_output(job, Processes(), settings.overwrite) as output:
        if output.made is not None:
            return output.made
        torch.set_num_threads(settings.threads_per_worker)
        training = Training(options, photographs, output.folder, job.recipe_hash)
        output.begin()
        say_slow(STAGE, options.precision, training.device)
        facts = training.run()

        unit = Unit("training", WholeJob(), len(photographs.files))
        counts = Counts(unit.inputs, unit.inputs)
        marker = Marker(unit.name, job.recipe_hash, unit.slice, (), counts, facts)
        counted = replace(job, units=(unit,))
        manifest = output.finish(counted, [LOG_NAME, WEIGHTS], marker, time.monotonic() - started)
        output.new.remove(STATE_NAME)
        output.swap_in()
        return manifest


def _job(options: Options, settings: RunSettings, photographs: Photographs) -> Job:
    """Identity of the training: options by value, photographs and files of weights by content."""
    recipe = {key: value for key, value in asdict(options).items() if key not in NOT_OF_THE_RECIPE}
    recipe |= {"area": list(options.area), "threads": settings.threads_per_worker}
    inputs = {"photographs": {"url": options.images, "content": photographs.content()}}
    for name in ("weights", "backbone_weights"):
        given = getattr(options, name)
        if given:
            if given != "random" and not Path(given).is_file():
                raise UserError(f"--{name.replace('_', '-')} {given}: there is no such file.")
            content = given if given == "random" else sha256_file(given)
            inputs[name] = {"url": given, "content": content}
    return Job(STAGE, options.out, "", recipe, inputs, (), asdict(options))


class Training:
    """One run of a mode."""

    def __init__(
        self, options: Options, photographs: Photographs, folder: Path, identity: str
    ) -> None:
        self.options, self.photographs, self.identity = options, photographs, identity
        self.folder = folder
        self.device = choose_device(options.device)
        self.options_of_mode = ProductsOptions(
            **{
                f.name: getattr(options, f.name)
                for f in fields(ProductsOptions)
                if hasattr(options, f.name)
            }
        )
        held = np.random.default_rng([options.seed, 3]).permutation(len(photographs.products))
        self.held = np.sort(held[: round(options.validation * len(held))])
        labelled = np.arange(len(photographs.labels)) < photographs.labelled
        is_held = labelled & np.isin(photographs.labels, self.held)
        self.training, self.validation = np.flatnonzero(~is_held), np.flatnonzero(is_held)
        torch.manual_seed(options.seed)
        self.network, self.trained_before = self._network()

    def run(self) -> dict[str, Any]:
        """Train, write weights and log; gives the facts for the manifest."""
        options, network, trained_before = self.options, self.network, self.trained_before
        crops = CropOptions(
            options.resize,
            options.crop,
            (options.area[0], options.area[1]),
            4 / 3,
            options.degrees,
            options.jitter,
            options.flip,
        )
        inputs = self._inputs(
            network, CropInputs(CropReader(self.photographs.files, crops, options.seed, 4))
        )
        chosen = _Rows(inputs, self.training)
        if trained_before is None:
            self._start(
                network, chosen
            )  # a resumed run, too: its negatives are found with what it began with
        near = None
        if options.mode != "global":
            found = describe(network, chosen, np.arange(len(chosen)))
            near = neighbours(found.descriptors, options.neighbours)
        sampler = Sampler(
            self.photographs.labels[self.training], inputs.copies, options.seed, options.lone_share
        )
        if near is not None and trained_before is None and options.start == "matching":
            self._matching_start(network, chosen, sampler, near)
        title = f"{STAGE} {options.mode}"
        speaker = Speaker(title, self.folder, options.steps, self._said)

        def tick(done: int) -> None:
            stopping.pass_or_wait()
            speaker.tick(done)

        try:
            progressed = train(
                network,
                inputs=chosen,
                sampler=sampler,
                options=self.options_of_mode,
                folder=self.folder,
                near=near,
                evaluate=lambda: self._evaluate(network, inputs),
                report=speaker.report,
                identity=self.identity,
                tick=tick,
            )
        finally:
            speaker.close()
        notes = {
            "mode": options.mode,
            "steps": options.steps,
            "seed": options.seed,
            "identity": self.identity,
            "validation": progressed.figures,
        }
        backbone = network.backbone.network.state_dict()
        save_weights(self.folder / WEIGHTS, network.model, notes, backbone)
        return {
            "validation": progressed.figures,
            "held_out": [self.photographs.products[number] for number in self.held],
        }

    def _network(self) -> tuple[ProductsNetwork, str | None]:
        """The network, and the mode that `--weights` was trained in (None: there are none with a
        matcher).
        """
        options = self.options
        trained = self.options_of_mode.of_backbone
        if not options.weights:
            if options.mode == "joint":
                raise UserError(
                    "Mode joint begins with the weights of mode frozen: name them with --weights."
                )
            backbone = create_backbone(options.backbone, options.backbone_weights or None)
            config = ProductsConfig(map_channels=backbone.map_channels, backbone=options.backbone)
            model = ProductsTransformer(config)
            return ProductsNetwork(backbone, model, trained).to(self.device), None
        found = load_checkpoint(options.weights, variant=PRODUCTS)
        name = found.model.config.backbone or options.backbone
        backbone = create_backbone(
            name, "random" if found.backbone else options.backbone_weights or None
        )
        if found.backbone:
            load_backbone_state(backbone.network, found.backbone, options.weights)
        if backbone.map_channels != found.model.config.map_channels:
            raise UserError(
                f"The weights {options.weights} are for maps of {found.model.config.map_channels} "
                f"channels, and the"
                f" backbone {name} gives {backbone.map_channels}: name its backbone with "
                f"--backbone."
            )
        mode = found.notes.get("mode", "joint")  # the paper's files hold trained matchers
        model = found.model.train()
        return ProductsNetwork(backbone, model, trained).to(
            self.device
        ), None if mode == "global" else mode

    def _start(self, network: ProductsNetwork, inputs: Inputs) -> None:
        """Without weights the global descriptor begins as principal components."""
        options = self.options
        sample = np.random.default_rng([options.seed, 4]).permutation(len(inputs))[:SAMPLE]
        model = network.model
        with torch.no_grad():
            pieces = [
                network.maps(inputs.batch(rows, np.zeros_like(rows)).to(self.device)).float().cpu()
                for rows in np.array_split(sample, max(1, len(sample) // 16))
            ]
        maps = torch.cat(pieces)
        if not options.weights and min(maps.shape[0], maps.shape[1]) >= model.config.global_dim:
            weight, bias = principal_components(maps.mean((2, 3)), model.config.global_dim, 0.5)
            with torch.no_grad():
                model.remap.weight.copy_(weight)
                if model.remap.bias is not None:
                    model.remap.bias.copy_(bias)

    def _matching_start(
        self, network: ProductsNetwork, inputs: Inputs, sampler: Sampler, near: Ints
    ) -> None:
        triplets = sampler.triplets(0, START_TRIPLETS, near)
        with torch.no_grad():
            maps = (
                network.maps(inputs.batch(triplets.rows, triplets.copies).to(self.device))
                .float()
                .cpu()
            )
        network.model.cpu()
        start_from_triplets(network.model, maps)
        network.model.to(self.device)

    def _inputs(self, network: ProductsNetwork, crops: CropInputs) -> Inputs:
        if network.trained == "all":
            return crops
        part = frozen_part(network.backbone, network.trained)
        cache = self.folder / CACHE
        cache.mkdir(exist_ok=True)
        progress = Progress("maps", len(crops), "images")
        kept = keep(
            lambda x: part(x.to(self.device)),
            crops,
            self.options.copies,
            cache / "maps.npy",
            self.identity,
            lambda done, total: progress.show(done),
        )
        progress.finish(len(crops))
        return kept

    def _evaluate(self, network: ProductsNetwork, inputs: Inputs) -> dict[str, float]:
        """Figures of held-out products among each other: global, and its shortlist reranked."""
        rows = self.validation
        if not len(rows):
            return {}
        described = describe(network, inputs, rows)
        labels = self.photographs.labels[rows]
        count = min(self.options.validation_queries or len(rows), len(rows))
        queries = np.sort(
            np.random.default_rng([self.options.seed, 5]).permutation(len(rows))[:count]
        )
        order = rank(described.descriptors[queries], described.descriptors, queries)
        found = {
            f"val_{key}_global": value
            for key, value in figures(order, labels[queries], labels, queries).items()
        }
        if self.options.mode != "global":
            top = order[:, : min(self.options.shortlist, len(rows) - 1)]
            logits = score(
                network.model.matcher,
                described.local[queries],
                described.local,
                top,
                precision=self.options.precision,
            )
            again = figures(reordered(order, logits), labels[queries], labels, queries)
            found |= {f"val_{key}": value for key, value in again.items()}
        return found

    def _said(self, row: dict[str, float]) -> str:
        named = {key: value for key, value in row.items() if key not in ("step", "seconds")}
        text = "  ".join(f"{key} {value:.4g}" for key, value in named.items())
        left = row["seconds"] / row["step"] * (self.options.steps - row["step"])
        return f"step {row['step']:,.0f}/{self.options.steps:,}  {text}  ETA {duration(left)}"


class _Rows:
    """Inputs of some images."""

    def __init__(self, inputs: Inputs, rows: Ints) -> None:
        self._inputs, self._rows, self.copies = inputs, rows, inputs.copies

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Ints, copies: Ints) -> torch.Tensor:
        return self._inputs.batch(self._rows[rows], copies)


def summarise(options: Options, manifest: Manifest) -> None:
    """Print where the weights are, and the held-out figures."""
    found = manifest.facts.get("units", {}).get("training", {}).get("validation", {})
    for key, value in found.items():
        print(f"{key:<24}{value:8.4f}")
    print(f"weights: {options.out}/{WEIGHTS}")
