"""A Beam worker pool (``python -m pipelines.engines.beam.worker_pool``), for one share at a time.

Its SDK workers are threads of this process, so that a model that one share has loaded serves the
next. It prints where it listens: on this machine alone, since whoever reaches a worker pool can
have code run. It dies with the process that started it.
"""

from __future__ import annotations

import os
import sys

from pipelines.engines.processes import PARENT_VARIABLE, die_with_parent

HOST = "127.0.0.1"

if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")) or None)
    import faulthandler

    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2_grpc as service
    from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    server = grpc.server(shared_unbounded_instance())
    port = server.add_insecure_port(f"{HOST}:0")
    service.add_BeamFnExternalWorkerPoolServicer_to_server(
        BeamFnExternalWorkerPoolServicer(), server
    )
    server.start()
    answers.write(f"{HOST}:{port}\n")
    answers.close()
    server.wait_for_termination()
    sys.exit()
