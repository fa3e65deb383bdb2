"""demo: makes an image folder from photographs that packages ship, then runs the pipeline on it."""

from __future__ import annotations

import os
from typing import Any

from pipelines.demo.data import make_demo
from pipelines.demo.options import Options as Options
from pipelines.engines.settings import RunSettings
from pipelines.run import config as run_config
from pipelines.run import stage as pipeline


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Make the demo's images (once), run all stages; gives the places of the results."""
    out = os.path.abspath(os.path.expanduser(options.out))
    data = make_demo(os.path.join(out, "data"), settings, options.seed)
    places = {
        "out": out,
        "images": str(data / "images"),
        "ground_truth": str(data / "ground_truth.json"),
    }
    config = {**run_config.read_config(options.config, options.set), **places}
    return pipeline.run_config(config, options.config, settings)


def summarise(options: Options, results: dict[str, Any]) -> None:
    """Print the table and the report's path."""
    pipeline.summarise(pipeline.Options(options.config), results)
