"""``python -m pipelines COMMAND ...``"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys


def main() -> int:
    """The console script: signals are handled before anything heavy is imported. Ends the
    process.
    """
    # Read by OpenMP when it is loaded: threads that wait by spinning take others' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipelines.engines import signals as stopping

    stopping.install()
    from pipelines.cli import main as command_line

    try:
        code = command_line()
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    finally:
        # a signal's own end is under way, and may be why this one came about
        stopping.pass_or_wait()
    # The interpreter's own end unloads libraries whose threads may still run, which now and then
    # aborts the process ("terminate called without an active exception") and with it a good exit
    # code.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
