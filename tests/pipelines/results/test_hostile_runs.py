"""Whatever the manifests and tables of another's run say: a later stage takes it, or ends with one
sentence; it looks for inputs beside the run alone, and reads nothing of another content.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engines.settings import Planned, RunSettings
from pipelines.evaluate import stage as evaluate
from pipelines.jobs.do_unit import do_unit
from pipelines.jobs.errors import read_error
from pipelines.jobs.inputs import MOST_STEPS, find_input, places_near
from pipelines.jobs.unit_worker import make_worker
from pipelines.report import stage as report
from pipelines.rerank import stage as rerank
from pipelines.search import stage as search
from pipelines.storage.place import open_place
from schemas.errors import JobFailed
from tests.support.command_line import command, end_workers
from tests.support.comparing import state
from tests.support.hostile import accepted, inputs
from tests.support.watching import EXTRACTOR

SETTINGS = RunSettings(workers=1, plan_only=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Iterator[Path]:
    """The folder `run` of a finished configuration, beside its stores and its index."""
    folder = tmp_path_factory.mktemp("hostile")
    text = {
        "images": str(photographs),
        "ground_truth": str(photographs.parent / "ground_truth.json"),
        "out": str(folder),
        "extract": {"extractor": EXTRACTOR, "rows_per_part": 30},
        "rerank": {"reranker": "mutual_nn", "shortlist": 3},
    }
    (folder / "all.yaml").write_text(json.dumps(text))  # JSON is YAML
    ended = command("run", "--config", folder / "all.yaml", "--workers", "1")
    assert ended.code == 0, ended.said
    end_workers()
    yield folder / "run"


# ------------------------------------------------------------------------------------------- hints

STEPS = st.one_of(st.sampled_from(["a", "b", "..", ".", "", "~", "\x00", "é", "s3:"]), st.text())
PLACES = st.one_of(
    st.lists(STEPS, max_size=40).map("/".join),
    st.builds(str.__add__, st.sampled_from(["/", "s3://", "file://", "memory://"]), st.text()),
)


@inputs(80)
@given(PLACES, PLACES)
def test_only_what_lies_beside_is_looked_at(recorded: str, home: str) -> None:
    found = list(places_near(recorded, home))
    assert len(found) <= MOST_STEPS**2
    above = {home.rsplit("/", steps)[0] for steps in range(1, home.count("/") + 1)}
    for place in found:
        assert any(place.startswith(f"{folder}/") for folder in above)
        if ".." not in home.split("/"):
            assert ".." not in place.split("/")


@inputs(40)
@given(recorded=PLACES.filter(lambda place: "://" not in f"{place}/"))
def test_an_input_is_known_by_its_content_alone(recorded: str, run: Path) -> None:
    home = str(run / "shortlist")
    if not accepted(lambda: find_input(f"{recorded}/gallery", "no such content", home)):
        return  # a remote place that does not answer

    assert find_input(recorded, "no such content", home) is None
    content = json.loads((run.parent / "gallery/manifest.json").read_text())["content"]
    found = find_input(f"{recorded}/gallery", content, home)
    assert found in (str(run.parent / "gallery"), None)


# --------------------------------------------------------------------------------------- manifests

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=6),
        st.sampled_from(["/etc", "../../x", "memory://x", "/proc/self/mem", "a" * 5_000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
PATHS: dict[str, list[tuple[str | int, ...]]] = {
    "run/shortlist": [
        ("facts",),
        ("facts", "stores"),
        ("facts", "stores", 0),
        *(("facts", "stores", 0, key) for key in ("url", "content", "base")),
        *(("facts", key) for key in ("k", "gallery_rows", "truncated", "nprobe", "notes")),
        *(("inputs", *keys) for keys in ((), ("queries",), ("queries", "url"))),
        ("inputs", "queries", "content"),
        ("counts",),
        ("counts", "succeeded"),
    ],
    "run/ranking": [("facts",), ("facts", "protocols"), ("facts", "protocols", 0), ("inputs",)],
    "run/scores": [("recipe",), ("recipe", "shortlist"), ("recipe", "reranker"), ("facts",)],
    "index/search": [
        ("facts",),
        ("facts", "stores"),
        *(("facts", "stores", 0, key) for key in ("url", "content", "base")),
        *(("facts", key) for key in ("key", "rows")),
    ],
}
CHANGES = st.sampled_from([(folder, path) for folder, paths in PATHS.items() for path in paths])


def changed(record: Any, path: tuple[str | int, ...], value: Any, drop: bool) -> Any:
    """A copy of JSON with the value at a path replaced, or left out."""
    result = copy.deepcopy(record)
    inner = result
    for step in path[:-1]:
        inner = inner[step]
    if drop:
        inner.pop(path[-1]) if isinstance(inner, list) else inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return result


def planned(stage: Callable[[Any, RunSettings], Any], options: Any) -> Callable[[], None]:
    """Plan a stage's first job that is not finished."""

    def plan() -> None:
        with contextlib.suppress(Planned):
            stage(options, SETTINGS)

    return plan


@inputs(120)
@given(change=CHANGES, value=VALUES, drop=st.booleans())
def test_a_manifest_of_anybody(
    change: tuple[str, tuple[str | int, ...]], value: Any, drop: bool, run: Path
) -> None:
    folder, path = change
    results, out = run.parent, run.parent / "other"
    manifest = results / folder / "manifest.json"
    before = manifest.read_text()
    stores = [results / name for name in ("gallery", "queries")]
    unread = state(*stores)
    manifest.write_text(json.dumps(changed(json.loads(before), path, value, drop)))
    truth = json.loads((results / "all.yaml").read_text())["ground_truth"]
    try:
        queries, url = str(results / "queries"), str(run)
        searching = search.Options(queries=queries, index=str(results / "index"), out=str(out))
        reranking = rerank.Options(queries=queries, out=url, reranker="mutual_nn", shortlist=3)
        evaluating = evaluate.Options(out=url, ground_truth=truth, ensemble=("0.5", "0.3"))
        for plan in (
            planned(search.run, searching),
            lambda: rerank.plan_scores(reranking, SETTINGS),
            planned(evaluate.run, evaluating),
            planned(report.run, report.Options(out=url, title="another")),
        ):
            accepted(plan, JobFailed)
    finally:
        manifest.write_text(before)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(run / "ensemble", ignore_errors=True)
    assert state(*stores) == unread


# ------------------------------------------------------------------------------------------ tables

NUMBERS = st.sampled_from([0, -1, 2**31 - 1, -(2**31), 2**62, float("nan"), float("inf"), 3])
TEXTS = st.sampled_from(["", "queries/00_0.png", "photographs/00_1.png", "x" * 999, "\x00", "é"])


@inputs(60)
@given(
    column=st.sampled_from(["query_id", "rank", "record_id", "row_id", "score"]),
    row=st.integers(0, 119),
    number=NUMBERS,
    text=TEXTS,
    every=st.booleans(),
)
def test_a_shortlist_of_anybody(
    column: str, row: int, number: float, text: str, every: bool, run: Path
) -> None:
    """The pairs of a changed table are scored, or the unit ends with one sentence."""
    out = run.parent / "changed"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run / "shortlist", out / "shortlist")
    (path,) = (out / "shortlist").glob("part-*.parquet")
    table = pq.read_table(path)
    field = table.schema.field(column)
    values = table.column(column).to_pylist()
    new: Any = text if pa.types.is_string(field.type) else number
    if pa.types.is_integer(field.type):
        new = int(number) % 2**31 if np.isfinite(number) and column == "rank" else 7
        new = int(number) if np.isfinite(number) and column == "row_id" else new
    elif pa.types.is_floating(field.type):
        new = float(np.float32(number))
    values = [new] * len(values) if every else [*values[:row], new, *values[row + 1 :]]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)

    options = rerank.Options(
        queries=str(run.parent / "queries"), out=str(out), reranker="mutual_nn", shortlist=3
    )

    def score() -> None:
        job = rerank.plan_scores(options, RunSettings(workers=1))
        worker = make_worker(job)
        for unit in job.units:
            if not do_unit(worker, unit):
                record = read_error(open_place(job.output), unit.name)
                assert record is not None and record["final"], record

    accepted(score, JobFailed)
