"""Which engine does a job's units, by name; only the one that is chosen is imported."""

from __future__ import annotations

import importlib
from typing import Protocol

from pipelines.engines.engine import Engine
from pipelines.engines.settings import RunSettings
from pipelines.storage.protocol import Place
from schemas.plan import Job

ENGINES = {
    "local": "pipelines.engines.local.engine:LocalEngine",
    "spark": "pipelines.engines.spark.engine:SparkEngine",
    "beam": "pipelines.engines.beam.engine:BeamEngine",
}


class _Maker(Protocol):
    def __call__(self, job: Job, place: Place, settings: RunSettings) -> Engine: ...


def make_engine(job: Job, place: Place, settings: RunSettings) -> Engine:
    """The engine that the settings name; nothing is started yet."""
    module, _, name = ENGINES[settings.engine_name].partition(":")
    maker: _Maker = getattr(importlib.import_module(module), name)
    return maker(job, place, settings)
