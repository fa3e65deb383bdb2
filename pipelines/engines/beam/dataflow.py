"""Dataflow's job as a file, without a call to its service: what would run, for a look or a test.

`--template_location=FILE` is Beam's own way, as flex templates use it. `--dry_run=True --no_auth
--dataflow_job_file=FILE` makes the same file where there is neither an account nor a network; what
the job would stage lies in FILE.staged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    TestOptions,
)


def only_writes(options: PipelineOptions) -> bool:
    """Whether the job is written and not run."""
    template = options.view_as(GoogleCloudOptions).template_location
    return bool(template or options.view_as(TestOptions).dry_run)


def job_file(options: PipelineOptions) -> str:
    """The file that is written; "" where a dry run is to keep none."""
    template = options.view_as(GoogleCloudOptions).template_location
    return str(template or options.view_as(DebugOptions).dataflow_job_file or "")


def write_job(result: Any, options: PipelineOptions) -> None:
    """Write what a dry run would have submitted, and beside it what it would have staged."""
    path = options.view_as(DebugOptions).dataflow_job_file
    if not path or not options.view_as(TestOptions).dry_run:
        return

    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

    staged = f"{path}.staged"
    os.makedirs(staged, exist_ok=True)
    job = result.job
    for view in (job.google_cloud_options, job.options.view_as(GoogleCloudOptions)):
        view.staging_location = staged
    DataflowApplicationClient(job.options, staged).create_job_description(job)
    Path(path).write_text(job.json())
