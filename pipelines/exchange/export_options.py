"""Options of `export`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option

ARRAYS, DEPLOY = "arrays", "deploy"


@dataclass(frozen=True)
class Options(Checked, command="export"):
    """Options of `export`."""

    store: str = option(
        "the store, or the run that holds the ranking (path or URL)", positional=True
    )
    out: str = option("folder to make, or the ranking's file, on a local disk")
    format: str = option(
        "arrays: a store's descriptors; trec, or one of an installed package: a run's ranking",
        ARRAYS,
    )
    locals: bool = option("whether the local descriptors are written too", False)
    protocol: str = option(
        "with a ranking's format: whose order; deploy is the one without label knowledge",
        DEPLOY,
        choices=(DEPLOY, "medium", "hard"),
    )
