"""The unit workers by name: what `plan/job.json` may name, and no other code."""

from __future__ import annotations

from importlib import metadata

from schemas.errors import UserError

# Stable names, which outputs on disk hold -> where the class is now.
WORKERS = {
    "evaluate/evaluate": "pipelines.evaluate:Evaluate",
    "extract/describe": "pipelines.describe_units:DescribeUnit",
    "extract/locals": "pipelines.layers:DescribeLocals",
    "import/part": "pipelines.import_store:ImportPart",
    "index/fill": "pipelines.index:Fill",
    "index/merge": "pipelines.index:Merge",
    "index/train": "pipelines.index:Train",
    "report/page": "pipelines.report:MakeReport",
    "rerank/replay": "pipelines.rerank:Replay",
    "rerank/score": "pipelines.rerank:ScorePairs",
    "search/candidates": "pipelines.search:FetchCandidates",
    "search/shortlist": "pipelines.search:MakeShortlist",
}

# What older outputs hold: the place of the class at that time.
OLD_WORKER_NAMES = {
    "pipelines." + "evaluate:Evaluate": "evaluate/evaluate",
    "pipelines." + "describe_units:DescribeUnit": "extract/describe",
    "pipelines." + "layers:DescribeLocals": "extract/locals",
    "pipelines." + "import_store:ImportPart": "import/part",
    "pipelines." + "index:Fill": "index/fill",
    "pipelines." + "index:Merge": "index/merge",
    "pipelines." + "index:Train": "index/train",
    "pipelines." + "report:MakeReport": "report/page",
    "pipelines." + "rerank:Replay": "rerank/replay",
    "pipelines." + "rerank:ScorePairs": "rerank/score",
    "pipelines." + "search:FetchCandidates": "search/candidates",
    "pipelines." + "search:MakeShortlist": "search/shortlist",
}
WORKER_ENTRY_POINTS = "rrt_pipelines.unit_workers"


def worker_class(name: str) -> str:
    """``package.module:Class`` of a unit worker by its name, or by the name that older outputs hold.

    Installed packages add workers by entry points of the group ``rrt_pipelines.unit_workers``.
    Raises UserError for any other name: it may come from a file that somebody else made.
    """
    name = OLD_WORKER_NAMES.get(name, name)
    if name in WORKERS:
        return WORKERS[name]

    for entry in metadata.entry_points(group=WORKER_ENTRY_POINTS):
        if entry.name == name:
            return entry.value

    raise UserError(
        f"there is no unit worker {name!r}: the output was made by another version of this software, "
        "or by a package that is not installed here; give the command that made it"
    )
