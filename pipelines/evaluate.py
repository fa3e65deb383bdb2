"""evaluate: rankings + ground truth -> metrics.json and per_query.parquet (ROxford / RParis protocols).

The evaluation of an ensemble is a folder of its own beside the plain one; its rankings are replayed from the scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.commit import Attempt, Job, Unit, UnitWorker
from pipelines.driver import RunSettings, run_job
from pipelines.ensemble import Asked, read_asked, read_scored, refuse_other_truth, refuse_where_tuned, require_scores
from pipelines.options import option
from pipelines.outputs import as_input, require_manifest
from pipelines.rerank import read_ranking
from pipelines.search import read_shortlist_part, shortlist_files
from pipelines.storage import Place
from pipelines.truth import Truth, truth_input
from rrt_core.ensemble import Ensemble
from rrt_core.metrics import KAPPAS, Evaluation, evaluate, protocols_of
from schemas.ground_truth import load_ground_truth
from schemas.manifest import Counts, Manifest
from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, METRICS_SCHEMA, PER_QUERY, RERANKED
from schemas.ranking import DEPLOY

STAGE = "evaluate"


@dataclass(frozen=True)
class Options:
    """Options of `evaluate`."""

    out: str = option("run folder that holds shortlist and rankings; the evaluation is made below it")
    ground_truth: str = option("ground-truth file (.json, revisitop's .pkl)")
    ensemble: tuple[str, ...] = option(
        "rows for lambda * global + (1 - lambda) * sigmoid(gamma * logit) over the first k, replayed from the scores: "
        "lambda,gamma or lambda,gamma,k, or the file that tune wrote",
        (),
    )


def run(options: Options, settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the evaluation, and that of an ensemble. Raises UserError and driver.JobFailed."""
    asked = read_asked(options.ensemble) if options.ensemble else None
    shortlist = require_manifest(f"{options.out}/shortlist", "shortlist", "search")
    ranking = require_manifest(f"{options.out}/ranking", "rankings", "rerank")
    truth = load_ground_truth(options.ground_truth)
    plain = Job(
        stage=STAGE,
        output=f"{options.out}/evaluation",
        worker="evaluate/evaluate",
        recipe={"kappas": list(KAPPAS)},
        inputs={
            "shortlist": as_input(f"{options.out}/shortlist", shortlist),
            "ranking": as_input(f"{options.out}/ranking", ranking),
            "ground_truth": truth_input(options.ground_truth),
        },
        units=(Unit("evaluation", {}, len(truth.queries)),),
        settings={**asdict(options), "protocols": ranking.facts["protocols"], "ensemble": None},
        facts={"kind": "evaluation", "truncated": shortlist.facts["truncated"], "k": shortlist.facts["k"]},
        noun="queries",
    )
    ensembled = _with_ensemble(plain, asked, options.out, shortlist) if asked else None
    manifest = run_job(plain, settings)
    return run_job(ensembled, settings) if ensembled else manifest


def _with_ensemble(plain: Job, asked: Asked, url: str, shortlist: Manifest) -> Job:
    """The job that evaluates an ensemble beside the other rankings. Raises UserError where it must not be."""
    scores = require_scores(url, shortlist)
    depth = int(scores.recipe["shortlist"])
    if plain.settings["protocols"] != [DEPLOY]:
        refuse_other_truth(url, scores, plain.inputs["ground_truth"])
    refuse_where_tuned(asked, url, shortlist, scores, plain.inputs["ground_truth"])
    chosen = asked.at(depth, url)
    values = {"lambda": chosen.lambda_, "gamma": chosen.gamma, "k": chosen.k}
    inputs = {**plain.inputs, "scores": as_input(f"{url}/scores", scores)}
    return replace(
        plain,
        output=f"{url}/{asked.folder(depth, url)}",
        recipe={**plain.recipe, "ensemble": values},
        inputs={**inputs, "tuned": asked.input} if asked.input else inputs,
        settings={**plain.settings, "ensemble": {**values, "shortlist": depth}},
        facts={**plain.facts, "ensemble": {**values, "tuned": asked.tuned.inputs if asked.tuned else None}},
    )


def evaluation_place(url: str, ensemble: Sequence[str]) -> str:
    """Where a run's evaluation lies: the plain one's folder, or that of an ensemble. Raises UserError."""
    if not ensemble:
        return f"{url}/evaluation"
    scores = require_manifest(f"{url}/scores", "scores", "rerank")
    return f"{url}/{read_asked(ensemble).folder(int(scores.recipe['shortlist']), url)}"


Ranked = dict[str, list[str]]  # query id -> record ids, the best first


class Evaluate(UnitWorker):
    """Evaluates all rankings of a run."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write metrics.json and per_query.parquet."""
        options = self.job.settings
        rankings = self._rankings(options["out"], options["protocols"])
        first: Ranked = rankings[GLOBAL][""]
        truth = Truth(options["ground_truth"], first, sorted({name for names in first.values() for name in names}))
        if options["ensemble"]:
            rankings |= self._ensembles(options["out"], options["protocols"], truth)
        results: dict[str, dict[str, Evaluation]] = {}
        for ranking, by_protocol in rankings.items():
            results[ranking] = {}
            for protocol in protocols_of(truth.truth):
                ranked = by_protocol.get(protocol) or by_protocol.get("") or by_protocol["medium"]
                lists = self._positions(truth, ranked)
                results[ranking][protocol] = evaluate(lists, truth.truth.queries, protocol, KAPPAS)
        self._write_metrics(attempt, truth, results)
        path = attempt.path("per_query.parquet")
        pq.write_table(_per_query(truth, results), path, compression="zstd")
        attempt.add(path, "per_query.parquet", len(truth.truth.queries), plain_name=True)
        described = len(truth.by_query())
        return Counts(unit.inputs, described, unit.inputs - described)

    @staticmethod
    def _rankings(url: str, protocols: Sequence[str]) -> dict[str, dict[str, Ranked]]:
        """ranking -> protocol ("" for any) -> query -> records."""
        parts = [read_shortlist_part(url, entry.name) for entry in shortlist_files(url)]
        found: dict[str, dict[str, Ranked]] = {GLOBAL: {"": _ranked([item for part in parts for item in part])}}
        labelled = [name for name in protocols if name != DEPLOY]
        if labelled:
            found[RERANKED] = {name: _ranked(read_ranking(url, name)) for name in labelled}
        found[DEPLOY] = {"": _ranked(read_ranking(url, DEPLOY))}
        return found

    def _ensembles(self, url: str, protocols: Sequence[str], truth: Truth) -> dict[str, dict[str, Ranked]]:
        """The ensemble's rankings as `_rankings` gives the others, replayed from the scores without a model."""
        values = self.job.settings["ensemble"]
        chosen, shortlist = Ensemble(values["lambda"], values["gamma"], values["k"]), values["shortlist"]
        lists = read_scored(url)
        found: dict[str, dict[str, Ranked]] = {}
        labelled = [name for name in protocols if name != DEPLOY]
        if labelled:
            found[ENSEMBLE] = {
                name: {item.query_id: item.replayed(name, truth, shortlist, chosen) for item in lists}
                for name in labelled
            }
        deployed = {item.query_id: item.replayed(DEPLOY, None, shortlist, chosen) for item in lists}
        found[ENSEMBLE_DEPLOY] = {"": deployed}
        return found

    @staticmethod
    def _positions(truth: Truth, ranked: Ranked) -> list[np.ndarray]:
        """Gallery positions a query of the ground truth; empty for one that was not described."""
        names = truth.by_query()
        return [
            truth.positions(ranked[names[number]]) if number in names else np.zeros(0, np.int64)
            for number in range(len(truth.truth.queries))
        ]

    def _write_metrics(
        self, attempt: Attempt, truth: Truth, results: dict[str, dict[str, Evaluation]]
    ) -> None:
        facts = {
            "queries_not_described": len(truth.truth.queries) - len(truth.by_query()),
            "gallery_images_not_described": truth.missing_from_gallery,
            "truncated": self.job.facts["truncated"],
            "k": self.job.facts["k"],
        }
        ensemble = self.job.settings["ensemble"]
        record = {
            "schema": METRICS_SCHEMA,
            "ground_truth": truth.truth.name,
            "queries": len(truth.truth.queries),
            "facts": facts,
            **({"ensemble": {key: ensemble[key] for key in ("lambda", "gamma", "k")}} if ensemble else {}),
            "rankings": {
                ranking: {
                    protocol: {**_finite(evaluation.means), "counted": evaluation.counted}
                    for protocol, evaluation in by_protocol.items()
                }
                for ranking, by_protocol in results.items()
            },
        }
        path = attempt.path("metrics.json")
        with open(path, "w") as file:
            file.write(json.dumps(record, indent=1) + "\n")
        attempt.add(path, "metrics.json", len(truth.truth.queries), plain_name=True)


def _ranked(split: Sequence[tuple[str, pa.Table]]) -> Ranked:
    return {name: rows.column("record_id").to_pylist() for name, rows in split}


def _finite(means: dict[str, float]) -> dict[str, float | None]:
    """NaN is no JSON: no query counted."""
    return {name: None if np.isnan(value) else value for name, value in means.items()}


def _per_query(truth: Truth, results: dict[str, dict[str, Evaluation]]) -> pa.Table:
    names = truth.by_query()
    queries = range(len(truth.truth.queries))
    tables = []
    for ranking, by_protocol in results.items():
        for protocol, evaluation in by_protocol.items():
            columns: dict[str, Any] = {
                "query": np.array(queries, np.int32),
                "query_id": [names.get(number, "") for number in queries],
                "ranking": [ranking] * len(queries),
                "protocol": [protocol] * len(queries),
                "average_precision": evaluation.average_precision,
                "positives": evaluation.positives.astype(np.int32),
                "found": evaluation.found.astype(np.int32),
            }
            for column, kappa in enumerate(KAPPAS):
                columns[f"precision_at_{kappa}"] = evaluation.precision[:, column]
            tables.append(pa.table({field.name: columns[field.name] for field in PER_QUERY}, schema=PER_QUERY))
    return pa.concat_tables(tables)


def read_metrics(url: str, ensemble: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of a run; with `ensemble` (the option's pieces) those that hold that ensemble's rows too."""
    record: dict[str, Any] = json.loads(Place(evaluation_place(url, ensemble)).read("metrics.json"))
    return record


TITLES = {
    GLOBAL: "global",
    RERANKED: "reranked",
    DEPLOY: "reranked, no label knowledge",
    ENSEMBLE: "ensemble",
    ENSEMBLE_DEPLOY: "ensemble, no label knowledge",
}


def metrics_table(metrics: dict[str, Any]) -> str:
    """The mAP table for a terminal, in percent."""
    protocols = list(next(iter(metrics["rankings"].values())))
    head = f"{'mAP':<30}" + "".join(f"{protocol.capitalize():>9}" for protocol in protocols)
    lines = [head, "-" * len(head)]
    for ranking, by_protocol in metrics["rankings"].items():
        cells = [by_protocol[protocol]["mAP"] for protocol in protocols]
        lines.append(f"{TITLES[ranking]:<30}" + "".join(f"{'-' if c is None else f'{100 * c:.2f}':>9}" for c in cells))
    if "ensemble" in metrics:
        values = metrics["ensemble"]
        lines.append(f"ensemble: lambda {values['lambda']:g}, gamma {values['gamma']:g}, k {values['k']}")
    return "\n".join(lines)


def summarise(options: Options, _: Manifest) -> None:
    """Print the mAP table."""
    print(f"\n{metrics_table(read_metrics(options.out, options.ensemble))}")
