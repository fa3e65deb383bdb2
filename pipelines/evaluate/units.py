"""The unit worker of `evaluate`: the metrics of each ranking, and a table of each query's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.evaluate.ensembles import read_scored, replayed
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import stores_of
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.results.excluded import read_excluded
from pipelines.results.labelled import read_labelled
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist
from pipelines.results.truth import Truth, truth_of
from pipelines.stores.gallery import open_stores
from rrt_core.ensemble import Ensemble
from rrt_core.metrics.revisited import KAPPAS, Evaluation, evaluate, protocols_of
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import LISTS, QueryTruth
from schemas.ground_truth.name_matching import Names
from schemas.manifest import Counts
from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, METRICS_SCHEMA, PER_QUERY, RERANKED
from schemas.plan import Unit
from schemas.ranking import DEPLOY

Ranked = dict[str, list[str]]  # query id -> record ids, the best first
Results = dict[str, dict[str, Evaluation]]  # ranking -> protocol -> metrics


@dataclass(frozen=True)
class Seen:
    """The labelled images of a query beside its list.

    positions  record id -> position in the ground truth's gallery
    beyond     int64 [m], positions of those that the list lacks
    places     int64 [m], their places in the whole order that the list begins
    """

    positions: dict[str, int]
    beyond: np.ndarray
    places: np.ndarray

    def order(self, ranked: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(positions, places) of the list in some order, and of the labelled images beyond it."""
        listed = np.array([self.positions.get(name, -1) for name in ranked], np.int64)
        return (
            np.concatenate([listed, self.beyond]),
            np.concatenate([np.arange(len(ranked)), self.places]),
        )


NOTHING_SEEN = Seen({}, np.zeros(0, np.int64), np.zeros(0, np.int64))


class Evaluate(UnitWorker):
    """Evaluates all rankings of a run."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write metrics.json and per_query.parquet."""
        options = self.job.settings
        shortlists = list(read_shortlist(options["out"]))
        truth = truth_of(options["ground_truth"], shortlists)
        assert truth is not None  # a required option
        described = truth.by_query()
        queries = self._asked(truth.truth.queries, described)
        seen = self._labelled(shortlists)
        results: Results = {}
        for ranking, by_protocol in self._rankings(shortlists, truth).items():
            results[ranking] = {}
            for protocol in protocols_of(truth.truth):
                ranked = by_protocol.get(protocol) or by_protocol.get("") or by_protocol["medium"]
                names = [described.get(number, "") for number in range(len(queries))]
                lists = [ranked[name] if name else [] for name in names]
                if seen is None:
                    positions = [truth.positions(each) for each in lists]
                    found = evaluate(positions, queries, protocol, KAPPAS)
                else:
                    whole = [
                        seen.get(name, NOTHING_SEEN).order(each)
                        for name, each in zip(names, lists, strict=True)
                    ]
                    positions, places = (list(each) for each in zip(*whole, strict=True))
                    found = evaluate(positions, queries, protocol, KAPPAS, places)
                results[ranking][protocol] = found

        path = attempt.path("metrics.json")
        Path(path).write_text(json.dumps(self._metrics(truth, results), indent=1) + "\n")
        attempt.add(path, "metrics.json", len(queries), plain_name=True)

        table = _per_query(truth, results)
        undefined = [column.name for column in table.schema]  # of queries without positives
        name, count = "per_query.parquet", len(queries)
        attempt.add_table(table, name, count, plain_name=True, undefined=undefined)
        return Counts(unit.inputs, len(described), unit.inputs - len(described))

    def _asked(
        self, queries: Sequence[QueryTruth], described: Mapping[int, str]
    ) -> list[QueryTruth]:
        """The queries; what their lists leave out is in none of their own lists."""
        asked, excluded = list(queries), read_excluded(self.job.inputs)
        left_out = [name for one in excluded.values() for name in one.record_ids]
        known = Truth(self.job.settings["ground_truth"], (), left_out)
        for number, name in described.items():
            if name in excluded:
                own = {*known.positions(excluded[name].record_ids).tolist()}
                easy, hard, junk = (
                    tuple(one for one in getattr(asked[number], label) if one not in own)
                    for label in LISTS
                )
                asked[number] = replace(asked[number], easy=easy, hard=hard, junk=junk)
        return asked

    def _labelled(self, shortlists: Iterable[tuple[str, pa.Table]]) -> dict[str, Seen] | None:
        """Query id -> its labelled images beside its list; None where the lists alone are known."""
        if "labelled" not in self.job.inputs:
            return None

        lists = dict(shortlists)
        return {
            name: Seen(dict(zip(found.record_ids, found.positions, strict=True)), *beyond)
            for name, found in read_labelled(self.job.settings["out"])
            for beyond in [found.beyond(lists[name])]
        }

    def _rankings(
        self, shortlists: Iterable[tuple[str, pa.Table]], truth: Truth
    ) -> dict[str, dict[str, Ranked]]:
        """ranking -> protocol ("" for any) -> query -> records."""
        options = self.job.settings
        url, labelled = options["out"], [name for name in options["protocols"] if name != DEPLOY]
        rankings = {
            GLOBAL: {"": _ranked(shortlists)},
            RERANKED: {name: _ranked(read_ranking(url, name)) for name in labelled},
        }
        if DEPLOY in options["protocols"]:  # else there is nothing to rerank by
            rankings[DEPLOY] = {"": _ranked(read_ranking(url, DEPLOY))}

        if options["ensemble"]:
            values, lists = options["ensemble"], read_scored(url)
            chosen = Ensemble(values["lambda"], values["gamma"], values["k"])
            depth = values["shortlist"]

            def of(protocol: str, truth: Truth | None) -> Ranked:
                return {
                    one.query_id: replayed(one, protocol, truth, depth, chosen) for one in lists
                }

            rankings[ENSEMBLE] = {name: of(name, truth) for name in labelled}
            rankings[ENSEMBLE_DEPLOY] = {"": of(DEPLOY, None)}
        return {name: by_protocol for name, by_protocol in rankings.items() if by_protocol}

    def _metrics(self, truth: Truth, results: Results) -> dict[str, Any]:
        """What metrics.json says. NaN is no JSON: null, where no query counted."""
        queries, ensemble = len(truth.truth.queries), self.job.settings["ensemble"]
        shortest = self.job.facts.get("shortest_list")
        chosen = {key: ensemble[key] for key in ("lambda", "gamma", "k")} if ensemble else None
        rankings = {
            ranking: {
                protocol: {
                    **{
                        name: None if np.isnan(mean) else mean
                        for name, mean in evaluation.means.items()
                    },
                    "counted": evaluation.counted,
                }
                for protocol, evaluation in by_protocol.items()
            }
            for ranking, by_protocol in results.items()
        }
        return {
            "schema": METRICS_SCHEMA,
            "ground_truth": truth.truth.name,
            "queries": queries,
            "facts": {
                "queries_not_described": queries - len(truth.by_query()),
                "gallery_images_not_described": self._missing(truth),
                "truncated": self.job.facts["truncated"],
                **({"exact_places": True} if "labelled" in self.job.inputs else {}),
                "k": self.job.facts["k"],
                **({"shortest_list": shortest} if shortest is not None else {}),
            },
            **({"ensemble": chosen} if chosen else {}),
            "rankings": rankings,
        }

    def _missing(self, truth: Truth) -> int | None:
        """How many images of the truth's gallery no record stands for; None where lists lack images
        and the stores, which alone know, are not to be found.
        """
        cut = self.job.settings.get("cut", self.job.facts["truncated"])
        if not cut and "excluded" not in self.job.inputs:
            return truth.missing_from_gallery

        hints = stores_of(self.job.settings.get("stores") or [])
        try:
            stores = open_stores(hints, self.job.output)
        except UserError:
            return None
        if not stores:
            return None
        names = Names(truth.truth.gallery)
        described = [
            name for store in stores for name in store.described_ids() if names.possible(name)
        ]
        return Truth(self.job.settings["ground_truth"], (), described).missing_from_gallery


def _ranked(lists: Iterable[tuple[str, pa.Table]]) -> Ranked:
    return {name: rows.column("record_id").to_pylist() for name, rows in lists}


def _per_query(truth: Truth, results: Results) -> pa.Table:
    """A row a ranking, protocol and query (schemas/metrics.py)."""
    names, count = truth.by_query(), len(truth.truth.queries)
    tables = []
    for ranking, by_protocol in results.items():
        for protocol, evaluation in by_protocol.items():
            columns: dict[str, Any] = {
                "query": np.arange(count, dtype=np.int32),
                "query_id": [names.get(number, "") for number in range(count)],
                "ranking": [ranking] * count,
                "protocol": [protocol] * count,
                "average_precision": evaluation.average_precision,
                "positives": evaluation.positives.astype(np.int32),
                "found": evaluation.retrieved.astype(np.int32),
            }
            for column, kappa in enumerate(KAPPAS):
                columns[f"precision_at_{kappa}"] = evaluation.precision[:, column]
            tables.append(pa.table(columns, schema=PER_QUERY))
    return pa.concat_tables(tables)
