"""The function that Spark carries to executors. It is pickled by value and imports nothing of ours
before our packages are on the executor's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def make_task(root: str, archive: str, order: dict[str, Any]) -> Callable[..., Iterator[str]]:
    """The function of a partition: unit records (JSON) in, reports (JSON) out: see units.run.

    root     folder of our packages, where executors share this machine; ""
    archive  name under which Spark unpacks our packages, where it does; ""
    order    fields of units.TaskOrder
    """

    # Inner functions go by value, with what they refer to: names of this module's none.
    def task(records: Iterator[str]) -> Iterator[str]:
        import importlib
        import json
        import os
        import socket
        import sys

        folder = root
        if archive:
            from pyspark import SparkFiles

            folder = os.path.join(SparkFiles.getRootDirectory(), archive)
        if sys.path[0] != folder:
            sys.path.insert(0, folder)

        try:
            units: Any = importlib.import_module("pipelines.engines.spark.units")
        except ImportError as error:
            lacks = f"{socket.gethostname()}: {sys.executable} lacks the package {error.name}"
            flag = "--executor-python, or PYSPARK_PYTHON for a session that is there already"
            fix = "install what this software needs there, or name a Python that has it by"
            return iter([json.dumps({"unfit": f"{lacks}; {fix} {flag}"})])
        return iter(units.run(units.TaskOrder(**order), records))

    return task
