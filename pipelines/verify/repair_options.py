"""Options of `repair`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="repair"):
    """Options of `repair`."""

    store: str = option(
        "an output folder (path or URL), or one that holds outputs", positional=True
    )
    remove_damaged: bool = option(
        "only remove damaged files and their units' markers; the command that made the output "
        "then does them again",
        False,
    )
    own_class: tuple[str, ...] = option(
        "package.module:Class of an extractor or reranker of yours that the output was made with: "
        "repair imports none that the output alone names",
        (),
    )
    gc: bool = option(
        "remove files that nothing names and that are older than 24 hours, where all else is whole",
        False,
    )
