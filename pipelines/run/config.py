"""The YAML configuration of `run`, and the options of each stage made from it.

Nothing in it is ignored: what another entry decides, or what has no effect beside it, is refused.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.configurations import read_configuration
from pipelines.evaluate import options as evaluate
from pipelines.evaluate.ensembles import read_ensemble
from pipelines.exchange import import_options
from pipelines.extract import options as extract
from pipelines.index import options as index
from pipelines.options import Checked, build, check_value, shown
from pipelines.report import options as report
from pipelines.rerank import options as rerank
from pipelines.search import options as search
from pipelines.stages import STAGES_OF_RUN
from schemas.errors import UserError

Kind = TypeVar("Kind", bound=Checked)
Store = extract.Options | import_options.Options
IMPORT, SIDES = "import", ("gallery", "queries")
TEXTS = ("out", "images", "list", "sources", "ground_truth", "queries", "title")
KNOWN = {*TEXTS, *STAGES_OF_RUN, IMPORT}

# Options of the stages that follow from other entries: what decides them.
DECIDED = {
    "extract": {
        **{name: name for name in ("out", "images", "list", "sources", "ground_truth")},
        "take": "ground_truth",
        "locals_for": "extract.locals",
    },
    IMPORT: {name: name for name in ("out", "images", "list", "ground_truth")}
    | {"take": "ground_truth", "input": "import.gallery and import.queries"},
    "index": {"stores": "out", "out": "out"},
    "search": {
        **dict.fromkeys(("queries", "index", "out", "stores"), "out"),
        "ground_truth": "ground_truth",
    },
    "rerank": {"queries": "out", "out": "out", "stores": "out", "ground_truth": "ground_truth"},
    "evaluate": {"out": "out", "ground_truth": "ground_truth"},
    "report": {
        "out": "out",
        "stores": "out",
        "ground_truth": "ground_truth",
    },
}


def read_config(path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with changes applied.

    Relative paths in it are relative to the working directory. Raises UserError.
    """
    config = read_configuration(path)
    for key, value in changes.items():
        target = config
        *folders, last = key.split(".")
        for folder in folders:
            below = target.setdefault(folder, {})
            target[folder] = below = {} if below is None else below
            if not isinstance(below, dict):
                raise UserError(f"--set {key}: {folder} is {shown(below)}, and has no {last!r}")
            target = below
        target[last] = value

    unknown = sorted(set(config) - KNOWN)
    if unknown:
        raise UserError(
            f"{path}: there is no entry {shown(unknown[0])}; known are {', '.join(sorted(KNOWN))}"
        )
    return config


@dataclass(frozen=True)
class Stages:
    """The options of all stages of a configuration, in their order.

    `lazy` adds local descriptors of what is reranked, where the gallery has none; `evaluate` needs
    a ground truth.
    """

    gallery: Store
    queries: Store
    index: index.Options
    search: search.Options
    lazy: extract.Options | None
    rerank: rerank.Options
    evaluate: evaluate.Options | None
    report: report.Options


def stages_of(config: dict[str, Any], where: str) -> Stages:
    """The options of each stage of a configuration. Raises UserError."""
    texts = _texts(config, where)
    given = {name: _options(config, name, where) for name in (*STAGES_OF_RUN, IMPORT)}
    _refuse_contradictions(texts, given, where)

    def stage(kind: type[Kind], fixed: dict[str, Any], **defaults: Any) -> Kind:
        values = {**defaults, **given[kind.command], **fixed}
        return build(kind, values, f"{where}: {kind.command}")

    out, truth = texts["out"], texts["ground_truth"]
    stores = {name: posixpath.join(out, name) for name in SIDES}
    place = posixpath.join(out, "index")
    run = {"out": posixpath.join(out, "run"), "ground_truth": truth}
    evaluated = stage(evaluate.Options, run) if truth else None
    if evaluated and evaluated.ensemble:
        read_ensemble(evaluated.ensemble)  # a mistake in it is reported before hours of work

    sides, made_by = (_imported, IMPORT) if given[IMPORT] else (_extracted, "extract")
    gallery, queries = sides(texts, given[made_by], stores, where)

    reranked = stage(rerank.Options, {**run, "queries": stores["queries"]})
    searched = {**run, "queries": stores["queries"], "index": place}
    lazy = None
    if isinstance(gallery, extract.Options) and gallery.locals == "none":
        given["extract"].pop("source", "")  # the store has it
        added = {"locals_for": run["out"], "shortlist": reranked.shortlist, "locals": "all"}
        lazy = stage(extract.Options, {**run, "out": stores["gallery"], **added})

    shown_too = {"ensemble": evaluated.ensemble} if evaluated else {}
    return Stages(
        gallery=gallery,
        queries=queries,
        index=stage(index.Options, {"stores": (stores["gallery"],), "out": place}),
        search=stage(search.Options, searched, shortlist=reranked.shortlist),
        lazy=lazy,
        rerank=reranked,
        evaluate=evaluated,
        report=stage(report.Options, {**run, **shown_too}, title=texts["title"] or Path(out).name),
    )


def _texts(config: dict[str, Any], where: str) -> dict[str, str]:
    """The entries that are no stages; "" where one is absent or empty."""
    texts = {}
    for name in TEXTS:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise UserError(f"{where}: {name} is {shown(value)}; it must be one text: quote it")
        texts[name] = "" if value is None else str(value)
        check_value(texts[name], f"{where}: {name}")
    return texts


def _options(config: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """What is given of a stage's options, those aside that other entries decide."""
    given = config.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {name} must be a mapping of options")
    for option in given:
        decided = DECIDED[name].get(str(option))
        if decided:
            raise UserError(
                f"{where}: {name}.{option} has no effect beside '{decided}', which decides it; "
                "leave it out"
            )
    return dict(given)


def _refuse_contradictions(
    texts: dict[str, str], given: dict[str, dict[str, Any]], where: str
) -> None:
    """Raise UserError for entries that are missing, exclude each other or have no effect."""
    imported = bool(given[IMPORT])
    if not texts["out"] or not (texts["images"] or texts["sources"] or imported):
        raise UserError(f"{where}: 'out' and 'images' (or 'sources', or 'import') must be given")
    if not texts["ground_truth"] and not texts["queries"] and not imported:
        raise UserError(
            f"{where}: name the queries: 'ground_truth', or 'queries' (a folder of images)"
        )
    if texts["ground_truth"] and not texts["images"] and not imported:
        raise UserError(
            f"{where}: 'images' must name the folder that holds the queries of the ground truth"
        )

    filled = {name for name, values in (*texts.items(), *given.items()) if values}
    exclusive = [
        ("queries", "ground_truth", "the ground truth names the queries"),
        ("list", "sources", "each source has a list of its own"),
        (IMPORT, "extract", "the stores are made by one of them"),
        (IMPORT, "sources", "import.gallery names the descriptors"),
        (IMPORT, "queries", "import.queries names the descriptors"),
        (IMPORT, "list", "give import.gallery and import.queries a list each"),
    ]
    for first, second, why in exclusive:
        if {first, second} <= filled:
            raise UserError(
                f"{where}: '{first}' and '{second}' exclude each other: {why}; leave one out"
            )
    if {"images", "sources", "queries"} <= filled:
        raise UserError(
            f"{where}: 'images' has no effect beside 'sources' and 'queries'; leave it out"
        )
    if given["evaluate"] and not texts["ground_truth"]:
        raise UserError(f"{where}: 'evaluate' has no effect without 'ground_truth'")
    if given["report"].get("title") and texts["title"]:
        raise UserError(f"{where}: 'title' and 'report.title' exclude each other; leave one out")
    if given["report"].get("ensemble") and texts["ground_truth"]:
        raise UserError(
            f"{where}: 'report.ensemble' has no effect beside 'ground_truth', with which the "
            "report shows that of 'evaluate.ensemble'; leave it out"
        )
    kept, reranked = given["search"].get("shortlist"), given["rerank"].get("shortlist", 100)
    if kept is not None and kept != reranked:
        raise UserError(
            f"{where}: 'search.shortlist' is {shown(kept)} and 'rerank.shortlist' is "
            f"{shown(reranked)}; leave the first out"
        )


def _extracted(
    texts: dict[str, str], given: dict[str, Any], stores: dict[str, str], where: str
) -> tuple[extract.Options, extract.Options]:
    """Gallery and queries described from their images."""
    truth, images, where = texts["ground_truth"], texts["images"], f"{where}: extract"
    listed = {"images": images, "list": texts["list"]}
    if texts["sources"]:
        listed = {"sources": texts["sources"]}
        if "source" in given:
            raise UserError(
                f"{where}.source has no effect beside 'sources', where each has its name; leave "
                "it out"
            )
    elif truth and not texts["list"]:
        listed = {"images": images, "ground_truth": truth, "take": "gallery"}

    wanted = {"images": texts["queries"]}
    if truth:
        wanted = {"images": images, "ground_truth": truth, "take": "queries"}

    fixed = {"out": stores["queries"], "locals": "all"}
    return (
        build(extract.Options, {**given, **listed, "out": stores["gallery"]}, where),
        build(extract.Options, {**given, **wanted, **fixed}, where),
    )


def _imported(
    texts: dict[str, str], given: dict[str, Any], stores: dict[str, str], where: str
) -> tuple[import_options.Options, import_options.Options]:
    """Gallery and queries from descriptors that others made.

    Below `gallery` and `queries` stand the options in which the two differ, or the input alone.
    """
    shared = {name: value for name, value in given.items() if name not in SIDES}
    made = []
    for side in SIDES:
        own = given.get(side)
        own = {"input": own} if isinstance(own, str) else own
        if not isinstance(own, dict):
            raise UserError(
                f"{where}: import.{side} must be the descriptors of the {side}, or a mapping with "
                "'input' and other options of import"
            )
        for name in own:
            if name in shared:
                raise UserError(
                    f"{where}: import.{name} and import.{side}.{name} exclude each other; leave "
                    "one out"
                )
            if name in DECIDED[IMPORT] and name not in ("input", "list"):
                raise UserError(f"{where}: import.{side}.{name} has no effect; leave it out")

        values = {"images": texts["images"], **shared, **own, "out": stores[side]}
        if texts["ground_truth"] and not {"list", "record_ids"} & set(own):
            values |= {"ground_truth": texts["ground_truth"], "take": side}
        made.append(build(import_options.Options, values, f"{where}: import.{side}"))
    return made[0], made[1]
