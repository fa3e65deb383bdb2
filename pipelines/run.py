"""run: all stages from one YAML configuration; a stage whose output is there by the same recipe is skipped."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines import evaluate, extract, index, report, rerank, search
from pipelines.driver import RunSettings
from pipelines.ensemble import read_asked
from pipelines.options import build, option
from pipelines.storage import Place
from schemas.errors import UserError

STAGES = ("extract", "index", "search", "rerank", "evaluate", "report")
KNOWN = {"out", "images", "list", "sources", "ground_truth", "queries", "title", *STAGES}


@dataclass(frozen=True)
class Options:
    """Options of `run`."""

    config: str = option("YAML configuration of all stages (see configs/)")
    set: dict[str, Any] = option("a value in place of the configuration's, such as out=RUN or rerank.shortlist=200", {})


def run(options: Options, settings: RunSettings) -> dict[str, Any]:
    """Run all stages; gives the places of the results. Raises UserError and driver.JobFailed."""
    return run_config(read_config(options.config, options.set), options.config, settings)


def read_config(path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with changes applied; relative paths in it are relative to the working directory."""
    try:
        text = Place(path).read("").decode()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration") from None
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: it is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: it must be a mapping of stages to their options")
    for key, value in changes.items():
        target = config
        *folders, last = key.split(".")
        for folder in folders:
            target = target.setdefault(folder, {})
        target[last] = value
    unknown = sorted(set(config) - KNOWN)
    if unknown:
        raise UserError(f"{path}: there is no entry {unknown[0]!r}; known are {', '.join(sorted(KNOWN))}")
    return config


@dataclass(frozen=True)
class Stages:
    """The options of all stages of a configuration, in their order.

    `lazy` adds local descriptors of what is reranked, where the gallery has none; `evaluate` needs a ground truth.
    """

    gallery: extract.Options
    queries: extract.Options
    index: index.Options
    search: search.Options
    lazy: extract.Options | None
    rerank: rerank.Options
    evaluate: evaluate.Options | None
    report: report.Options


def stages_of(config: dict[str, Any], where: str) -> Stages:
    """What a configuration asks of each stage. Raises UserError."""
    out = str(config.get("out") or "")
    images = config.get("images")
    sources = str(config.get("sources") or "")
    if not out or not (images or sources):
        raise UserError(f"{where}: 'out' and 'images' (or 'sources') must be given")
    truth = str(config.get("ground_truth") or "")
    queries = config.get("queries")
    if not truth and not queries:
        raise UserError(f"{where}: name the queries: 'ground_truth', or 'queries' (a folder of images)")
    if truth and not images:
        raise UserError(f"{where}: 'images' must name the folder that holds the queries of the ground truth")

    def stage(name: str) -> dict[str, Any]:
        value = config.get(name) or {}
        if not isinstance(value, dict):
            raise UserError(f"{where}: {name} must be a mapping of options")
        return dict(value)

    gallery_store, query_store = posixpath.join(out, "gallery"), posixpath.join(out, "queries")
    index_place, run_place = posixpath.join(out, "index"), posixpath.join(out, "run")
    judged = {**stage("evaluate"), "out": run_place, "ground_truth": truth}
    judging = build(evaluate.Options, judged, f"{where}: evaluate") if truth else None
    if judging and judging.ensemble:
        read_asked(judging.ensemble)  # a mistake in it is told before hours of work
    gallery = {**stage("extract"), "images": images or "", "out": gallery_store, "list": config.get("list") or ""}
    if sources:
        gallery.update(images="", list="", sources=sources)
    asked = {**stage("extract"), "images": queries or images, "out": query_store, "locals": "all"}
    if truth and not gallery["list"] and not sources:
        gallery.update(ground_truth=truth, take="gallery")
    if truth:
        asked.update(ground_truth=truth, take="queries", images=images)
    indexed = {**stage("index"), "stores": (gallery_store,), "out": index_place}
    shortlist = int(stage("rerank").get("shortlist", 100))
    searched = {"shortlist": shortlist, **stage("search"), "queries": query_store, "index": index_place}
    searched.update(out=run_place, ground_truth=truth)
    lazy = None
    if gallery.get("locals") == "none":
        lazy = {**stage("extract"), "out": gallery_store, "locals_for": run_place, "ground_truth": truth}
        lazy["shortlist"] = shortlist
    reranked = {**stage("rerank"), "queries": query_store, "out": run_place, "ground_truth": truth}
    shown = {"title": config.get("title") or Path(out).name, **stage("report"), "out": run_place}
    if judging:
        shown["ensemble"] = judging.ensemble
    return Stages(
        build(extract.Options, gallery, f"{where}: extract"),
        build(extract.Options, asked, f"{where}: extract"),
        build(index.Options, indexed, f"{where}: index"),
        build(search.Options, searched, f"{where}: search"),
        build(extract.Options, lazy, f"{where}: extract") if lazy else None,
        build(rerank.Options, reranked, f"{where}: rerank"),
        judging,
        build(report.Options, {**shown, "ground_truth": truth}, f"{where}: report"),
    )


def run_config(config: dict[str, Any], where: str, settings: RunSettings) -> dict[str, Any]:
    """Run all stages of a configuration."""
    stages = stages_of(config, where)
    extract.run(stages.gallery, settings)
    extract.run(stages.queries, settings)
    index.run(stages.index, settings)
    search.run(stages.search, settings)
    if stages.lazy:
        extract.run(stages.lazy, settings)
    rerank.run(stages.rerank, settings)
    results: dict[str, Any] = {"run": stages.report.out}
    if stages.evaluate:
        evaluate.run(stages.evaluate, settings)
        results["metrics"] = evaluate.read_metrics(stages.evaluate.out, stages.evaluate.ensemble)
    report.run(stages.report, settings)
    place = report.report_place(stages.report.out, stages.report.ensemble)
    results["report"] = os.path.join(Place(place).url, "report.html")
    return results


def summarise(options: Options, results: dict[str, Any]) -> None:
    """Print the mAP table, where there is a ground truth, and where the report lies."""
    if "metrics" in results:
        print(f"\n{evaluate.metrics_table(results['metrics'])}\n")
    print(f"Report: {results['report']}")
