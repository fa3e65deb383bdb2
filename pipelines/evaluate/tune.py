"""tune: scores of a validation set + its ground truth -> the (lambda, gamma, k) of the best
ensemble, as a JSON file.

All is replayed from the stored scores, without a model and without Beam: it takes seconds. The file
    is written at once,
last; `evaluate --ensemble` reads it, and refuses it on the set that it was tuned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.evaluate.ensembles import (
    extractor_of,
    read_scored,
    refuse_other_truth,
    require_scores,
)
from pipelines.evaluate.table import map_table, weights
from pipelines.evaluate.tune_options import Options as Options
from pipelines.jobs.existing_output import say_made
from pipelines.jobs.manifests import input_content
from pipelines.jobs.plan import refuse_other_recipe
from pipelines.results.outputs import as_inputs, output_of, scores_recipe
from pipelines.results.scores import ScoredList
from pipelines.results.truth import Truth, truth_input
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from rrt_core.ensemble import Grid, Judged, best, default_grid, judge, search
from rrt_core.metrics.revisited import PROTOCOLS, positions_of, protocols_of
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.plan import Job
from schemas.tuned import Tuned

STAGE = "tune"
AXES = ("lambda", "gamma", "k")


def run(options: Options, settings: RunSettings = RunSettings()) -> Tuned:
    """Write (or skip) the result. Raises UserError."""
    shortlist = output_of(options.out, "shortlist")
    scores = require_scores(options.out, shortlist)
    truth = truth_input(options.ground_truth)
    protocols = read_metric(options.metric, protocols_of(load_ground_truth(options.ground_truth)))
    refuse_other_truth(options.out, scores, truth)
    depth = scores_recipe(options.out, scores).shortlist
    input_content(f"{options.out}/shortlist", shortlist, "queries")
    grid = read_grid(options.grid, depth)
    job = Job(  # for its identity alone
        stage=STAGE,
        output=options.result,
        worker="",
        recipe={"metric": "+".join(protocols), "grid": dict(zip(AXES, _axes(grid), strict=True))},
        inputs={
            **as_inputs(options.out, scores=scores),
            "queries": shortlist.inputs["queries"],
            "ground_truth": truth,
        },
        units=(),
    )
    place = open_place(options.result)
    made = _made(place, job, settings)
    if made is not None:
        return made
    lists = read_scored(options.out)
    records = sorted({record for item in lists for record in item.record_ids})
    seen = Truth(options.ground_truth, [item.query_id for item in lists], records)
    values, ends = _searched(lists, seen, protocols, depth, grid)
    mean = np.mean(list(values.values()), axis=0)
    try:
        chosen = best(mean, grid)
    except ValueError:
        raise UserError(
            f"{options.ground_truth}: no query has a positive under {'+'.join(protocols)}"
        ) from None
    figures = {"best": {name: float(found[grid.index(chosen)]) for name, found in values.items()}}
    figures["reranked"] = {name: float(found[0, 0, 0]) for name, found in ends.items()}
    figures["global"] = {name: float(found[0, 1, 0]) for name, found in ends.items()}
    tuned = Tuned(
        best={"lambda": chosen.lambda_, "gamma": chosen.gamma, "k": chosen.k},
        metric=f"mAP {'+'.join(protocols)}",
        queries=len(seen.truth.queries),
        values={
            name: {**each, "mean": float(np.mean(list(each.values())))}
            for name, each in figures.items()
        },
        grid={**job.recipe["grid"], "values": np.round(mean, 6).tolist()},
        recipe=job.identity,
        inputs=job.inputs,
        reranker=scores.recipe["reranker"],
        extractor=extractor_of(options.out, shortlist),
    )
    place.write("", tuned.to_bytes())
    return tuned


def _made(place: Place, job: Job, settings: RunSettings) -> Tuned | None:
    """What the file already holds by the same recipe.

    Raises UserError where it holds anything else.
    """
    try:
        data = place.read("")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise UserError(
            f"{place.url} is a folder; --result names a file, such as {place.url}/tuned.json"
        ) from None
    tuned = Tuned.from_bytes(data, place.url)  # what is no result of ours is not overwritten
    if settings.overwrite:
        return None
    refuse_other_recipe(place, job, tuned.recipe)
    say_made(f"{STAGE:<9}", place)
    return tuned


def read_metric(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The protocols whose mAP is averaged.

    Raises UserError for one that the ground truth does not have.
    """
    if not text:
        return tuple(protocol for protocol in ("medium", "hard") if protocol in known)
    names = tuple(text.split("+"))
    for name in names:
        if name not in known or names.count(name) > 1:
            raise UserError(
                f"--metric is {text!r}; it must be one of {', '.join(known)}, or different ones "
                f"joined by '+'"
            )
    return names


def read_grid(given: dict[str, Any], shortlist: int) -> Grid:
    """The default grid with the given axes in place of its own.

    Raises UserError for what is no grid.
    """
    unknown = sorted(set(given) - set(AXES))
    if unknown:
        raise UserError(f"--grid: there is no {unknown[0]!r}; known are {', '.join(AXES)}")
    axes = dict(zip(AXES, _axes(default_grid(shortlist)), strict=True))
    for name, value in given.items():
        kind = int if name == "k" else float
        try:
            numbers = [
                float(number) for number in (value if isinstance(value, list | tuple) else [value])
            ]
            if kind is int and not all(number.is_integer() for number in numbers):
                raise ValueError
            axes[name] = [kind(number) for number in sorted(set(numbers))]
        except (TypeError, ValueError):
            raise UserError(
                f"--grid {name} is {value!r}; it must be numbers, such as {name}=10,20"
            ) from None
    try:
        grid = Grid(*(tuple(axes[name]) for name in AXES))
    except ValueError as error:
        raise UserError(f"--grid: {error}") from None
    if grid.ks[-1] > shortlist:
        raise UserError(
            f"--grid: k is {grid.ks[-1]}, but only {shortlist} were reranked; give none above that"
        )
    return grid


def _axes(grid: Grid) -> tuple[list[Any], ...]:
    return list(grid.lambdas), list(grid.gammas), list(grid.ks)


def _searched(
    lists: Sequence[ScoredList], truth: Truth, protocols: Sequence[str], shortlist: int, grid: Grid
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """mAP by protocol, float64 [ks, lambdas, gammas]: over the grid; and at lambda 0 and 1 over the
    whole shortlist.
    """
    values, ends = {}, {}
    for protocol in protocols:
        pairs, judged = _candidates(lists, truth, protocol, shortlist)

        def metric(number: int, found: np.ndarray, judged: Sequence[Judged] = judged) -> np.ndarray:
            return judged[number].average_precisions(found)

        values[protocol] = search(pairs, metric, grid)
        ends[protocol] = search(pairs, metric, Grid((0.0, 1.0), (1.0,), (shortlist,)))
    return values, ends


def _candidates(
    lists: Sequence[ScoredList], truth: Truth, protocol: str, shortlist: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Judged]]:
    """A query's global scores and logits, and how it is judged; a query that was not described has
    no candidates.
    """
    rule = PROTOCOLS[protocol]
    by_name = {item.query_id: item for item in lists}
    names = truth.by_query()
    pairs, judged = [], []
    for number, query in enumerate(truth.truth.queries):
        positive, junk = positions_of(query, rule.positive), positions_of(query, rule.junk)
        item = by_name.get(names.get(number, ""))
        if item is None:
            pairs.append((np.zeros(0), np.zeros(0)))
            judged.append(judge(np.zeros(0, np.int64), 0, positive, junk))
            continue
        seen = item.under(
            "medium" if protocol == "easy" else protocol, truth, shortlist
        )  # as `evaluate` does
        moved = np.isin(seen.ranking, seen.junk)
        moved_last = np.concatenate([np.flatnonzero(~moved), np.flatnonzero(moved)])
        pairs.append((item.global_scores[seen.places], seen.logits[seen.places]))
        judged.append(judge(seen.ranking[moved_last], len(seen.places), positive, junk))
    return pairs, judged


def summarise(options: Options, tuned: Tuned) -> None:
    """Print what was found, how it compares, and how to use it."""
    chosen = tuned.best
    protocols = [name for name in tuned.values["best"] if name != "mean"]
    columns = [*protocols, "mean"] if len(protocols) > 1 else protocols
    setting = weights(chosen)
    titles = {"global": "global (lambda 1)", "reranked": "reranked (lambda 0)", "best": setting}
    rows = {
        title: {name: tuned.values[row][name] for name in columns} for row, title in titles.items()
    }
    print(f"\n{map_table(rows, width=40)}")

    tried = int(np.prod([len(tuned.grid[axis]) for axis in AXES]))
    mean = {row: 100 * values["mean"] for row, values in tuned.values.items()}
    print(
        f"\nOf {tried:,} tried on {tuned.queries:,} queries, {setting} is best: "
        f"{mean['best'] - mean['reranked']:+.2f} "
        f"points of mAP against reranked, {mean['best'] - mean['global']:+.2f} against global."
    )
    gammas = tuned.grid["gamma"]
    if chosen["lambda"] in (0, 1):
        print(
            f"No ensemble is better here than the "
            f"{'reranker' if chosen['lambda'] == 0 else 'global score'} alone."
        )
    elif chosen["gamma"] in (gammas[0], gammas[-1]):
        print(
            "It lies at the edge of the grid in gamma: widen it, such as --grid "
            "gamma=0.01,0.02,0.05."
        )
    print(f"For other queries: evaluate --out RUN --ground-truth FILE --ensemble {options.result}")
