"""Options of `rerank`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="rerank"):
    """Options of `rerank`."""

    queries: str = option("store of the queries")
    out: str = option("run folder that holds the shortlist; scores and rankings are made below it")
    reranker: str = option(
        "rrt, geometric, mutual_nn, cascade, one of an installed package, or package.module:Class",
        "rrt",
    )
    reranker_option: dict[str, Any] = option(
        "an option of the reranker, such as gallery_tokens=128", {}
    )
    weights: str = option(
        "file of the reranker's weights: train's, or a .pt of the paper's repository; default: "
        "the embedded ones",
        "",
    )
    shortlist: int = option("how many of the shortlist are reranked", 100, least=1)
    ground_truth: str = option(
        "ground-truth file: Medium and Hard are ranked too, after their junk is removed", ""
    )
    stores: tuple[str, ...] = option(
        "where the stores of the gallery lie now, where they were moved apart from the run", ()
    )
    queries_per_unit: int = option("queries a unit; 0 chooses by memory", 0, least=0)
