"""The unit worker of `report`: gathers lists and pictures, and writes the page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.stage import evaluation_place, read_metrics
from pipelines.evaluate.table import TITLES
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.manifests import require_manifest
from pipelines.jobs.unit_worker import UnitWorker
from pipelines.report.archived import archived_pictures
from pipelines.report.page import (
    Label,
    MetricsRow,
    QueryResult,
    RankedImage,
    ReportData,
    render_report,
)
from pipelines.report.pictures import Pictures
from pipelines.report.provenance import fact_groups
from pipelines.report.stage import LABELS_OF, LISTS_NOTE, LISTS_NOTE_WITHOUT_TRUTH, MEASURES, SHOWN
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import Truth
from pipelines.storage.place import open_place
from pipelines.stores.gallery import open_stores
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import PROTOCOLS, positions_of
from schemas.manifest import Counts, Manifest
from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, RERANKED
from schemas.plan import Unit
from schemas.ranking import DEPLOY

Lists = dict[str, pa.Table]  # query id -> its ranking


class MakeReport(UnitWorker):
    """Gathers what the page shows, and renders it."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write report.html."""
        options = self.job.settings
        url = options["out"]
        before = dict(
            item for entry in shortlist_files(url) for item in read_shortlist_part(url, entry.name)
        )
        after = dict(read_ranking(url, DEPLOY))
        precisions = self._precisions(url)
        shown = self._shown(list(before), precisions)
        manifest = require_manifest(f"{url}/shortlist", "shortlist", "search")
        truth = self._truth(before) if options["ground_truth"] else None
        pictures = self._pictures(shown, before, after, manifest)
        queries = []
        for number, name in enumerate(shown):
            queries.append(
                self._query(name, before[name], after[name], precisions, truth, pictures)
            )
            attempt.tell(number + 1)
        data = ReportData(
            title=options["title"],
            summary=self._summary(len(before), manifest, len(shown)),
            metrics=self._metrics(url),
            queries=queries,
            made_by=fact_groups(url, self._evaluation(url)),
            counted=self._counted(url),
            lists_note=LISTS_NOTE if truth else LISTS_NOTE_WITHOUT_TRUTH,
        )
        path = attempt.path("report.html")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(render_report(data))
        attempt.add(path, "report.html", len(shown), plain_name=True)
        return Counts(unit.inputs, unit.inputs)

    def _truth(self, before: Lists) -> Truth:
        gallery = {
            name for rows in before.values() for name in rows.column("record_id").to_pylist()
        }
        return Truth(self.job.settings["ground_truth"], before, sorted(gallery))

    def _evaluation(self, url: str) -> str:
        return evaluation_place(url, self.job.settings["ensemble"])

    def _precisions(self, url: str) -> dict[str, dict[str, dict[str, float]]]:
        """query id -> ranking -> protocol -> average precision (NaN where there are no
        positives).
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        if self.job.settings["ground_truth"]:
            table = pq.read_table(
                io.BytesIO(open_place(self._evaluation(url)).read("per_query.parquet"))
            )
            for row in table.to_pylist():
                by_ranking = found.setdefault(row["query_id"], {})
                by_ranking.setdefault(row["ranking"], {})[row["protocol"]] = row[
                    "average_precision"
                ]
        return found

    def _shown(
        self, names: Sequence[str], precisions: dict[str, dict[str, dict[str, float]]]
    ) -> list[str]:
        """The queries that the page shows, in the order of the run."""
        most = self.job.settings["max_queries"]
        if len(names) <= most:
            return list(names)

        def change(name: str) -> float:
            rankings = precisions.get(name, {})
            old, new = rankings.get(GLOBAL, {}), rankings.get(RERANKED, {})
            differences = [
                abs(new[protocol] - old[protocol]) for protocol in new if protocol in old
            ]
            return float(np.nansum(differences))

        chosen = set(sorted(names, key=lambda name: -change(name))[:most])
        return [name for name in names if name in chosen]

    def _pictures(
        self, shown: Sequence[str], before: Lists, after: Lists, manifest: Manifest
    ) -> Pictures:
        """The pictures of the queries shown and of the first images of their lists; archived ones
        are made at once.
        """
        first = {
            name
            for query in shown
            for rows in (before[query], after[query])
            for name in rows.column("record_id").slice(0, SHOWN).to_pylist()
        }
        queries = Store(self.job.settings["queries"])
        stores = open_stores(manifest.facts["stores"])
        found = queries.references(shown)
        for store in stores:
            found.update(store.references(first))
        pictures = Pictures(self.job.settings["thumbnail"], found)
        for store, names in ((queries, set(shown)), *((store, first) for store in stores)):
            for record_id, data in archived_pictures(store, names - found.keys()):
                pictures.add(record_id, data)
        return pictures

    def _query(
        self,
        name: str,
        before: pa.Table,
        after: pa.Table,
        precisions: Mapping[str, Mapping[str, Mapping[str, float]]],
        truth: Truth | None,
        pictures: Pictures,
    ) -> QueryResult:
        old, new = before.column("record_id").to_pylist(), after.column("record_id").to_pylist()
        places = (
            {record: rank for rank, record in enumerate(old)},
            {record: rank for rank, record in enumerate(new)},
        )
        first = {*old[:SHOWN], *new[:SHOWN]}
        logits = dict(zip(new, after.column("logit").to_pylist(), strict=True))
        scores = dict(zip(old, before.column("score").to_pylist(), strict=True))
        labels = label_of(truth, name, sorted(first))
        ranked = {
            record: RankedImage(
                pictures.picture(record),
                labels[record],
                places[0].get(record),
                places[1].get(record),
                None if np.isnan(logits[record]) else logits[record],
                scores[record],
            )
            for record in first
        }
        rankings = precisions.get(name, {})
        return QueryResult(
            pictures.picture(name),
            rankings.get(GLOBAL, {}),
            rankings.get(RERANKED, rankings.get(DEPLOY, {})),
            [ranked[record] for record in old[:SHOWN]],
            [ranked[record] for record in new[:SHOWN]],
        )

    def _metrics(self, url: str) -> list[MetricsRow]:
        if not self.job.settings["ground_truth"]:
            return []
        metrics = read_metrics(url, self.job.settings["ensemble"])
        rankings, values = metrics["rankings"], metrics.get("ensemble")
        named = (
            f" (λ\u00a0{values['lambda']:g}, γ\u00a0{values['gamma']:g}, k\u00a0{values['k']})"
            if values
            else ""
        )
        return [
            MetricsRow(
                TITLES[ranking].capitalize()
                + (named if ranking in (ENSEMBLE, ENSEMBLE_DEPLOY) else ""),
                {
                    protocol: {
                        key: float("nan") if measures[key] is None else measures[key]
                        for key in MEASURES
                    }
                    for protocol, measures in by_protocol.items()
                },
            )
            for ranking, by_protocol in rankings.items()
        ]

    def _counted(self, url: str) -> dict[str, tuple[int, int]]:
        if not self.job.settings["ground_truth"]:
            return {}
        metrics = read_metrics(url, self.job.settings["ensemble"])
        rows: dict[str, Any] = metrics["rankings"][GLOBAL]
        return {
            protocol: (measures["counted"], metrics["queries"])
            for protocol, measures in rows.items()
        }

    def _summary(self, queries: int, manifest: Manifest, shown: int) -> str:
        text = (
            f"{queries:,} queries against {int(manifest.facts['gallery_rows']):,} gallery images."
        )
        if manifest.facts["truncated"]:
            text += (
                f" Rankings end after {int(manifest.facts['k']):,} images: positives beyond add "
                f"nothing."
            )
        if shown < queries:
            text += f" Shown are the {shown:,} queries whose average precision changed most."
        return text


def label_of(truth: Truth | None, query: str, records: Iterable[str]) -> dict[str, Label]:
    """How the ground truth judges records for a query, under the Medium protocol."""
    names = list(records)
    known = truth.query(query) if truth else None
    if truth is None or known is None:
        return dict.fromkeys(names, "unjudged")
    rule = PROTOCOLS[LABELS_OF]
    positive, junk = (
        set(positions_of(known, kinds).tolist()) for kinds in (rule.positive, rule.junk)
    )
    return {
        name: "positive" if place in positive else "junk" if place in junk else "negative"
        for name, place in zip(names, truth.positions(names).tolist(), strict=True)
    }
