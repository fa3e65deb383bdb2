"""Result formats: ranked lists as the files that other tools and evaluation servers read.

A format is one file with a function ``write(lists: Iterable[RankedList], path: str) -> None``,
which writes one local file, and one line in `FORMATS`; an installed package adds one by an entry
point of the group ``rrt_pipelines.result_formats``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.registry import Registry

FORMATS = Registry(
    "result format",
    "rrt_pipelines.result_formats",
    {"trec": "schemas.exporters.trec:write"},
)


@dataclass(frozen=True)
class RankedList:
    """The final order of one query under one protocol, the best first.

    query          the query's record id
    records        n record ids
    global_scores  float32 [n], similarity of the global descriptors
    logits         float32 [n], the reranker's; NaN where the pair was not reranked
    """

    query: str
    records: Sequence[str]
    global_scores: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
