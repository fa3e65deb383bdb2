"""run: all stages from one YAML configuration; one that is made by the same recipe is skipped."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pipelines.engines.settings import RunSettings
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate import table as evaluate_table
from pipelines.exchange import import_options, import_store
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.report import stage as report
from pipelines.rerank import stage as rerank
from pipelines.run.config import read_config, stages_of
from pipelines.run.options import Options as Options
from pipelines.search import stage as search
from pipelines.storage.place import open_place


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Run all stages; gives the places of the results. Raises UserError and JobFailed."""
    return run_config(read_config(options.config, options.set), options.config, settings)


def run_config(config: dict[str, Any], where: str, settings: RunSettings) -> dict[str, Any]:
    """Run all stages of a configuration."""
    stages = stages_of(config, where)

    for store in (stages.gallery, stages.queries):
        if isinstance(store, import_options.Options):
            import_store.run(store, settings)
        else:
            extract.run(store, settings)
    index.run(stages.index, settings)
    search.run(stages.search, settings)
    if stages.lazy:
        extract.run(stages.lazy, settings)
    rerank.run(stages.rerank, settings)

    results: dict[str, Any] = {"run": stages.report.out}
    if stages.evaluate:
        evaluate.run(stages.evaluate, settings)
        results["metrics"] = evaluate.read_metrics(stages.evaluate.out, stages.evaluate.ensemble)

    if not (config.get("title") or (config.get("report") or {}).get("title")):
        # the page was called after a folder that may have another name by now
        title = report.title_before(stages.report) or stages.report.title
        stages = replace(stages, report=replace(stages.report, title=title))
    report.run(stages.report, settings)
    place = report.report_place(stages.report.out, stages.report.ensemble)
    results["report"] = os.path.join(open_place(place).url, "report.html")
    return results


def summarise(options: Options, results: dict[str, Any]) -> None:
    """Print the mAP table, where there is a ground truth, and where the report lies."""
    if "metrics" in results:
        print(f"\n{evaluate_table.metrics_table(results['metrics'])}\n")
    print(f"Report: {results['report']}")
