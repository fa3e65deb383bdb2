"""The YAML configuration of `run`, and the options of each stage made from it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.configurations import read_configuration
from pipelines.evaluate import options as evaluate
from pipelines.evaluate.ensembles import read_ensemble
from pipelines.extract import options as extract
from pipelines.index import options as index
from pipelines.options import Checked, build
from pipelines.report import options as report
from pipelines.rerank import options as rerank
from pipelines.search import options as search
from pipelines.stages import STAGES_OF_RUN
from schemas.errors import UserError

Kind = TypeVar("Kind", bound=Checked)
KNOWN = {"out", "images", "list", "sources", "ground_truth", "queries", "title", *STAGES_OF_RUN}


def read_config(path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with changes applied.

    Relative paths in it are relative to the working directory. Raises UserError.
    """
    config = read_configuration(path)
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
    """The options of each stage of a configuration. Raises UserError."""
    out, images, queries = config.get("out"), config.get("images"), config.get("queries")
    sources, truth = str(config.get("sources") or ""), str(config.get("ground_truth") or "")
    if not out or not (images or sources):
        raise UserError(f"{where}: 'out' and 'images' (or 'sources') must be given")
    if not truth and not queries:
        raise UserError(
            f"{where}: name the queries: 'ground_truth', or 'queries' (a folder of images)"
        )
    if truth and not images:
        raise UserError(
            f"{where}: 'images' must name the folder that holds the queries of the ground truth"
        )

    def stage(kind: type[Kind], fixed: dict[str, Any], **defaults: Any) -> Kind:
        given = config.get(kind.command) or {}
        if not isinstance(given, dict):
            raise UserError(f"{where}: {kind.command} must be a mapping of options")
        return build(kind, {**defaults, **given, **fixed}, f"{where}: {kind.command}")

    stores = {name: posixpath.join(str(out), name) for name in ("gallery", "queries")}
    place = posixpath.join(str(out), "index")
    run = {"out": posixpath.join(str(out), "run"), "ground_truth": truth}
    evaluated = stage(evaluate.Options, run) if truth else None
    if evaluated and evaluated.ensemble:
        read_ensemble(evaluated.ensemble)  # a mistake in it is reported before hours of work

    listed = {"images": images or "", "list": config.get("list") or ""}
    if sources:
        listed = {"images": "", "list": "", "sources": sources}
    elif truth and not listed["list"]:
        listed.update(ground_truth=truth, take="gallery")
    gallery = stage(extract.Options, {**listed, "out": stores["gallery"]})
    wanted = {"images": queries or images}
    if truth:
        wanted = {"images": images, "ground_truth": truth, "take": "queries"}

    reranked = stage(rerank.Options, {**run, "queries": stores["queries"]})
    depth = reranked.shortlist
    searched = {**run, "queries": stores["queries"], "index": place}
    lazy = {**run, "out": stores["gallery"], "locals_for": run["out"], "shortlist": depth}
    shown = {"ensemble": evaluated.ensemble} if evaluated else {}
    title = config.get("title") or Path(str(out)).name
    return Stages(
        gallery=gallery,
        queries=stage(extract.Options, {**wanted, "out": stores["queries"], "locals": "all"}),
        index=stage(index.Options, {"stores": (stores["gallery"],), "out": place}),
        search=stage(search.Options, searched, shortlist=depth),
        lazy=stage(extract.Options, lazy) if gallery.locals == "none" else None,
        rerank=reranked,
        evaluate=evaluated,
        report=stage(report.Options, {**run, **shown}, title=title),
    )
