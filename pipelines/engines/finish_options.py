"""Options of `finish`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="finish"):
    """Options of `finish`."""

    output: str = option(
        "an output folder (path or URL) whose units were done by workers that a command with "
        "--detach left behind",
        positional=True,
    )
