"""The unit worker of `report`: gathers lists and pictures, and writes the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.evaluate.stage import evaluation_place, read_metrics
from pipelines.evaluate.table import TITLES
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.facts import ShortlistFacts, stores_of
from pipelines.jobs.inputs import find_inputs
from pipelines.jobs.manifests import input_content
from pipelines.jobs.unit_worker import UnitWorker
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
from pipelines.results.outputs import output_of, shortlist_facts
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist
from pipelines.results.truth import Truth, truth_of
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from pipelines.stores.gallery import open_stores
from pipelines.stores.store import Store
from rrt_core.metrics.revisited import PROTOCOLS, positions_of
from schemas.manifest import Counts
from schemas.metrics import ENSEMBLE, ENSEMBLE_DEPLOY, GLOBAL, RERANKED
from schemas.plan import Unit
from schemas.ranking import DEPLOY

SHOWN = 10  # of each list
MEASURES = ("mAP", "mP@1", "mP@5", "mP@10")
LABELS_OF = "medium"  # the protocol whose labels frame the lists
LISTS_NOTE = (
    "Before: the order of the global descriptors. After: reranked as a user without labels would "
    "see it, so that junk stands where it falls. Frames by the Medium protocol: easy and hard "
    "images are right, junk counts neither way."
)
LISTS_NOTE_WITHOUT_TRUTH = (
    "Before: the order of the global descriptors. After: reranked. There is no ground truth."
)

Lists = dict[str, pa.Table]  # query id -> its ranking
Precisions = dict[str, dict[str, float]]  # ranking -> protocol -> average precision; NaN: undefined


class MakeReport(UnitWorker):
    """Gathers what the page shows, and renders it."""

    def do(self, unit: Unit, attempt: Attempt) -> Counts:
        """Write report.html."""
        options = self.job.settings
        url, ensemble = options["out"], options["ensemble"]
        manifest = output_of(url, "shortlist")
        before, after = dict(read_shortlist(url)), dict(read_ranking(url, DEPLOY))
        evaluation = evaluation_place(url, ensemble)
        truth, precisions, metrics = None, dict[str, Precisions](), dict[str, Any]()
        if options["ground_truth"]:
            truth = truth_of(options["ground_truth"], list(before.items()))
            precisions, metrics = _precisions(evaluation), read_metrics(url, ensemble)

        shown = _shown(list(before), precisions, options["max_queries"])
        hints = stores_of(options.get("stores") or [])  # older outputs' jobs name none
        galleries = open_stores(hints or shortlist_facts(url).stores, self.job.output)
        recorded = (options["queries"], input_content(url, manifest, "queries"))
        (lying,) = find_inputs([recorded], self.job.output, (), "--stores", "store")
        stores = [Store(lying), *galleries]
        pictures = self._pictures(shown, before, after, stores, attempt)
        queries = []
        for number, name in enumerate(shown):
            lists, known = (before[name], after[name]), precisions.get(name, {})
            queries.append(_query(name, lists, known, truth, pictures))
            attempt.report(number + 1)

        rankings = metrics.get("rankings", {})
        exact = "exact_places" in metrics.get("facts", {})
        data = ReportData(
            title=options["title"],
            summary=_summary(len(before), shortlist_facts(url), len(shown), exact),
            metrics=_rows(rankings, metrics.get("ensemble")),
            queries=queries,
            made_by=fact_groups(
                url,
                manifest,
                evaluation,
                [store.place.url for store in galleries],
                lying,
            ),
            counted={
                protocol: (measures["counted"], metrics["queries"])
                for protocol, measures in rankings.get(GLOBAL, {}).items()
            },
            lists_note=LISTS_NOTE if truth else LISTS_NOTE_WITHOUT_TRUTH,
        )
        path = attempt.path("report.html")
        Path(path).write_text(render_report(data), encoding="utf-8", errors="replace")
        attempt.add(path, "report.html", len(shown), plain_name=True)
        return Counts(unit.inputs, unit.inputs)

    def _pictures(
        self,
        shown: Sequence[str],
        before: Lists,
        after: Lists,
        stores: Sequence[Store],
        attempt: Attempt,
    ) -> Pictures:
        """The pictures of the queries and of the first images of their lists; which of them are
        missing is noted.
        """
        first = {
            name
            for query in shown
            for rows in (before[query], after[query])
            for name in rows.column("record_id").slice(0, SHOWN).to_pylist()
        }
        options, pictures = self.job.settings, Pictures(self.job.settings["thumbnail"])
        given = options.get("images") or ()
        for number, store in enumerate(stores):
            pictures.add(store, first if number else shown, given)

        attempt.notes.update(pictures.notes("query", shown))
        attempt.notes.update(pictures.notes("gallery", first))
        return pictures


def _precisions(evaluation: str) -> dict[str, Precisions]:
    """query id -> its average precisions."""
    precisions: dict[str, Precisions] = {}
    for row in read_table(open_place(evaluation), "per_query.parquet").to_pylist():
        by_protocol = precisions.setdefault(row["query_id"], {}).setdefault(row["ranking"], {})
        by_protocol[row["protocol"]] = row["average_precision"]
    return precisions


def _shown(names: Sequence[str], precisions: Mapping[str, Precisions], most: int) -> list[str]:
    """The queries that the page shows, in the order of the run: those that changed most."""

    def change(name: str) -> float:
        rankings = precisions.get(name, {})
        old, new = rankings.get(GLOBAL, {}), rankings.get(RERANKED, {})
        changes = (abs(new[protocol] - old[protocol]) for protocol in new if protocol in old)
        return sum(value for value in changes if not math.isnan(value))

    chosen = set(sorted(names, key=change, reverse=True)[:most])
    return [name for name in names if name in chosen]


def _query(
    name: str,
    lists: tuple[pa.Table, pa.Table],
    precisions: Precisions,
    truth: Truth | None,
    pictures: Pictures,
) -> QueryResult:
    """A query with its first images before and after."""
    before, after = lists
    scores, logits = before.column("score").to_pylist(), after.column("logit").to_pylist()
    old, new = (rows.column("record_id").to_pylist() for rows in lists)
    old_ranks, new_ranks = (
        {record: rank for rank, record in enumerate(records)} for records in (old, new)
    )
    first = {*old[:SHOWN], *new[:SHOWN]}
    ranked = {
        record: RankedImage(
            pictures.picture(record),
            label,
            old_ranks[record],
            new_ranks[record],
            None if math.isnan(logits[new_ranks[record]]) else logits[new_ranks[record]],
            scores[old_ranks[record]],
        )
        for record, label in label_of(truth, name, sorted(first)).items()
    }
    return QueryResult(
        pictures.picture(name),
        precisions.get(GLOBAL, {}),
        precisions.get(RERANKED, precisions.get(DEPLOY, {})),
        [ranked[record] for record in old[:SHOWN]],
        [ranked[record] for record in new[:SHOWN]],
    )


def _rows(rankings: dict[str, Any], ensemble: dict[str, Any] | None) -> list[MetricsRow]:
    """The lines of the table; those of the ensemble name its weights."""
    titles = {name: TITLES[name].capitalize() for name in rankings}
    for name in titles.keys() & {ENSEMBLE, ENSEMBLE_DEPLOY}:
        values = ensemble or {}
        titles[name] += (
            f" (λ\u00a0{values['lambda']:g}, γ\u00a0{values['gamma']:g}, k\u00a0{values['k']})"
        )
    return [
        MetricsRow(
            titles[name],
            {
                protocol: {
                    key: math.nan if measures[key] is None else measures[key] for key in MEASURES
                }
                for protocol, measures in by_protocol.items()
            },
        )
        for name, by_protocol in rankings.items()
    ]


def _summary(queries: int, facts: ShortlistFacts, shown: int, exact: bool) -> str:
    """In words, what the page shows; exact: whether positives beyond lists have exact places."""
    text = f"{queries:,} queries against {facts.gallery_rows:,} gallery images."
    if facts.cut:
        beyond = "count by their exact places in the whole gallery" if exact else "add nothing"
        text += f" Rankings end after {facts.k:,} images: positives beyond {beyond}."
        if facts.notes.short_lists:
            text += (
                f" {facts.notes.short_lists:,} of them end earlier, the shortest after "
                f"{facts.shortest:,}."
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

    rule, places = PROTOCOLS[LABELS_OF], truth.positions(names).tolist()
    labels: dict[int, Label] = dict.fromkeys(positions_of(known, rule.junk).tolist(), "junk")
    labels |= dict.fromkeys(positions_of(known, rule.positive).tolist(), "positive")
    return {name: labels.get(place, "negative") for name, place in zip(names, places, strict=True)}
