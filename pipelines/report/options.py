"""Options of `report`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="report"):
    """Options of `report`."""

    out: str = option("run folder that holds the rankings; the report is made below it")
    ground_truth: str = option("ground-truth file, where known", "")
    ensemble: tuple[str, ...] = option(
        "show the rows of this ensemble too, as given to evaluate", ()
    )
    stores: tuple[str, ...] = option(
        "where the stores of gallery and queries lie now, where they were moved apart from the run",
        (),
    )
    images: tuple[str, ...] = option(
        "folders where the pictures (or their archives) lie now, where these were moved", ()
    )
    title: str = option(
        "title of the page; by default that of the page in place, else 'Retrieval report'", ""
    )
    thumbnail: int = option("longest side of the pictures, pixels", 180, least=1, most=4_096)
    max_queries: int = option(
        "queries shown; of more, those whose average precision changed most", 150, least=0
    )
