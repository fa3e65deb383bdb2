"""Options of `estimate`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="estimate"):
    """Options of `estimate`: a stage and its own options."""

    stage: str = option(
        "extract, index, search, rerank or run, followed by its own options", "", positional=True
    )
