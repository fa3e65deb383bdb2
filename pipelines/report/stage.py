"""report: metrics, lists and images of a run -> one self-contained HTML page."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.evaluate.stage import evaluation_place
from pipelines.jobs.existing_output import readable_manifest
from pipelines.jobs.facts import ShortlistFacts, StoreHint
from pipelines.jobs.inputs import find_inputs
from pipelines.jobs.manifests import (
    as_input,
    input_content,
    read_facts,
    read_manifest,
    require_manifest,
)
from pipelines.report.options import Options as Options
from pipelines.report.whereabouts import check_folders
from pipelines.results.outputs import as_inputs, output_of, ranking_of
from pipelines.results.truth import truth_input
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.plan import Job, Unit, WholeJob

STAGE = "report"
TITLE = "Retrieval report"


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the page. Raises UserError and JobFailed."""
    shortlist, ranking = output_of(options.out, "shortlist"), ranking_of(options.out)
    inputs = as_inputs(options.out, shortlist=shortlist, ranking=ranking)
    if options.ground_truth:
        place = evaluation_place(options.out, options.ensemble)
        command = "evaluate"
        if options.ensemble:
            command = f"evaluate --ensemble {','.join(options.ensemble)}"
        inputs["evaluation"] = as_input(place, require_manifest(place, "evaluation", command))
        inputs["ground_truth"] = truth_input(options.ground_truth)
    elif options.ensemble:
        raise UserError("report: --ensemble shows rows of an evaluation; give --ground-truth too")

    check_folders(options.images)
    place = open_place(f"{options.out}/shortlist").url
    hints = read_facts(place, shortlist, ShortlistFacts).stores
    queries = input_content(place, shortlist, "queries")
    named = [(hint.url, hint.content) for hint in hints]
    named.append((shortlist.inputs["queries"].get("url", ""), queries))
    *galleries, lying = find_inputs(named, place, options.stores, "--stores", "store")
    stores = [
        StoreHint(url, hint.content, hint.base).entry
        for url, hint in zip(galleries, hints, strict=True)
    ]

    title = options.title or title_before(options) or TITLE
    job = Job(
        stage=STAGE,
        output=report_place(options.out, options.ensemble),
        worker="report/page",
        recipe={
            "thumbnail": options.thumbnail,
            "max_queries": options.max_queries,
            "title": title,
            "page": 1,
        },
        inputs=inputs,
        units=(Unit("report", WholeJob(), shortlist.counts.succeeded),),
        settings={**asdict(options), "title": title, "queries": lying, "stores": stores},
        facts={"kind": "report"},
        noun="queries",
    )
    made = readable_manifest(open_place(job.output))
    if options.images and made is not None and missing_pictures(made):
        settings = replace(settings, overwrite=True)  # now there may be pictures

    manifest = run_job(job, settings)
    for line in missing_pictures(manifest):
        print(f"{STAGE:<9}  {line}", file=sys.stderr)
    return manifest


def title_before(options: Options) -> str:
    """The title of the page that is in place, or ""."""
    made = readable_manifest(open_place(report_place(options.out, options.ensemble)))
    return str(made.recipe.get("title") or "") if made else ""


def missing_pictures(manifest: Manifest) -> list[str]:
    """What a page lacks, in a sentence each."""
    notes = manifest.facts.get("notes")
    if not isinstance(notes, dict):
        return []
    return [
        f"{notes[f'{kind}_pictures_missing']:,} of {notes[f'{kind}_pictures']:,} {kind} pictures "
        f"cannot be read: {notes[f'{kind}_pictures_why']}; give the folder where they lie now by "
        f"--images"
        for kind in ("query", "gallery")
        if notes.get(f"{kind}_pictures_missing")
    ]


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
