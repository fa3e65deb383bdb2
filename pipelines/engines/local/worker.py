"""A worker process of the driver (``python -m pipelines.engines.local.worker``): does shares.

It reads the path of a share's JSON file a line from its standard input, and answers a line on the
standard output that it was started with. What libraries print goes to the log. It dies with its
driver. Beam is imported only where a runner of Beam is wanted.
"""

from __future__ import annotations

import os
import sys

from pipelines.engines.processes import PARENT_VARIABLE, die_with_parent, kill_group_at_end

if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")) or None)
    import faulthandler
    import json
    import traceback
    from pathlib import Path

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    from pipelines.engines.workers.stall_watch import at_work, watch_stalls

    for line in sys.stdin:
        share = json.loads(Path(line.rstrip("\n")).read_text())
        problem = ""
        try:
            if "runner" not in share:
                watch_stalls(share["stall_seconds"])
                with at_work():  # imports of more can stand still, too
                    from pipelines.engines.unit_runner import run_share
                    from pipelines.engines.workers.fitness import be_fit
                    from schemas.plan import Job

                    be_fit(share["ticket"])
                    run_share(Job.from_json(share["job"]), share["threads"])
            else:
                from pipelines.engines.beam.transform import run_share as run_pipeline
                from schemas.plan import Job

                kill_group_at_end()
                job = Job.from_json(share["job"])
                run_pipeline(job, share["runner"], share["threads"], share["beam_options"])
        except Exception as error:  # noqa: BLE001  the driver says it, and tries again
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"

        answers.write(json.dumps({"problem": problem}) + "\n")
        answers.flush()

    os._exit(0)  # a library's threads have nothing left to say
