"""The YAML configuration of `run`, and the options of each stage made from it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.evaluate import options as evaluate
from pipelines.evaluate.ensembles import read_asked
from pipelines.extract import options as extract
from pipelines.index import options as index
from pipelines.options import build
from pipelines.report import options as report
from pipelines.rerank import options as rerank
from pipelines.search import options as search
from pipelines.stages import STAGES_OF_RUN
from pipelines.storage.place import open_place
from schemas.errors import UserError

KNOWN = {"out", "images", "list", "sources", "ground_truth", "queries", "title", *STAGES_OF_RUN}


def read_config(path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with changes applied; relative paths in it are relative to the working
    directory.
    """
    try:
        text = open_place(path).read("").decode()
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
        raise UserError(
            f"{path}: there is no entry {unknown[0]!r}; known are {', '.join(sorted(KNOWN))}"
        )
    return config


@dataclass(frozen=True)
class Stages:
    """The options of all stages of a configuration, in their order.

    `lazy` adds local descriptors of what is reranked, where the gallery has none; `evaluate` needs
    a ground truth.
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
        raise UserError(
            f"{where}: name the queries: 'ground_truth', or 'queries' (a folder of images)"
        )
    if truth and not images:
        raise UserError(
            f"{where}: 'images' must name the folder that holds the queries of the ground truth"
        )

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
    gallery = {
        **stage("extract"),
        "images": images or "",
        "out": gallery_store,
        "list": config.get("list") or "",
    }
    if sources:
        gallery.update(images="", list="", sources=sources)
    asked = {**stage("extract"), "images": queries or images, "out": query_store, "locals": "all"}
    if truth and not gallery["list"] and not sources:
        gallery.update(ground_truth=truth, take="gallery")
    if truth:
        asked.update(ground_truth=truth, take="queries", images=images)
    indexed = {**stage("index"), "stores": (gallery_store,), "out": index_place}
    shortlist = int(stage("rerank").get("shortlist", 100))
    searched = {
        "shortlist": shortlist,
        **stage("search"),
        "queries": query_store,
        "index": index_place,
    }
    searched.update(out=run_place, ground_truth=truth)
    lazy = None
    if gallery.get("locals") == "none":
        lazy = {
            **stage("extract"),
            "out": gallery_store,
            "locals_for": run_place,
            "ground_truth": truth,
        }
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
