"""Make the PCA whitening of the extractor `efficientnet` from photographs.

    python benchmarks/making/make_whitening.py [--photos FOLDER] [--out FILE]

The photographs are described as the extractor would; the mean and covariance of the cells it keeps
(the strongest of all sizes) give the projection. Some 800 varied photographs are plenty: 400,000
cells for 112 x 112 covariances. FOLDER is $RRT_TEST_DATA/photos by default. Run it again only with
a raised `EfficientNet.revision`: every local descriptor changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.extractors.efficientnet.extractor import LOCAL_CHANNELS, WHITENING, EfficientNet
from rrt_core.extractors.projection import directions
from rrt_core.images import decode

PHOTOS = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared")) / "photos"
DIMENSIONS = 128
SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--out", type=Path, default=WHITENING)
    options = parser.parse_args()
    files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(
            f"No .jpg or .png in {options.photos}: name a folder of photographs with --photos."
        )

    started = time.monotonic()
    torch.set_num_threads(1)  # sums in one order
    with tempfile.TemporaryDirectory() as folder:
        unused = Path(folder) / "identity.safetensors"
        nothing, eye = (
            np.zeros(LOCAL_CHANNELS, np.float32),
            np.eye(LOCAL_CHANNELS, dtype=np.float32),
        )
        unused.write_bytes(save({"mean": nothing, "projection": eye}))
        extractor = EfficientNet(whitening=str(unused))
    total, outer, count = np.zeros(LOCAL_CHANNELS), np.zeros((LOCAL_CHANNELS, LOCAL_CHANNELS)), 0
    contents = hashlib.sha256()
    with torch.inference_mode():
        for path in files:
            data = path.read_bytes()
            contents.update(hashlib.sha256(data).digest())
            cells = directions(extractor.kept(decode(data, path.name)).cells).double().numpy()
            total += cells.sum(0)
            outer += cells.T @ cells
            count += len(cells)

    mean = total / count
    variances, axes = np.linalg.eigh(outer / count - np.outer(mean, mean))
    strongest = np.argsort(-variances, kind="stable")[:DIMENSIONS]
    variances, axes = variances[strongest], axes[:, strongest]
    # An eigenvector has no sign of its own: its largest entry is made positive.
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    projection = np.zeros((LOCAL_CHANNELS, DIMENSIONS))
    projection[:, : len(variances)] = axes / np.sqrt(variances)
    made_of = {
        "made_by": "benchmarks/making/make_whitening.py",
        "photographs": str(len(files)),
        "photographs_sha256": contents.hexdigest(),  # of their SHA-256, in the order of their names
        "cells": str(count),
        "extractor": json.dumps({"revision": extractor.revision, **extractor.config}),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    arrays = {"mean": mean.astype(np.float32), "projection": projection.astype(np.float32)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save(arrays, metadata=made_of))
    seconds = time.monotonic() - started
    print(f"{options.out}: {count:,} cells of {len(files)} photographs, {seconds:.0f} s")
    print_figures({"photographs": len(files), "cells": count, "seconds": seconds})


if __name__ == "__main__":
    main()
