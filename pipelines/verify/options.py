"""Options of `verify`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="verify"):
    """Options of `verify`."""

    store: str = option(
        "an output folder (path or URL): a store, an index, a run; all outputs below it",
        positional=True,
    )
    quick: bool = option("look at manifests, markers and sizes alone; read no data", False)
    json: str = option("write the findings to this file", "")
    threads: int = option(
        "files that are read at the same time; 0: one a core, 4 at most", 0, least=0, most=64
    )
