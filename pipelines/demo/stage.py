"""demo: makes an image folder from photographs that packages ship, then runs the pipeline on it."""

from __future__ import annotations

import os
from typing import Any

from pipelines.demo.data import make_demo
from pipelines.demo.options import Options as Options
from pipelines.engines.settings import RunSettings
from pipelines.run import config as run_config
from pipelines.run import stage as pipeline
from schemas.errors import UserError


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Make the demo's images (once), run all stages; gives the places of the results."""
    out = os.path.abspath(os.path.expanduser(options.out))
    config = run_config.read_config(options.config, options.set)
    own = ("out", "images", "ground_truth", "list", "sources", "queries", "import")
    if given := [name for name in own if config.get(name)]:
        raise UserError(f"demo: {given[0]} has no effect, since the demo sets it; leave it out")

    data = os.path.join(out, "data")
    places = {
        "out": out,
        "images": os.path.join(data, "images"),
        "ground_truth": os.path.join(data, "ground_truth.json"),
    }
    run_config.stages_of({**config, **places}, options.config)  # refused before pictures are made
    make_demo(data, settings, options.seed)
    return pipeline.run_config({**config, **places}, options.config, settings)


def summarise(options: Options, results: dict[str, Any]) -> None:
    """Print the table and the report's path."""
    pipeline.summarise(pipeline.Options(options.config), results)
