"""Options of `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import MOST_SEED, Checked, option


@dataclass(frozen=True)
class Options(Checked, command="demo"):
    """Options of `demo`."""

    out: str = option("folder of the demo: its images, stores and results", "rrt-demo")
    seed: int = option("seed of the rendered pictures", 0, least=0, most=MOST_SEED)
    config: str = option("YAML configuration of the stages", "configs/demo.yaml")
    set: dict[str, Any] = option(
        "a value in place of the configuration's, such as rerank.shortlist=50", {}
    )
