"""Make a projection of a timm extractor's locals to fewer dimensions from your photographs.

    python benchmarks/making/make_projection.py timm:resnet50
        --option weights=resnet50.safetensors --photos FOLDER --out FILE

The projection is a PCA whitening. The photographs are described as the extractor would, with the
same options; the mean and covariance of the cells that it keeps (the strongest of all sizes) give
the projection. A thousand varied photographs, unlike those of the evaluation, are plenty. Give FILE
to the extractor: --extractor-option projection=FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from pipelines.options import build, option
from rrt_core.extractors import create
from rrt_core.extractors.projection import Whitening
from rrt_core.extractors.timm.extractor import Timm
from rrt_core.images import DecodeError, decode
from schemas.errors import UserError


@dataclass(frozen=True)
class ExtractorOptions:
    """As `extract` reads them."""

    option: dict[str, Any] = option("an option of the extractor", {})


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def main(arguments: list[str] | None = None) -> None:
    """Read the photographs, write the file, print what was used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extractor", help="timm:NAME")
    parser.add_argument(
        "--option", action="append", default=[], help="an option of the extractor: KEY=VALUE"
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument(
        "--photographs", type=int, default=1000, help="at most so many, drawn by the seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        figures = make(options)
    except UserError as error:
        raise SystemExit(f"make_projection.py: {error}") from None

    print(
        f"{options.out}: {figures['channels']} -> {figures['dimensions']} dimensions, "
        f"{figures['cells']:,} cells of {figures['photographs']} photographs "
        f"({figures['undecoded']} could not be decoded), {figures['seconds']:.0f} s"
    )
    print_figures(figures)


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Make the file: the figures of what it was made from."""
    torch.set_num_threads(1)  # sums in one order
    extractor = create(
        options.extractor,
        **build(ExtractorOptions, {"option": options.option}, "make_projection.py").option,
    )
    if not isinstance(extractor, Timm):
        raise UserError(f"{options.extractor!r} is no extractor of timm: name one as timm:NAME.")
    if extractor.config["projection"]:
        raise UserError("The extractor's option projection is what is to be made: leave it out.")
    files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(
            f"There is no {', '.join(SUFFIXES)} in {options.photos}: name a folder of photographs."
        )
    chosen = np.random.default_rng(options.seed).permutation(len(files))[: options.photographs]

    started = time.monotonic()
    gathered = Whitening(extractor.local_dim)
    contents, left_out = hashlib.sha256(), 0
    for path in [files[number] for number in sorted(chosen)]:
        data = path.read_bytes()
        try:
            image = decode(data, path.name)
        except DecodeError:
            left_out += 1
            continue
        contents.update(hashlib.sha256(data).digest())
        with torch.inference_mode():
            for kept in extractor.kept([image]):
                gathered.add(kept.cells.cpu().numpy())

    mean, projection = gathered.solve(options.dimensions)
    used = len(chosen) - left_out
    made_of = {
        "made_by": "benchmarks/making/make_projection.py",
        "photographs": str(used),
        "photographs_sha256": contents.hexdigest(),  # of their SHA-256, in the order of their names
        "cells": str(gathered.count),
        "extractor": json.dumps(
            {"name": extractor.name, "revision": extractor.revision, **extractor.config}
        ),
        "weights_sha256": extractor.weights_sha256,
        "seed": str(options.seed),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save({"mean": mean, "projection": projection}, metadata=made_of))
    return {
        "channels": mean.shape[0],
        "dimensions": projection.shape[1],
        "cells": gathered.count,
        "photographs": used,
        "undecoded": left_out,
        "seconds": time.monotonic() - started,
    }


if __name__ == "__main__":
    main()
