"""Options of `train-products`, and the photographs that they name."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.options import MOST_SEED, Checked, option
from schemas.errors import UserError

if TYPE_CHECKING:
    from rrt_core.products.sampling import Ints

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Options(Checked, command="train-products"):
    """Options of `train-products`."""

    images: str = option("folder that the paths of the labels begin in")
    labels: str = option(
        "CSV file: the columns path and product, in any order by a first line of names"
    )
    out: str = option("folder of the weights, the log and the manifest")
    mode: str = option(
        "global, then frozen (over --weights of global), then joint (over --weights of frozen)",
        "",
        ("global", "frozen", "joint"),
    )
    weights: str = option(
        "weights.safetensors of the mode before, or a .pt of the paper's repository", ""
    )
    backbone: str = option(
        "efficientnet_lite0, efficientnet_lite0+stride16 or timm:MODEL", "efficientnet_lite0"
    )
    backbone_weights: str = option(
        "file of the backbone's weights; random: none. Without: ImageNet's, or --weights'", ""
    )
    trained: str = option(
        "global, joint: train all of the backbone, or its late part alone", "all", ("all", "late")
    )
    unlabelled: str = option("folder of images of other things, each an instance of its own", "")
    validation: float = option(
        "share of the products held out, chosen by the seed", 0.2, least=0, most=0.99
    )
    validation_queries: int = option(
        "at most so many held-out photographs are queries; 0: all of them", 200, least=0
    )
    shortlist: int = option(
        "how many of the global ranking are reranked in validation", 100, least=1
    )
    start: str = option(
        "frozen without a trained matcher: matching (compares alike cells from the start) or "
        "random (the paper)",
        "matching",
        ("matching", "random"),
    )
    steps: int = option("optimiser steps", 1000, least=1, most=10**9)
    batch: int = option(
        "images a step: two a product (global), triplets (frozen, joint)", 72, least=3, most=100_000
    )
    optimiser: str = option(
        "adamw, or sgd (the paper's for global; for large sets)", "adamw", ("adamw", "sgd")
    )
    lr: float = option("peak learning rate", 1e-4, above=0)
    backbone_lr: float = option(
        "the backbone's learning rate as a share of lr", 1.0, least=0, most=1_000
    )
    weight_decay: float = option("weight decay", 4e-4, least=0, most=10)
    warmup: int = option("steps up to the peak; a cosine follows", 20, least=0)
    temperature: float = option("of the contrastive loss", 0.05, least=1e-3, most=100)
    global_share: float = option(
        "joint: weight of the contrastive loss beside the reranker's", 0.0, least=0, most=1_000
    )
    neighbours: int = option(
        "negatives are drawn from so many nearest images", 100, least=1, most=100_000
    )
    copies: int = option(
        "augmented copies of each image that are kept where the backbone is not trained whole",
        4,
        least=0,
        most=1_000,
    )
    lone_share: float = option(
        "share of the anchors that are unlabelled images", 0.3, least=0, most=1
    )
    resize: int = option(
        "plain crops: side that a picture is resized to, pixels", 256, least=32, most=4_096
    )
    crop: int = option("side of a crop, pixels", 224, least=32, most=4_096)
    area: tuple[float, ...] = option(
        "least and most share of the picture in an augmented crop", (0.25, 1.0), above=0, most=1
    )
    degrees: float = option("augmented crops: most turned to either side", 0.0, least=0, most=180)
    jitter: float = option(
        "augmented crops: most change of brightness, contrast, saturation, as a share",
        0.2,
        least=0,
        most=1,
    )
    flip: bool = option(
        "augmented crops: mirror half of them (the paper does; print becomes unreadable)", False
    )
    seed: int = option("seed of all that is drawn", 0, least=0, most=MOST_SEED)
    precision: str = option(
        "float32, or bfloat16 for the matcher", "float32", ("float32", "bfloat16")
    )
    device: str = option("auto, cpu or cuda", "auto")
    checkpoint_every: int = option("steps between checkpoints", 50, least=1)
    evaluate_every: int = option("steps between validations", 500, least=1)


@dataclass(frozen=True)
class Photographs:
    """files, and for each its product's number (unlabelled ones have numbers of their own); names
    of the products.
    """

    files: list[Path]
    labels: Ints
    products: list[str]
    labelled: int  # the first so many files

    def content(self) -> str:
        """Hash of the labels and of the files' names and sizes."""
        from schemas.manifest import canonical_json, sha256_text  # not for --help

        rows = [
            [str(path.name), path.stat().st_size, int(label)]
            for path, label in zip(self.files, self.labels, strict=True)
        ]
        return sha256_text(canonical_json(rows))


def read_photographs(options: Options) -> Photographs:
    """The labelled photographs in the order of the CSV file, then the unlabelled ones.

    Raises UserError for a file that is not there, a column that is missing and a row without path
    or product.
    """
    try:
        with open(options.labels, newline="", encoding="utf-8-sig") as file:
            first = next(csv.reader(file), [])
            file.seek(0)
            # without a first line of names: path, product, and others that do not count
            named = bool({"path", "product"} & set(first))
            reader = csv.DictReader(file, None if named else ("path", "product"))
            rows = list(reader)
            columns = reader.fieldnames or []
    except OSError as error:
        raise UserError(
            f"The labels {options.labels} cannot be read ({error.strerror})."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"The labels {options.labels} are no CSV in UTF-8 ({type(error).__name__})."
        ) from error
    for column in ("path", "product"):
        if column not in columns:
            raise UserError(
                f"The labels {options.labels} have no column {column!r}: the first line must name "
                f"it."
            )
    import numpy as np  # not for --help

    files, names = [], []
    for number, row in enumerate(rows, 1 + named):
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
            raise UserError(
                f"--unlabelled {folder}: there are no images ({', '.join(IMAGES)}) in it."
            )
    labels = [numbers[name] for name in names] + [
        len(products) + number for number in range(len(others))
    ]
    return Photographs(files + others, np.array(labels, np.int64), products, len(files))
