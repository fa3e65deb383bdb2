"""Options of `export`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="export"):
    """Options of `export`."""

    store: str = option("the store (path or URL)", positional=True)
    out: str = option("folder to make, on a local disk")
    locals: bool = option("whether the local descriptors are written too", False)
