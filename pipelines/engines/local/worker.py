"""A worker process of the driver (``python -m pipelines.engines.local.worker``): does shares.

It reads the path of a share's JSON file a line from its standard input, and answers a line on the
standard output that it was started with. What libraries print goes to the log. It dies with its
driver.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from pipelines.engines.processes import PARENT_VARIABLE, die_with_parent


def serve(do: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the driver's shares, as they are read, with what `do` gives: the fields of `Ended`.

    Returns when the driver wants no more. An exception is a share's problem.
    """
    import faulthandler
    import json
    import traceback
    from pathlib import Path

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    for line in sys.stdin:
        try:
            answer = do(json.loads(Path(line.rstrip("\n")).read_text()))
        except Exception as error:  # noqa: BLE001  the driver says it, and tries again
            traceback.print_exc()
            answer = {"problem": f"{type(error).__name__}: {error}"}

        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")) or None)
    from pipelines.engines.workers.stall_watch import at_work, watch_stalls

    def do_share(share: dict[str, Any]) -> dict[str, Any]:
        """The plain loop over a share's units."""
        watch_stalls(share["stall_seconds"])
        with at_work():  # imports of more can stand still, too
            from pipelines.engines.unit_runner import run_share
            from pipelines.engines.workers.fitness import be_fit
            from schemas.plan import Job

            be_fit(share["ticket"])
            run_share(Job.from_json(share["job"]), share["threads"])

        return {"problem": ""}

    serve(do_share)
    os._exit(0)  # a library's threads have nothing left to say
