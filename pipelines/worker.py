"""A worker process of the local runner: Beam's SDK harness that dies with the process that started it."""

from __future__ import annotations

from pipelines.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    import faulthandler
    import sys

    faulthandler.enable()
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
