"""demo: makes an image folder from photographs that packages ship, then runs the pipeline on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pipelines.demo.data import make_demo
from pipelines.demo.options import Options as Options
from pipelines.engines import signals as stopping
from pipelines.engines.progress import Progress
from pipelines.engines.settings import RunSettings
from pipelines.run import config as run_config
from pipelines.run import stage as pipeline


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Make the demo's images (once), run all stages; gives the places of the results."""
    out = os.path.abspath(os.path.expanduser(options.out))
    data = Path(out, "data")
    _make_images(data, options.seed)
    places = {
        "out": out,
        "images": str(data / "images"),
        "ground_truth": str(data / "ground_truth.json"),
    }
    config = {**run_config.read_config(options.config, options.set), **places}
    return pipeline.run_config(config, options.config, settings)


def _make_images(folder: Path, seed: int) -> None:
    progress: list[Progress] = []

    def show(done: int, total: int) -> None:
        if not progress:
            progress.append(Progress(f"{'images':<9}", total, "images", done))
        progress[0].show(done)

    stopping.during(
        lambda: f"the pictures made so far lie in {folder}; the same command goes on from there"
    )
    try:
        made = make_demo(folder, seed=seed, progress=show)
    finally:
        stopping.during(None)
    if progress:
        progress[0].finish(progress[0].total)
    else:
        print(f"{'images':<9}  already made: {made}", file=sys.stderr)


def summarise(options: Options, results: dict[str, Any]) -> None:
    """Print the table and the report's path."""
    pipeline.summarise(pipeline.Options(options.config), results)
