"""Units as structs: on disk and where they are hashed they are the plain mappings of always."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.manifest import Manifest, Marker, canonical_json, sha256_text
from schemas.plan import (
    ArchivedImages,
    ArchivedImagesAgain,
    Candidates,
    IndexFilling,
    IndexMerging,
    IndexTraining,
    Job,
    ListedImages,
    ListedImagesAgain,
    LocalsOfParts,
    MissingImages,
    OtherWork,
    Pairs,
    Plan,
    RankingPart,
    ShortlistBlock,
    Unit,
    WholeJob,
    Work,
)

OLD_OUTPUTS = Path(__file__).parents[1] / "old_outputs/old_outputs.tar.xz"

LISTED: dict[str, Any] = {"part": 2, "start": 4, "ids": "96db", "repeated": [1]}
ARCHIVED: dict[str, Any] = {
    "archive": 1,
    "source": "packed",
    "name": "b.tar",
    "bytes": 10240,
    "prefix": "b/",
    "listed": True,
    "part": 1,
    "stride": 3,
    "rows": 2,
    "open": True,
}
PAYLOADS: list[tuple[type[Work], dict[str, Any]]] = [
    (WholeJob, {}),
    (ListedImages, LISTED),
    (ListedImages, {"part": 0, "start": 0, "ids": "96db"}),
    (ListedImagesAgain, {**LISTED, "repeated": [], "again": "plan/retry-00001.parquet"}),
    (ArchivedImages, ARCHIVED),
    (ArchivedImagesAgain, {**ARCHIVED, "again": "plan/retry-00002.parquet"}),
    (MissingImages, {"missing": "51c2", "part": 2, "stride": 3, "open": True, "last": True}),
    (
        LocalsOfParts,
        {
            "maker": {"name": "archive-00001", "payload": ARCHIVED, "inputs": 0},
            "parts": [[1, [0, 1]], [4, [0]]],
        },
    ),
    (IndexTraining, {"rows": 13}),
    (IndexFilling, {"parts": [[0, 0], [0, 3]]}),
    (IndexMerging, {"shards": [0, 1], "parts": [[0, 0], [1, 3]]}),
    (ShortlistBlock, {"rows": [[0, 0], [0, 1]]}),
    (Candidates, {"file": "search-000.0123.faiss", "rows": [[0, 0]]}),
    (Pairs, {"shortlist": "part-00000.0123.parquet", "first": 3}),
    (
        RankingPart,
        {
            "protocol": "medium",
            "number": 0,
            "shortlist": "part-00000.0123.parquet",
            "scores": ["part-00000.4567.parquet", "part-00001.89ab.parquet"],
        },
    ),
    (OtherWork, {"behaviour": "ok", "open": True, "bytes": 7}),
]


def plan_of(*units: dict[str, Any]) -> bytes:
    """plan.json of such units."""
    return json.dumps({"recipe": {}, "recipe_hash": "", "units": units}).encode()


def record(payload: dict[str, Any], name: str = "part-00002", inputs: Any = 4) -> dict[str, Any]:
    """A unit as it lies on disk."""
    return {"name": name, "payload": payload, "inputs": inputs}


@pytest.mark.parametrize(("kind", "payload"), PAYLOADS)
def test_the_keys_say_the_kind_and_nothing_else_is_written(
    kind: type[Work], payload: dict[str, Any]
) -> None:
    unit = Unit.from_record(record(payload))
    assert type(unit.work) is kind and unit.of(kind) is unit.work

    assert json.loads(json.dumps(unit.record)) == record(payload)
    assert unit.slice == sha256_text(canonical_json(["part-00002", payload, 4]))
    assert Unit.from_record(unit.record) == unit

    assert unit.work.again == payload.get("again", "")
    assert unit.work.open is payload.get("open", False)
    assert unit.work.last is payload.get("last", False)
    assert unit.work.size == payload.get("bytes", 0)
    assert unit.work.rows_a_piece == (payload["rows"] if "archive" in payload else 0)


@pytest.mark.skipif(not OLD_OUTPUTS.exists(), reason="tests/old_outputs is not here")
def test_every_old_output_is_read_and_written_as_it_is() -> None:
    kinds, slices = set(), {}
    with tarfile.open(OLD_OUTPUTS) as archive:
        names = [name for name in archive.getnames() if name.endswith(".json")]
        files = {name: (archive.extractfile(name) or pytest.fail(name)).read() for name in names}

    for name, data in files.items():
        if name.endswith("plan/plan.json"):
            plan = Plan.from_bytes(data)
            assert plan.to_bytes() == data
            for unit, old in zip(plan.units, json.loads(data)["units"], strict=True):
                assert json.loads(json.dumps(unit.record)) == old
                hashed = canonical_json([old["name"], old["payload"], old["inputs"]])
                assert unit.slice == sha256_text(hashed)
                slices[name.replace("plan/plan", f"done/{unit.name}")] = unit.slice
                kinds.add(type(unit.work))
        elif name.endswith("plan/job.json"):
            assert Job.from_json(data.decode()).to_json().encode() == data
        elif name.endswith("/manifest.json"):
            assert Manifest.from_bytes(data).to_bytes() == data

    markers = {name: Marker.from_bytes(files[name]) for name in slices if name in files}
    assert markers
    for name, marker in markers.items():
        assert marker is not None and marker.to_bytes() == files[name]
        assert marker.slice == slices[name]
    assert kinds == {kind for kind, _ in PAYLOADS} - {OtherWork}


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({**LISTED, "start": "4"}, r"units[1].payload.start: expected int, got str"),
        (
            {**LISTED, "repeated": [1, None]},
            r"units[1].payload.repeated[1]: expected int, got null",
        ),
        ({**LISTED, "speed": 3}, "units[1].payload: speed is not known here; a newer version"),
        ({"part": 0, "start": 0}, "units[1].payload: it has no ids"),
        ({**LISTED, "again": "../plan"}, "units[1].payload: '../plan' leads out of the output"),
        ({**LISTED, "again": ""}, "units[1].payload: '' is no name of a file"),
        ({"file": "/etc/passwd", "rows": []}, "units[1].payload: '/etc/passwd' is no name"),
        ({"shortlist": "a/../../b", "first": 0}, "units[1].payload: 'a/../../b' leads out"),
        (
            {**PAYLOADS[-2][1], "scores": ["ok", "s3://b/x"]},
            "units[1].payload: 's3://b/x' is no name",
        ),
        ({**PAYLOADS[-2][1], "protocol": "a/b"}, "units[1].payload: 'a/b' is no name of a unit"),
        (
            {"maker": record({**LISTED, "part": []}), "parts": []},
            "units[1].payload.maker.payload.part: expected int, got array",
        ),
        (
            {"maker": record(LISTED, "../part"), "parts": []},
            "units[1].payload.maker: '../part' leads out",
        ),
        (
            {"again": "plan/x"},
            "units[1].payload: the key 'again' belongs to units of this software",
        ),
    ],
)
def test_a_payload_that_is_wrong_is_refused_with_its_place(
    payload: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError) as raised:
        Plan.from_bytes(plan_of(record({}), record(payload)))
    assert str(raised.value).startswith(sentence)


def test_what_is_wrong_with_units_plans_jobs_and_manifests_is_said_with_its_place() -> None:
    def refused(data: bytes) -> str:
        with pytest.raises(ValueError) as raised:
            Plan.from_bytes(data)
        return str(raised.value)

    assert refused(plan_of(record({}, inputs="3"))) == "units[0].inputs: expected int, got str"
    assert refused(plan_of({"name": "a", "payload": {}})) == "units[0]: it has no inputs"
    assert refused(plan_of(record([], "a"))) == "units[0].payload: expected a mapping"  # type: ignore[arg-type]
    assert refused(plan_of(record({}, "a/b"))).startswith("units[0]: 'a/b' is no name of a unit")
    assert refused(plan_of({**record({}), "host": 1})).startswith(
        "units[0]: host is not known here"
    )
    assert refused(b'{"recipe": {}, "speed": 1}').startswith("speed is not known here; a newer")
    assert refused(b"[]") == "expected object, got array"

    job = {"stage": "s", "output": "o", "worker": "w", "recipe": {}, "inputs": {}, "units": []}
    assert Job.from_json(json.dumps(job)).noun == "units"
    with pytest.raises(ValueError, match=r"^settings: expected object, got int$"):
        Job.from_json(json.dumps({**job, "settings": 3}))

    manifest = {"schema": "rrt-manifest/1", "stage": 3}
    with pytest.raises(ValueError, match="^stage: expected str, got int$"):
        Manifest.from_bytes(json.dumps(manifest).encode())


def test_a_marker_with_a_key_that_is_not_known_counts_as_absent() -> None:
    marker = {
        "schema": "rrt-marker/1",
        "unit": "u",
        "recipe": "",
        "slice": "",
        "files": [{"name": "a/b.parquet", "rows": 1, "bytes": 1, "sha256": ""}],
        "counts": {"inputs": 1, "succeeded": 1},
    }
    assert Marker.from_bytes(json.dumps(marker).encode()) is not None
    for changed in (
        {**marker, "speed": 3},
        {**marker, "files": [{**marker["files"][0], "speed": 3}]},  # type: ignore[index]
        {**marker, "files": [{**marker["files"][0], "name": "../b"}]},  # type: ignore[index]
        {**marker, "counts": {"inputs": 1, "succeeded": 1, "failed": 1}},
    ):
        assert Marker.from_bytes(json.dumps(changed).encode()) is None


def test_work_of_another_kind_is_refused_by_a_worker() -> None:
    with pytest.raises(UserError, match="the unit a is WholeJob, and its job's worker does Pairs"):
        Unit("a", WholeJob(), 1).of(Pairs)


def test_work_of_an_installed_package_keeps_clear_of_our_keys() -> None:
    assert Unit("a", OtherWork({"depth": 3}), 1).payload == {"depth": 3}
    with pytest.raises(ValueError, match="the key 'rows' belongs to units of this software"):
        OtherWork({"depth": 3, "rows": 5})
