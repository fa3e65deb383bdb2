"""The main program of a flex template: ``--command=extract --images=gs://... --out=gs://...``.

Dataflow's launcher gives its parameters as flags; the command is one of them. It also gives
--template_location, at which the job is written and not run: the launcher runs it.
"""

from __future__ import annotations

import sys

from pipelines.__main__ import main


def arguments(given: list[str]) -> list[str]:
    """The command line of the pipelines for the launcher's flags."""
    flag = "--command="
    commands = [one.removeprefix(flag) for one in given if one.startswith(flag)]
    others = [one for one in given if not one.startswith(flag)]
    return [*commands[:1], *others, "--runner=DataflowRunner", "--detach"]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    main()
