"""report: metrics, lists and images of a run -> one self-contained HTML page."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.evaluate.stage import evaluation_place
from pipelines.jobs.manifests import as_input, read_manifest, require_manifest
from pipelines.report.options import Options as Options
from pipelines.results.truth import truth_input
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.plan import Job, Unit, WholeJob

STAGE = "report"


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the page. Raises UserError and JobFailed."""
    shortlist = require_manifest(f"{options.out}/shortlist", "shortlist", "search")
    ranking = require_manifest(f"{options.out}/ranking", "rankings", "rerank")
    inputs = {
        "shortlist": as_input(f"{options.out}/shortlist", shortlist),
        "ranking": as_input(f"{options.out}/ranking", ranking),
    }
    if options.ground_truth:
        place = evaluation_place(options.out, options.ensemble)
        command = "evaluate"
        if options.ensemble:
            command = f"evaluate --ensemble {','.join(options.ensemble)}"
        inputs["evaluation"] = as_input(place, require_manifest(place, "evaluation", command))
        inputs["ground_truth"] = truth_input(options.ground_truth)
    elif options.ensemble:
        raise UserError("report: --ensemble shows rows of an evaluation; give --ground-truth too")

    job = Job(
        stage=STAGE,
        output=report_place(options.out, options.ensemble),
        worker="report/page",
        recipe={
            "thumbnail": options.thumbnail,
            "max_queries": options.max_queries,
            "title": options.title,
            "page": 1,
        },
        inputs=inputs,
        units=(Unit("report", WholeJob(), shortlist.counts.succeeded),),
        settings={**asdict(options), "queries": shortlist.inputs["queries"]["url"]},
        facts={"kind": "report"},
        noun="queries",
    )
    return run_job(job, settings)


def report_place(url: str, ensemble: Sequence[str]) -> str:
    """Where a run's page lies, that of an ensemble beside the plain one. Raises UserError."""
    if not ensemble:
        return f"{url}/report"

    return f"{url}/ensemble-report/{posixpath.basename(evaluation_place(url, ensemble))}"


def summarise(options: Options, _: Manifest) -> None:
    """Say where the page lies."""
    place = open_place(report_place(options.out, options.ensemble))
    if read_manifest(place) is not None:
        print(f"Report: {place.url}/report.html")
