"""The child process of the driver: runs one round of a job (``python -m pipelines.round SPEC.json``)."""

from __future__ import annotations

import os
import sys

from pipelines.processes import PARENT_VARIABLE, die_with_parent

if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, 0)) or None)
    import faulthandler
    import json
    from pathlib import Path

    faulthandler.enable()
    from pipelines.commit import Job
    from pipelines.runners import run_round

    spec = json.loads(Path(sys.argv[1]).read_text())
    run_round(Job.from_json(spec["job"]), spec["runner"], spec["workers"], spec["threads"], spec["beam_options"])
    sys.stdout.flush()
    os._exit(0)  # Beam's threads have nothing left to say
