"""Options of `run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="run"):
    """Options of `run`."""

    config: str = option("YAML configuration of all stages (see configs/)")
    set: dict[str, Any] = option(
        "a value in place of the configuration's, such as out=RUN or rerank.shortlist=200", {}
    )
