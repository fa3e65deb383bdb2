"""An SDK worker as Beam's PROCESS environment starts it, where Beam's own `boot` is not installed.

    python -m pipelines.engines.beam.process_worker --id=ID --provision_endpoint=HOST:PORT

It asks the runner what it needs to know, and becomes Beam's own worker. Nothing is fetched: this
software must be installed where the worker runs.
"""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as messages
from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
from google.protobuf import json_format

ANSWER_SECONDS = 60.0


def environment(info: messages.ProvisionInfo, worker: str) -> dict[str, str]:
    """What Beam's worker reads of its environment."""
    endpoints = {
        "CONTROL_API_SERVICE_DESCRIPTOR": info.control_endpoint,
        "LOGGING_API_SERVICE_DESCRIPTOR": info.logging_endpoint,
    }
    return {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        **{name: str(service) for name, service in endpoints.items() if service.url},
    }


def main(arguments: list[str]) -> None:
    """Become a worker of the runner that the arguments name."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    given, _ = parser.parse_known_args(arguments)
    worker = given.id.strip("'")  # Prism quotes it

    with grpc.insecure_channel(given.provision_endpoint) as channel:
        answer = services.ProvisionServiceStub(channel).GetProvisionInfo(
            messages.GetProvisionInfoRequest(),
            timeout=ANSWER_SECONDS,
            metadata=[("worker_id", worker)],
        )

    os.environ.update(environment(answer.info, worker))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


if __name__ == "__main__":
    main(sys.argv[1:])
