"""RRT Pipelines: each stage as `STAGE.run(STAGE.Options(...))`, for scripts and notebooks.

What is named here is imported when it is first used (docs/python.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import (
        demo,
        estimate,
        evaluate,
        exchange,
        extract,
        index,
        report,
        rerank,
        results,
        run,
        search,
        stores,
        train,
        verify,
    )
    from pipelines.engines.settings import RunSettings
    from schemas.errors import JobFailed, UserError

_CLASSES = {
    "RunSettings": "pipelines.engines.settings",
    "UserError": "schemas.errors",
    "JobFailed": "schemas.errors",
}
__all__ = [
    "RunSettings",
    "UserError",
    "JobFailed",
    "extract",
    "index",
    "search",
    "rerank",
    "evaluate",
    "report",
    "run",
    "train",
    "exchange",
    "verify",
    "estimate",
    "demo",
    "stores",
    "results",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    return importlib.import_module(f"pipelines.{name}")
