#!/usr/bin/env python3
"""The default extractor with its network run by torch, and by OpenVINO, image by image in one run.

    python benchmarks/speed/execution_rate.py [--images FOLDER] [--count 60] [--threads 1]

Both describe the same decoded photographs in turn; each image counts once for either, after three
that warm up. CPU seconds, so that a busy machine counts less, and wall seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from rrt_core.extractors import Description, create
from rrt_core.images import decode
from rrt_core.processor import vector_units

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=Path, default=DATA / "photos")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    extractors = {name: create("efficientnet", execution=name) for name in ("torch", "openvino")}
    cpu, wall = dict.fromkeys(extractors, 0.0), dict.fromkeys(extractors, 0.0)
    worst = 0.0

    paths = sorted(given.images.iterdir())
    chosen = paths[:: max(1, len(paths) // given.count)][: given.count]
    for number, path in enumerate(chosen):
        image = decode(path.read_bytes(), path.name)
        seen = []
        for name in sorted(extractors, reverse=number % 2 == 0):
            before = time.process_time(), time.perf_counter()
            (answer,) = extractors[name].describe([image])
            assert isinstance(answer, Description), answer
            seen.append(answer.global_descriptor)
            if number >= WARM:
                cpu[name] += time.process_time() - before[0]
                wall[name] += time.perf_counter() - before[1]
        worst = max(worst, float(np.abs(seen[0] - seen[1]).max()))

    counted = len(chosen) - WARM
    for name in extractors:
        print(f"{name:<9} {1000 * cpu[name] / counted:6.1f} ms of CPU an image")
    figures = {
        "images": counted,
        "threads": given.threads,
        "vector_units": vector_units(),
        "torch_images_per_cpu_second": counted / cpu["torch"],
        "openvino_images_per_cpu_second": counted / cpu["openvino"],
        "cpu_ratio": cpu["torch"] / cpu["openvino"],
        "wall_ratio": wall["torch"] / wall["openvino"],
        "largest_difference_of_globals": worst,
    }
    print_figures(figures)


if __name__ == "__main__":
    main()
