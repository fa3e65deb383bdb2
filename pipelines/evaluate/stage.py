"""evaluate: rankings + ground truth -> metrics.json and per_query.parquet, as revisitop does.

Where stores hold globals alone, so that nothing is reranked, the global order is evaluated alone.

The evaluation of an ensemble is a folder of its own beside the plain one; its rankings are replayed
from the scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.evaluate.ensembles import (
    Requested,
    read_ensemble,
    refuse_other_truth,
    refuse_where_tuned,
    require_scores,
)
from pipelines.evaluate.options import Options as Options
from pipelines.evaluate.table import metrics_table
from pipelines.jobs.existing_output import readable_manifest
from pipelines.jobs.facts import RankingFacts, ShortlistFacts
from pipelines.jobs.manifests import as_input, read_facts, require_manifest
from pipelines.results.labelled import FOLDER, labelled_of
from pipelines.results.outputs import (
    as_inputs,
    output_of,
    ranking_of,
    scores_recipe,
    shortlist_facts,
    unranked,
)
from pipelines.results.truth import truth_input
from pipelines.storage.place import open_place
from pipelines.storage.tables import reading
from rrt_core.metrics.revisited import KAPPAS
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.inside import read_json
from schemas.manifest import MANIFEST_NAME, Manifest
from schemas.plan import Job, Unit, WholeJob
from schemas.ranking import DEPLOY

STAGE = "evaluate"


def run(options: Options, settings: RunSettings = RunSettings()) -> Manifest:
    """Make (or finish, or skip) the evaluation, and that of an ensemble.

    Raises UserError and JobFailed.
    """
    requested = read_ensemble(options.ensemble) if options.ensemble else None
    shortlist, facts = output_of(options.out, "shortlist"), shortlist_facts(options.out)
    protocols, inputs = [], as_inputs(options.out, shortlist=shortlist)
    if requested or not unranked(options.out):
        ranking = ranking_of(options.out)
        inputs |= as_inputs(options.out, ranking=ranking)
        protocols = list(read_facts(f"{options.out}/ranking", ranking, RankingFacts).protocols)
    truth = load_ground_truth(options.ground_truth)
    inputs["ground_truth"] = truth_input(options.ground_truth)
    if left_out := shortlist.inputs.get("excluded"):
        inputs["excluded"] = _excluded(options.out, left_out["content"])
    labelled = {}
    if facts.cut and (settings.overwrite or not _made_of_lists(options.out, inputs)):
        labelled = _labelled(options.out, shortlist, facts, inputs["ground_truth"])
    plain = Job(
        stage=STAGE,
        output=f"{options.out}/evaluation",
        worker="evaluate/evaluate",
        recipe={"kappas": list(KAPPAS)},
        inputs={**inputs, **labelled},
        units=(Unit("evaluation", WholeJob(), len(truth.queries)),),
        settings={
            **asdict(options),
            "protocols": protocols,
            "ensemble": None,
            "stores": [hint.entry for hint in facts.stores],
            "cut": facts.cut,
        },
        facts={
            "kind": "evaluation",
            "truncated": facts.cut and not labelled,
            "k": facts.k,
            **({"shortest_list": facts.shortest} if facts.shortest < facts.k else {}),
        },
        noun="queries",
    )
    ensembled = _with_ensemble(plain, requested, options.out, shortlist) if requested else None
    manifest = run_job(plain, settings)
    return run_job(ensembled, settings) if ensembled else manifest


def _excluded(url: str, content: str) -> dict[str, str]:
    """What the lists leave out, as an input. Raises UserError where it is not what search used."""
    found = require_manifest(f"{url}/excluded", "list of rows that are left out", "search")
    if found.content != content:
        raise UserError(
            f"{url}/excluded was made again since {url}/shortlist was made of it; search again "
            f"with --overwrite"
        )
    return as_input(f"{url}/excluded", found)


def _made_of_lists(url: str, inputs: dict[str, dict[str, str]]) -> bool:
    """Whether the evaluation was made of these inputs before there were labelled places: it stays
    as it is.
    """
    place = open_place(f"{url}/evaluation")
    made = readable_manifest(place)
    if made is None or {name: one["content"] for name, one in made.inputs.items()} != {
        name: one["content"] for name, one in inputs.items()
    }:
        return False

    if open_place(f"{url}/{FOLDER}").exists(MANIFEST_NAME):
        print(
            f"{STAGE:<9}  NOTE: {place.url} was made of the lists alone; --overwrite makes it "
            f"again with {url}/{FOLDER}",
            file=sys.stderr,
        )
    return True


def _labelled(
    url: str, shortlist: Manifest, facts: ShortlistFacts, truth: dict[str, str]
) -> dict[str, dict[str, str]]:
    """The labelled places as an input, where there are some of this shortlist and ground truth;
    says why those that are there cannot be used.
    """
    manifest, why = labelled_of(url, shortlist, facts, truth)
    if manifest is not None:
        return {"labelled": as_input(f"{url}/{FOLDER}", manifest)}
    if why:
        print(f"{STAGE:<9}  NOTE: {url}/{FOLDER} is not used: {why}", file=sys.stderr)
    return {}


def _with_ensemble(plain: Job, requested: Requested, url: str, shortlist: Manifest) -> Job:
    """The job that evaluates an ensemble beside the other rankings.

    Raises UserError where it must not be.
    """
    scores = require_scores(url, shortlist)
    depth = scores_recipe(url, scores).shortlist
    if plain.settings["protocols"] != [DEPLOY]:
        refuse_other_truth(url, scores, plain.inputs["ground_truth"])
    refuse_where_tuned(requested, url, shortlist, scores, plain.inputs["ground_truth"])
    chosen = requested.at(depth, url)
    values = {"lambda": chosen.lambda_, "gamma": chosen.gamma, "k": chosen.k}
    inputs = {**plain.inputs, **as_inputs(url, scores=scores)}
    return replace(
        plain,
        output=f"{url}/{requested.folder(depth, url)}",
        recipe={**plain.recipe, "ensemble": values},
        inputs={**inputs, "tuned": requested.input} if requested.input else inputs,
        settings={**plain.settings, "ensemble": {**values, "shortlist": depth}},
        facts={
            **plain.facts,
            "ensemble": {**values, "tuned": requested.tuned.inputs if requested.tuned else None},
        },
    )


def evaluation_place(url: str, ensemble: Sequence[str]) -> str:
    """Where a run's evaluation lies: the plain one, or that of an ensemble. Raises UserError."""
    if not ensemble:
        return f"{url}/evaluation"

    depth = scores_recipe(url, output_of(url, "scores")).shortlist
    return f"{url}/{read_ensemble(ensemble).folder(depth, url)}"


def read_metrics(url: str, ensemble: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of a run; with the pieces of `--ensemble` those that hold its rows too."""
    place = open_place(evaluation_place(url, ensemble))
    with reading(place, "metrics.json"):
        return dict(read_json(place.read_record("metrics.json")))


def summarise(options: Options, _: Manifest) -> None:
    """Print the mAP table."""
    print(f"\n{metrics_table(read_metrics(options.out, options.ensemble))}")
