"""Records, parts tables and tables of stores: any values and any bytes are read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.replacing import SWAP_SCHEMA, Swap
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table, reading, table_bytes
from pipelines.verify.repair_record import Record
from schemas.inside import check_inside, read_json, read_strictly
from schemas.manifest import (
    PARTS,
    Counts,
    FileEntry,
    Manifest,
    Marker,
    entries_of,
    parts_table,
    read_record,
)
from schemas.plan import Job, ListedImages, LocalsOfParts, Plan, Unit
from schemas.tuned import Tuned
from tests.support.hostile import accepted, inputs
from tests.support.mutations import HOSTILE, byte_changes, json_bytes

ENTRY = FileEntry("global/part-00000.0123456789ab.parquet", 3, 9, "a" * 64, {"row": {"offset": 1}})
MARKER = Marker("part-00000", "r", "s", (ENTRY,), Counts(3, 2, 1), {"name": "x"})
UNIT = Unit("part-00000", ListedImages(0, 0, "hash", (1, 2)), 3)
LAYER = Unit("part-00001", LocalsOfParts(UNIT, ((0, (1, 2)),)), 2)
MANIFEST = Manifest(
    stage="extract",
    recipe={"extractor": {"name": "x", "scales": [1.0]}},
    recipe_hash="r",
    content="c",
    inputs={"images": {"url": "/x", "content": "y"}},
    counts=Counts(3, 2, 1),
    facts={"kind": "store"},
    parts={"name": "parts.parquet", "sha256": "a", "files": 1, "bytes": 9},
    versions={"python": "3"},
    made_at="2026-01-01T00:00:00+00:00",
    wall_seconds=1.0,
    work_seconds=1.0,
)
PLAN = Plan(MANIFEST.recipe, "r", (UNIT, LAYER))
JOB = Job("extract", "/out", "extract/describe", {"a": 1}, MANIFEST.inputs, (UNIT,), {"b": [1]})
SWAP = {"schema": SWAP_SCHEMA, **asdict(Swap("manifest.json", ["done/x.json"], ["scratch"], ["a"]))}
RECORD = Record("c", {"python": "3"}, {"part-00000": {ENTRY.name: "a"}}, (ENTRY.name,))
RECORDS: dict[str, tuple[Any, Callable[[bytes], Any]]] = {
    "marker": (json.loads(MARKER.to_bytes()), Marker.decoded),
    "manifest": (json.loads(MANIFEST.to_bytes()), Manifest.from_bytes),
    "plan": (json.loads(PLAN.to_bytes()), Plan.from_bytes),
    "job": (json.loads(JOB.to_json([UNIT, LAYER])), lambda data: Job.from_json(data.decode())),
    "swap": (SWAP, lambda data: read_strictly(read_record(data, SWAP_SCHEMA), Swap)),
    "repair": (json.loads(RECORD.to_bytes()), Record.from_bytes),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records(kind: str) -> None:
    right, read = RECORDS[kind]
    assert accepted(lambda: read(json.dumps(right).encode()))

    @inputs(20)
    @given(json_bytes(right))
    def any_bytes(data: bytes) -> None:
        accepted(lambda: read(data), ValueError)

    any_bytes()


def test_a_result_of_tune() -> None:
    numbers = {"lambda": 0.5, "gamma": 0.5, "k": 10}
    inputs_ = {name: {"content": "x"} for name in ("scores", "queries", "ground_truth")}
    tuned = Tuned(numbers, "mean", 3, {}, {}, {}, inputs_, {"name": "rrt"}, None)

    @inputs(20)
    @given(json_bytes(json.loads(tuned.to_bytes())))
    def any_bytes(data: bytes) -> None:
        accepted(lambda: Tuned.from_bytes(data, "tuned.json"))

    any_bytes()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"[" * 100_000, "brackets in each other"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "brackets in each other"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": NaN}', "NaN, which is no finite number"),
        (b'{"a": 1e999}', "no finite number"),
        (b'{"a": -Infinity}', "no finite number"),
        (b"1" * 5_000, "digits"),
        (b"'\xff'", "decode"),
        (b" " * 128_000_001, "at most 128,000,000 are read"),
    ],
)
def test_json_that_this_software_never_wrote(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_json(data)


def test_a_record_of_five_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(ValueError, match="5,000,000,000 bytes"):
        open_place(str(tmp_path)).read_record("manifest.json")


@inputs(60)
@given(st.text(max_size=12) | st.sampled_from(HOSTILE))
def test_names(name: object) -> None:
    """Whatever is taken for a name stays below a folder."""
    if accepted(lambda: check_inside(name), ValueError):
        assert isinstance(name, str) and Path("/out", name).resolve().is_relative_to("/out")


COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        field.name: st.sampled_from(
            [
                pa.array(["../x"]),
                pa.array([None], pa.string()),
                pa.array([-1]),
                pa.array([2**62]),
                pa.array([1.5]),
                pa.array([b"\xff"]),
                pa.array([["x"]]),
                pa.array([{"x": 1}]),
                pa.array(["[" * 2000]),
                pa.array(['{"a": NaN}']),
                pa.array(["[1]"]),
                pa.nulls(1),
                pa.array(["x"]).dictionary_encode(),
            ]
        )
        for field in PARTS
    },
)


@inputs(40)
@given(COLUMNS, st.sets(st.sampled_from(PARTS.names), max_size=2))
def test_parts_tables_of_other_types(changed: dict[str, pa.Array], lacking: set[str]) -> None:
    right = parts_table([MARKER])
    columns = {name: changed.get(name, right.column(name)) for name in PARTS.names}
    table = pa.table({name: column for name, column in columns.items() if name not in lacking})
    accepted(lambda: entries_of(table), ValueError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("how", [{"compression": "none"}, {"compression": "zstd"}])
def test_bytes_of_tables(folder: Path, how: dict[str, Any]) -> None:
    table = parts_table([MARKER] * 5)
    place = open_place(str(folder))

    @inputs(40)
    @given(byte_changes(table_bytes(table, **how)))
    def any_bytes(data: bytes) -> None:
        (folder / "parts.parquet").write_bytes(data)

        def read() -> None:
            with reading(place, "parts.parquet"):
                entries_of(read_table(place, "parts.parquet", schema=PARTS))

        accepted(read)

    any_bytes()


def test_a_table_that_claims_more_rows_than_its_bytes_hold(folder: Path) -> None:
    table = pa.table({"a": pa.array([0], pa.int8()).take(pa.array([0] * 3_000_000, pa.int32()))})
    pq.write_table(table, folder / "trap.parquet")
    assert (folder / "trap.parquet").stat().st_size < 20_000
    assert not accepted(lambda: read_table(open_place(str(folder)), "trap.parquet"))
