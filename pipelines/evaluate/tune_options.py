"""Options of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import Checked, option


@dataclass(frozen=True)
class Options(Checked, command="tune"):
    """Options of `tune`."""

    out: str = option("run folder of a validation set, reranked with its ground truth")
    ground_truth: str = option("ground-truth file of the validation set")
    result: str = option("JSON file to write")
    metric: str = option(
        "protocols whose mAP is averaged: medium+hard (where levels are known), medium, hard ...",
        "",
    )
    grid: dict[str, Any] = option(
        "values to try, such as lambda=0,0.5,1 or gamma=0.1,1,10 or k=50,100", {}
    )
