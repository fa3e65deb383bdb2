"""train-products: photographs and labels -> weights of a backbone and its Reranking Transformer for products.

One process trains; a rerun goes on from the last checkpoint, and ends with the weights of an undisturbed run (on a
CPU, with as many threads). Files of the output folder:

    weights.safetensors   model and backbone, configuration inside (rrt_core.checkpoints, variant `products`)
    log.csv               step, name, value
    manifest.json         last: recipe, figures of the held-out identities
    work/                 state.pt and kept maps, removed at the end
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.commit import Job, Unit, software_versions
from pipelines.driver import RunSettings
from pipelines.options import option
from pipelines.outputs import is_whole, read_manifest, write_manifest
from pipelines.progress import Progress, duration
from pipelines.storage import Place, sha256_file
from rrt_core.checkpoints import PRODUCTS, load_checkpoint, save_checkpoint
from rrt_core.parallel import choose_device
from rrt_core.products_backbone import create_backbone, load_backbone_state
from rrt_core.products_crops import CropOptions, CropReader
from rrt_core.products_evaluation import figures, rank, reordered, score
from rrt_core.products_initialisation import principal_components, start_from_triplets
from rrt_core.products_inputs import CropInputs, Inputs, frozen_part, keep
from rrt_core.products_sampling import Ints, Sampler, neighbours
from rrt_core.products_training import MODES, OPTIMISERS, ProductsNetwork, ProductsOptions, describe, train
from rrt_core.products_transformer import ProductsConfig, ProductsTransformer
from rrt_core.training_log import LOG_NAME
from rrt_core.training_state import write_whole
from schemas.errors import UserError
from schemas.manifest import Counts, FileEntry, Manifest, Marker, canonical_json, sha256_text

STAGE = "train-products"
WEIGHTS = "weights.safetensors"
WORK = "work"  # folder of what a killed run goes on from
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
SAMPLE = 400  # images whose maps the global descriptor's principal components are of
START_TRIPLETS = 66  # that the matching start sees


@dataclass(frozen=True)
class Options:
    """Options of `train-products`."""

    images: str = option("folder that the paths of the labels begin in")
    labels: str = option("CSV file with the columns path and product")
    out: str = option("folder of the weights, the log and the manifest")
    mode: str = option(
        "global, then frozen (over --weights of global), then joint (over --weights of frozen)", "", MODES
    )
    weights: str = option("weights.safetensors of the mode before, or a .pt of the paper's repository", "")
    backbone: str = option("efficientnet_lite0, efficientnet_lite0+stride16 or timm:MODEL", "efficientnet_lite0")
    backbone_weights: str = option(
        "file of the backbone's weights; random: none. Without: ImageNet's, or --weights'", ""
    )
    trained: str = option("global, joint: train all of the backbone, or its late part alone", "all", ("all", "late"))
    unlabelled: str = option("folder of images of other things, each an instance of its own", "")
    validation: float = option("share of the products held out, chosen by the seed", 0.2)
    validation_queries: int = option("at most so many held-out photographs are queries", 200)
    shortlist: int = option("how many of the global ranking are reranked in validation", 100)
    start: str = option(
        "frozen without a trained matcher: matching (compares alike cells from the start) or random (the paper)",
        "matching",
        ("matching", "random"),
    )
    steps: int = option("optimiser steps", 1000)
    batch: int = option("images a step: two a product (global), triplets (frozen, joint)", 72)
    optimiser: str = option("adamw, or sgd (the paper's for global; for large sets)", "adamw", OPTIMISERS)
    lr: float = option("peak learning rate", 1e-4)
    backbone_lr: float = option("the backbone's learning rate as a share of lr", 1.0)
    weight_decay: float = option("weight decay", 4e-4)
    warmup: int = option("steps up to the peak; a cosine follows", 20)
    temperature: float = option("of the contrastive loss", 0.05)
    global_share: float = option("joint: weight of the contrastive loss beside the reranker's", 0.0)
    neighbours: int = option("negatives are drawn from so many nearest images", 100)
    copies: int = option("augmented copies of each image that are kept where the backbone is not trained whole", 4)
    lone_share: float = option("share of the anchors that are unlabelled images", 0.3)
    resize: int = option("plain crops: side that a picture is resized to, pixels", 256)
    crop: int = option("side of a crop, pixels", 224)
    area: tuple[float, ...] = option("least and most share of the picture in an augmented crop", (0.25, 1.0))
    degrees: float = option("augmented crops: most turned to either side", 0.0)
    jitter: float = option("augmented crops: most change of brightness, contrast, saturation, as a share", 0.2)
    flip: bool = option("augmented crops: mirror half of them (the paper does; print becomes unreadable)", False)
    seed: int = option("seed of all that is drawn", 0)
    precision: str = option("float32, or bfloat16 for the matcher", "float32", ("float32", "bfloat16"))
    device: str = option("auto, cpu or cuda", "auto")
    checkpoint_every: int = option("steps between checkpoints", 50)
    evaluate_every: int = option("steps between validations", 500)


@dataclass(frozen=True)
class Photographs:
    """files, and for each its product's number (unlabelled ones have numbers of their own); names of the products."""

    files: list[Path]
    labels: Ints
    products: list[str]
    labelled: int  # the first so many files

    def content(self) -> str:
        """Hash of the labels and of the files' names and sizes."""
        rows = [
            [str(path.name), path.stat().st_size, int(label)]
            for path, label in zip(self.files, self.labels, strict=True)
        ]
        return sha256_text(canonical_json(rows))


def run(options: Options, settings: RunSettings) -> Manifest:
    """Train (or go on, or skip). Raises UserError."""
    if not options.mode:
        raise UserError(f"{STAGE}: --mode is missing; it is one of {', '.join(MODES)}")
    if len(options.area) != 2:
        raise UserError(f"{STAGE}: --area takes two numbers, least and most, not {len(options.area)}")
    place = Place(options.out)
    if not place.local:
        raise UserError(
            f"{STAGE}: --out must be a folder on this machine, not {options.out}: checkpoints are renamed there"
        )
    photographs = read_photographs(options)
    with place.alone():
        return _run(options, settings, place, photographs)


def read_photographs(options: Options) -> Photographs:
    """The labelled photographs in the order of the CSV file, then the unlabelled ones.

    Raises UserError for a file that is not there, a column that is missing and a row without path or product.
    """
    try:
        with open(options.labels, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except OSError as error:
        raise UserError(f"The labels {options.labels} cannot be read ({error.strerror}).") from error
    for column in ("path", "product"):
        if column not in columns:
            raise UserError(f"The labels {options.labels} have no column {column!r}: the first line must name it.")
    files, names = [], []
    for number, row in enumerate(rows, 2):
        if not row["path"] or not row["product"]:
            raise UserError(f"{options.labels}, line {number}: path or product is empty.")
        path = Path(options.images, row["path"])
        if not path.is_file():
            raise UserError(f"{options.labels}, line {number}: there is no file {path}.")
        files.append(path)
        names.append(row["product"])
    if not files:
        raise UserError(f"The labels {options.labels} have no rows.")
    products = sorted(set(names))
    numbers = {name: number for number, name in enumerate(products)}
    others: list[Path] = []
    if options.unlabelled:
        folder = Path(options.unlabelled)
        others = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
        if not others:
            raise UserError(f"--unlabelled {folder}: there are no images ({', '.join(IMAGES)}) in it.")
    labels = [numbers[name] for name in names] + [len(products) + number for number in range(len(others))]
    return Photographs(files + others, np.array(labels, np.int64), products, len(files))


def _run(options: Options, settings: RunSettings, place: Place, photographs: Photographs) -> Manifest:
    job = _job(options, settings, photographs)
    manifest = read_manifest(place)
    if manifest is None and not place.exists(WORK) and place.has_files():
        raise UserError(f"{place.url} holds files of something else; give an empty or a new folder")
    if settings.overwrite:
        place.empty()
        manifest = None
    if manifest is not None:
        if manifest.recipe_hash != job.recipe_hash:
            changed = [key for key in job.identity if manifest.recipe.get(key) != job.identity[key]]
            raise UserError(
                f"{place.url} holds weights that were made otherwise ({', '.join(changed) or 'other options'});"
                " give another --out, or --overwrite."
            )
        if is_whole(place, manifest):
            print(f"{STAGE}  already made: {place.url}", file=sys.stderr)
            return manifest
    torch.set_num_threads(settings.threads_per_worker)
    started = time.monotonic()
    training = Training(options, photographs, Path(place.root), job.recipe_hash)
    facts = training.run()
    entries = tuple(
        FileEntry(name, 1, Path(place.root, name).stat().st_size, sha256_file(Path(place.root, name)))
        for name in (LOG_NAME, WEIGHTS)
    )
    counts = Counts(len(photographs.files), len(photographs.files))
    marker = Marker(
        "training", job.recipe_hash, job.units[0].slice, entries, counts, facts, versions=software_versions()
    )
    manifest = write_manifest(place, job, [marker], time.monotonic() - started)
    place.below(WORK).empty()
    return manifest


def _job(options: Options, settings: RunSettings, photographs: Photographs) -> Job:
    where = ("images", "labels", "out", "weights", "backbone_weights", "unlabelled", "device")
    when = ("checkpoint_every", "evaluate_every")
    recipe = {key: value for key, value in asdict(options).items() if key not in (*where, *when)}
    recipe |= {"area": list(options.area), "threads": settings.threads_per_worker}
    inputs = {"photographs": {"url": options.images, "content": photographs.content()}}
    for name in ("weights", "backbone_weights"):
        given = getattr(options, name)
        if given:
            if given != "random" and not Path(given).is_file():
                raise UserError(f"--{name.replace('_', '-')} {given}: there is no such file.")
            inputs[name] = {"url": given, "content": given if given == "random" else sha256_file(given)}
    unit = Unit("training", {}, len(photographs.files))
    return Job(STAGE, options.out, "", recipe, inputs, (unit,), asdict(options))


class Training:
    """One run of a mode."""

    def __init__(self, options: Options, photographs: Photographs, out: Path, identity: str) -> None:
        self.options, self.photographs, self.identity = options, photographs, identity
        self.out, self.work = out, out / WORK
        self.work.mkdir(exist_ok=True)
        self.device = choose_device(options.device)
        self.options_of_mode = ProductsOptions(
            **{f.name: getattr(options, f.name) for f in fields(ProductsOptions) if hasattr(options, f.name)}
        )
        held = np.random.default_rng([options.seed, 3]).permutation(len(photographs.products))
        self.held = np.sort(held[: round(options.validation * len(held))])
        labelled = np.arange(len(photographs.labels)) < photographs.labelled
        is_held = labelled & np.isin(photographs.labels, self.held)
        self.training, self.validation = np.flatnonzero(~is_held), np.flatnonzero(is_held)

    def run(self) -> dict[str, Any]:
        """Train, write weights and log; gives the facts for the manifest."""
        options = self.options
        torch.manual_seed(options.seed)
        network, trained_before = self._network()
        crops = CropOptions(
            options.resize,
            options.crop,
            (options.area[0], options.area[1]),
            4 / 3,
            options.degrees,
            options.jitter,
            options.flip,
        )
        inputs = self._inputs(network, CropInputs(CropReader(self.photographs.files, crops, options.seed, 4)))
        chosen = _Rows(inputs, self.training)
        if trained_before is None:
            self._start(network, chosen)  # a resumed run, too: its negatives are found with what it began with
        near = None
        if options.mode != "global":
            found = describe(network, chosen, np.arange(len(chosen)))
            near = neighbours(found.descriptors, options.neighbours)
        sampler = Sampler(self.photographs.labels[self.training], inputs.copies, options.seed, options.lone_share)
        if near is not None and trained_before is None and options.start == "matching":
            self._matching_start(network, chosen, sampler, near)
        self.progress = Progress(f"{STAGE} {options.mode}", options.steps, "steps")
        latest: dict[str, float] = {}

        def evaluate() -> dict[str, float]:
            latest.clear()
            latest.update(self._evaluate(network, inputs))
            return latest

        train(
            network,
            inputs=chosen,
            sampler=sampler,
            options=self.options_of_mode,
            folder=self.work,
            near=near,
            evaluate=evaluate,
            report=self._report,
            identity=self.identity,
        )
        self.progress.finish(options.steps)
        found_at_end = latest or evaluate()
        notes = {"mode": options.mode, "steps": options.steps, "seed": options.seed, "identity": self.identity}
        self._write(network, notes | {"validation": found_at_end})
        return {"validation": found_at_end, "held_out": [self.photographs.products[number] for number in self.held]}

    def _network(self) -> tuple[ProductsNetwork, str | None]:
        """The network, and the mode that `--weights` was trained in (None: there are none with a matcher)."""
        options = self.options
        trained = self.options_of_mode.of_backbone
        if not options.weights:
            if options.mode == "joint":
                raise UserError("Mode joint begins with the weights of mode frozen: name them with --weights.")
            backbone = create_backbone(options.backbone, options.backbone_weights or None)
            config = ProductsConfig(map_channels=backbone.map_channels, backbone=options.backbone)
            model = ProductsTransformer(config)
            return ProductsNetwork(backbone, model, trained).to(self.device), None
        found = load_checkpoint(options.weights, variant=PRODUCTS)
        name = found.model.config.backbone or options.backbone
        backbone = create_backbone(name, "random" if found.backbone else options.backbone_weights or None)
        if found.backbone:
            load_backbone_state(backbone.network, found.backbone, options.weights)
        if backbone.map_channels != found.model.config.map_channels:
            raise UserError(
                f"The weights {options.weights} are for maps of {found.model.config.map_channels} channels, and the"
                f" backbone {name} gives {backbone.map_channels}: name its backbone with --backbone."
            )
        mode = found.notes.get("mode", "joint")  # the paper's files hold trained matchers
        model = found.model.train()
        return ProductsNetwork(backbone, model, trained).to(self.device), None if mode == "global" else mode

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

    def _matching_start(self, network: ProductsNetwork, inputs: Inputs, sampler: Sampler, near: Ints) -> None:
        triplets = sampler.triplets(0, START_TRIPLETS, near)
        with torch.no_grad():
            maps = network.maps(inputs.batch(triplets.rows, triplets.copies).to(self.device)).float().cpu()
        network.model.cpu()
        start_from_triplets(network.model, maps)
        network.model.to(self.device)

    def _inputs(self, network: ProductsNetwork, crops: CropInputs) -> Inputs:
        if network.trained == "all":
            return crops
        part = frozen_part(network.backbone, network.trained)
        progress = Progress("maps", len(crops), "images")
        kept = keep(
            lambda x: part(x.to(self.device)),
            crops,
            self.options.copies,
            self.work / "maps.npy",
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
        count = min(self.options.validation_queries, len(rows))
        queries = np.sort(np.random.default_rng([self.options.seed, 5]).permutation(len(rows))[:count])
        order = rank(described.descriptors[queries], described.descriptors, queries)
        found = {f"val_{key}_global": value for key, value in figures(order, labels[queries], labels, queries).items()}
        if self.options.mode != "global":
            top = order[:, : min(self.options.shortlist, len(rows) - 1)]
            logits = score(
                network.model.matcher, described.local[queries], described.local, top, precision=self.options.precision
            )
            again = figures(reordered(order, logits), labels[queries], labels, queries)
            found |= {f"val_{key}": value for key, value in again.items()}
        return found

    def _report(self, row: dict[str, float]) -> None:
        self.progress.clear()
        named = {key: value for key, value in row.items() if key not in ("step", "seconds")}
        text = "  ".join(f"{key} {value:.4g}" for key, value in named.items())
        left = row["seconds"] / row["step"] * (self.options.steps - row["step"])
        head = f"{STAGE} {self.options.mode}  step {row['step']:,.0f}/{self.options.steps:,}"
        print(f"{head}  {text}  ETA {duration(left)}", file=sys.stderr)

    def _write(self, network: ProductsNetwork, notes: dict[str, Any]) -> None:
        state = network.backbone.network.state_dict()
        unfinished = self.work / WEIGHTS
        save_checkpoint(str(unfinished), network.model, notes, state)
        write_whole(self.out / WEIGHTS, unfinished.read_bytes())
        write_whole(self.out / LOG_NAME, (self.work / LOG_NAME).read_bytes())


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
