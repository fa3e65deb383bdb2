"""The unit worker of `evaluate`: the metrics of each ranking, and a table of each query's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.ensembles import read_scored
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import Truth
from rrt_core.ensemble import Ensemble
from rrt_core.metrics.revisited import KAPPAS, Evaluation, evaluate, protocols_of
from schemas.manifest import Counts
from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, METRICS_SCHEMA, PER_QUERY, RERANKED
from schemas.plan import Unit
from schemas.ranking import DEPLOY

Ranked = dict[str, list[str]]  # query id -> record ids, the best first


class Evaluate(UnitWorker):
    """Evaluates all rankings of a run."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write metrics.json and per_query.parquet."""
        options = self.job.settings
        rankings = self._rankings(options["out"], options["protocols"])
        first: Ranked = rankings[GLOBAL][""]
        truth = Truth(
            options["ground_truth"],
            first,
            sorted({name for names in first.values() for name in names}),
        )
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
        found: dict[str, dict[str, Ranked]] = {
            GLOBAL: {"": _ranked([item for part in parts for item in part])}
        }
        labelled = [name for name in protocols if name != DEPLOY]
        if labelled:
            found[RERANKED] = {name: _ranked(read_ranking(url, name)) for name in labelled}
        found[DEPLOY] = {"": _ranked(read_ranking(url, DEPLOY))}
        return found

    def _ensembles(
        self, url: str, protocols: Sequence[str], truth: Truth
    ) -> dict[str, dict[str, Ranked]]:
        """The ensemble's rankings as `_rankings` gives the others, replayed from the scores without
        a model.
        """
        values = self.job.settings["ensemble"]
        chosen, shortlist = (
            Ensemble(values["lambda"], values["gamma"], values["k"]),
            values["shortlist"],
        )
        lists = read_scored(url)
        found: dict[str, dict[str, Ranked]] = {}
        labelled = [name for name in protocols if name != DEPLOY]
        if labelled:
            found[ENSEMBLE] = {
                name: {
                    item.query_id: item.replayed(name, truth, shortlist, chosen) for item in lists
                }
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
            **(
                {"ensemble": {key: ensemble[key] for key in ("lambda", "gamma", "k")}}
                if ensemble
                else {}
            ),
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
                "found": evaluation.retrieved.astype(np.int32),
            }
            for column, kappa in enumerate(KAPPAS):
                columns[f"precision_at_{kappa}"] = evaluation.precision[:, column]
            tables.append(
                pa.table({field.name: columns[field.name] for field in PER_QUERY}, schema=PER_QUERY)
            )
    return pa.concat_tables(tables)
