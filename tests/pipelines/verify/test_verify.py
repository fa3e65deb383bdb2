"""verify: each way to damage an output is found, and the sentence names file, row and unit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest

from pipelines import cli
from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.verify import verify
from pipelines.verify.part_rows import repeated_rows
from pipelines.verify.problems import Findings
from schemas.errors import JobFailed, UserError
from schemas.manifest import Counts, Manifest, Marker
from schemas.plan import Unit, WholeJob
from tests.support.damage import (
    change_marker,
    flip,
    make_photographs,
    make_store,
    one,
    remake_manifest,
    rewrite,
    set_cells,
    set_descriptor,
    set_locals,
)
from tests.support.faulty_worker import faulty_job
from tests.tiny_extractor import TinyExtractor

UNIT = "part-00001"  # five rows; row 2 failed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole store: 20 photographs, four parts, one failed row."""
    folder = tmp_path_factory.mktemp("whole")
    yield make_store(make_photographs(folder / "photographs"), folder / "store")
    pool.close_pool()


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def found(store: Path, *, quick: bool = False) -> Findings:
    """The findings of a store."""
    (findings,) = verify.verify(str(store), quick=quick)
    return findings


def lines(store: Path, *, quick: bool = False) -> list[str]:
    """The problems as they are printed."""
    return [problem.line() for problem in found(store, quick=quick).problems]


def test_parts_of_different_processors_are_no_damage_and_are_reported(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, units in enumerate(("AVX2", "AVX512", "AVX512", "AVX512")):
        path = store / f"done/part-{number:05}.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "versions": {"vector units": units}}))

    assert cli.main(["verify", str(store)]) == 0
    assert "different vector units (1 by AVX2, 3 by AVX512)" in capsys.readouterr().out


def test_a_whole_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for quick in (False, True):
        findings = found(made, quick=quick)
        assert (findings.problems, findings.leftovers, findings.units, findings.files) == (
            [],
            [],
            4,
            12,
        )
        assert findings.counts == Counts(20, 19, 1) and findings.finished
    assert cli.main(["verify", str(made)]) == 0
    said = capsys.readouterr()
    assert (
        "is whole: 20 inputs = 19 succeeded + 1 failed (12 files" in said.out
        and "12 files in" in said.err
    )


FILES = ["global", "failures", "local/full"]


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_byte_in_each_kind_of_file(kind: str, store: Path) -> None:
    path = one(store, f"{kind}/{UNIT}.*")
    flip(path)
    (line,) = lines(store)
    assert line.startswith(f"{kind}/{path.name}: its SHA-256 is ") and line.endswith(
        f"; redo {UNIT}"
    )
    assert lines(store, quick=True) == [], "sizes are as they were"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("quick", [True, False])
def test_truncated_and_deleted_files(kind: str, quick: bool, store: Path) -> None:
    path = one(store, f"{kind}/{UNIT}.*")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert lines(store, quick=quick) == [
        f"{kind}/{path.name}: it has {size - 1:,} bytes, not {size:,}; redo {UNIT}"
    ]
    path.unlink()
    assert lines(store, quick=quick) == [f"{kind}/{path.name}: the file is missing; redo {UNIT}"]


def test_two_files_in_each_others_place(store: Path) -> None:
    first, second = (one(store, f"global/part-0000{number}.*") for number in (2, 3))
    first.rename(store / "between")
    second.rename(first)
    (store / "between").rename(second)
    findings = found(store)
    assert findings.damaged_units == ["part-00002", "part-00003"]
    assert all("its SHA-256 is" in problem.what for problem in findings.problems)


def _add_row_to_counts(marker: Marker) -> Marker:
    return replace(marker, counts=Counts(6, 5, 1))


def _one_more_succeeded(marker: Marker) -> Marker:
    return replace(marker, counts=Counts(5, 5, 0))


MARKERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.unlink(), "the marker is missing"),
    (lambda path: path.write_bytes(b'{"schema'), "it cannot be read: "),
    (lambda path: path.write_bytes(b"[]"), "it cannot be read: its schema is None"),
    (
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'"succeeded": 4', b'"succeeded": 3')
        ),
        "5 inputs are not 3 succeeded + 1 failed",
    ),
    (
        lambda path: change_marker(path.parents[1], UNIT, _add_row_to_counts),
        "the plan gave the unit 5",
    ),
    (
        lambda path: change_marker(path.parents[1], UNIT, _one_more_succeeded),
        "it counts 5 inputs = 5 succeeded + 0 failed; its files of failures/ have 1 rows",
    ),
    (
        lambda path: change_marker(path.parents[1], UNIT, lambda m: replace(m, recipe="0" * 64)),
        "of another recipe",
    ),
    (
        lambda path: change_marker(path.parents[1], UNIT, lambda m: replace(m, slice="0" * 64)),
        "of another plan",
    ),
    (
        lambda path: shutil.copy(path.with_name("part-00002.json"), path),
        "it is the marker of part-00002",
    ),
    (
        lambda path: change_marker(path.parents[1], UNIT, lambda m: replace(m, files=m.files[1:])),
        "is in the parts.parquet, but not so in the marker",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), MARKERS, ids=[text for _, text in MARKERS])
def test_markers(damage: Callable[[Path], Any], sentence: str, store: Path) -> None:
    damage(store / f"done/{UNIT}.json")
    for quick in (True, False):
        problems = [
            problem for problem in found(store, quick=quick).problems if problem.fix == "redo"
        ]
        assert problems and {problem.unit for problem in problems} == {UNIT}
        assert problems[0].file == f"done/{UNIT}.json" and sentence in problems[0].what


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(store: Path) -> None:
        value = json.loads((store / name).read_bytes())
        change(value)
        (store / name).write_text(json.dumps(value))

    return apply


MANIFESTS: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda store: (store / "manifest.json").unlink(),
        "manifest.json: it is missing: the output is not finished",
    ),
    (
        lambda store: (store / "manifest.json").write_bytes(b"{"),
        "manifest.json: it cannot be read: ",
    ),
    (
        _edit("manifest.json", lambda m: m.update(schema="rrt-manifest/9")),
        "its schema is 'rrt-manifest/9'",
    ),
    (
        _edit("manifest.json", lambda m: m["recipe"].update(threads=7)),
        "its recipe hash is not that of its recipe",
    ),
    (
        _edit("manifest.json", lambda m: m.update(content="0" * 64)),
        "its content hash is not that of the files",
    ),
    (
        _edit(
            "manifest.json", lambda m: m.update(counts={"inputs": 21, "succeeded": 20, "failed": 1})
        ),
        (
            "it counts 21 inputs = 20 succeeded + 1 failed; the markers sum up to 20 inputs = 19 "
            "succeeded + 1 failed"
        ),
    ),
    (
        _edit("manifest.json", lambda m: m["parts"].update(files=11)),
        "it says 11 files; parts.parquet has 12",
    ),
    (
        lambda store: (store / "parts.parquet").unlink(),
        "parts.parquet: it is missing; write the manifest again",
    ),
    (
        lambda store: flip(store / "parts.parquet"),
        "parts.parquet: its SHA-256 is not the one in the manifest",
    ),
]


@pytest.mark.parametrize(
    ("damage", "sentence"), MANIFESTS, ids=[text[:40] for _, text in MANIFESTS]
)
def test_manifest_and_parts_table(
    damage: Callable[[Path], Any], sentence: str, store: Path
) -> None:
    damage(store)
    said = lines(store)
    assert sentence in said[0] and all(
        line.endswith(("; write the manifest again", "; finish it")) for line in said
    )
    assert lines(store, quick=True) == said


PLANS: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda store: (store / "plan/plan.json").unlink(),
        "plan/plan.json: it is missing; give its command again",
    ),
    (
        lambda store: (store / "plan/plan.json").write_bytes(b"{"),
        "plan/plan.json: it cannot be read: ",
    ),
    (
        _edit("plan/plan.json", lambda p: p["recipe"].update(threads=7)),
        "its recipe hash is not that of its recipe",
    ),
    (
        _edit("plan/job.json", lambda p: p["recipe"].update(threads=7)),
        "job.json: its recipe is not that of plan/plan.json",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), PLANS, ids=[text[:40] for _, text in PLANS])
def test_plan(damage: Callable[[Path], Any], sentence: str, store: Path) -> None:
    damage(store)
    (line,) = lines(store, quick=True)
    assert sentence in line and line.endswith("; give its command again")


def _nan(vector: np.ndarray) -> np.ndarray:
    vector[3] = np.nan
    return vector


GLOBALS: list[tuple[Callable[[Path], Any], int | None, str]] = [
    (set_descriptor(3, _nan), 3, "the descriptor is not finite"),
    (set_descriptor(0, lambda vector: 1.01 * vector), 0, "the descriptor's L2 norm is 1.0"),
    (
        set_descriptor(2, lambda vector: vector + 1),
        2,
        "the row failed, but its descriptor is not zeros",
    ),
    (
        set_cells("record_id", {1: "elsewhere/06.png"}),
        1,
        "its record id is 'elsewhere/06.png', the plan's is 'photographs/06.png'",
    ),
    (
        set_cells("record_id", {1: "photographs/6.png"}),
        1,
        "its record id is 'photographs/6.png', the plan's is 'photographs/06.png'",
    ),
]


@pytest.mark.parametrize(
    ("change", "row", "sentence"), GLOBALS, ids=[text[:40] for _, _, text in GLOBALS]
)
def test_rows_of_globals(
    change: Callable[[Path], Any], row: int | None, sentence: str, store: Path
) -> None:
    name = rewrite(store, "global", UNIT, change)
    assert lines(store, quick=True) == [], "all hashes and sizes fit"
    findings = found(store)
    first = next(problem for problem in findings.problems if sentence in problem.what)
    assert (first.file, first.row, first.unit, findings.damaged_units) == (name, row, UNIT, [UNIT])


def test_columns_and_rows_of_another_number(store: Path) -> None:
    import pyarrow.parquet as pq

    def without_source(path: Path) -> None:
        pq.write_table(pq.read_table(path).drop_columns(["source"]), path)

    def one_row_less(path: Path) -> None:
        pq.write_table(pq.read_table(path).slice(0, 4), path, compression="none")

    name = rewrite(store, "global", "part-00002", without_source)
    other = rewrite(store, "global", "part-00003", one_row_less)
    said = lines(store)
    assert any(
        line.startswith(f"{name}: it cannot be read: ") and "source" in line for line in said
    )
    what = "its record ids are not those of its slice of the plan"
    assert f"{other}: {what}; redo part-00003" in said
    assert f"{other}: it has 4 rows; its marker says 5; redo part-00003" in said


def test_an_id_that_two_parts_hold(store: Path) -> None:
    """Also where the plan's own hash of the ids was made to fit."""
    rewrite(store, "global", "part-00003", set_cells("record_id", {4: "photographs/01.png"}))
    plan = json.loads((store / "plan/plan.json").read_bytes())
    ids = [f"photographs/{number:02}.png" for number in (15, 16, 17, 18, 1)]
    plan["units"][3]["payload"]["ids"] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    (store / "plan/plan.json").write_text(json.dumps(plan))
    problems = [problem for problem in found(store).problems if "record id" in problem.what]
    (problem,) = problems
    assert (problem.row, problem.unit) == (4, "part-00003")
    assert (
        problem.what.startswith("its record id is also that of global/part-00000.")
        and "row 1" in problem.what
    )


def test_repeated_rows_against_a_dictionary() -> None:
    random = np.random.default_rng(0)
    parts = [
        random.integers(0, 400, (size, 1)).astype(np.uint64).repeat(2, axis=1)
        for size in (0, 50, 1, 300, 0, 80)
    ]
    parts[3][:, 1] += parts[3][:, 0] % 2  # half of them differ in the second word alone
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    wanted = []
    for part, rows in enumerate(parts):
        for place, row in enumerate(rows.tolist()):
            if tuple(row) in seen:
                wanted.append((part, place, *seen[tuple(row)]))
            else:
                seen[tuple(row)] = (part, place)
    assert wanted and repeated_rows(parts) == wanted
    assert repeated_rows([]) == []


def test_memory_of_comparing_record_ids() -> None:
    """18 bytes an id are there, 24 more while they are compared: 42, as the documentation says."""
    parts = [
        np.random.default_rng(part).integers(0, 2**63, (50_000, 2)).astype(np.uint64)
        for part in range(4)
    ]
    tracemalloc.start()
    assert repeated_rows(parts) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 24.5 * 200_000


def _set(name: str, place: Any, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][place] = value

    return change


def _swap_rows(arrays: dict[str, np.ndarray]) -> None:
    arrays["row"][:2] = arrays["row"][1::-1]


def _as(name: str, dtype: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].astype(dtype)

    return change


# Rows 0, 1, 3, 4 are ok, with 16 locals each; local 20 belongs to row 1.
LOCALS: list[tuple[Callable[[dict[str, np.ndarray]], None], int | None, str]] = [
    (_set("descriptor", (20, 5), np.nan), 1, "a local descriptor is not finite"),
    (_set("descriptor", 40, 0.5), 3, "the L2 norm of a local descriptor is not 1"),
    (_set("xy", (20, 0), np.inf), 1, "a local's place or strength is not finite"),
    (_set("xy", (20, 0), 96.5), 1, "a local lies outside the picture"),
    (_set("xy", (63, 1), -1.0), 4, "a local lies outside the picture"),
    (_set("scale", 0, 1), 0, "a local's scale is none of the store's"),
    (_set("strength", 17, 1e9), 1, "the strengths of its locals rise"),
    (_set("offset", 1, 40), None, "'offset' falls at its entry 2; it must rise from 0 to 64"),
    (_set("offset", 4, 63), None, "'offset' runs from 0 to 63; it must rise from 0 to 64"),
    (_set("offset", 0, 1), None, "'offset' runs from 1 to 64; it must rise from 0 to 64"),
    (_set("row", 3, 9), 9, "its globals have no described image in this row"),
    (_set("row", 2, 2), 2, "its globals have no described image in this row"),
    (_swap_rows, None, "'row' is not ascending at its entry 1"),
    (_as("descriptor", "<f4"), None, "dataset 'descriptor' is of <f4, not <f2"),
    (_as("xy", "<f8"), None, "dataset 'xy' is of <f8, not <f4"),
    (_as("row", "<i8"), None, "dataset 'row' is of <i8, not <i4"),
    (_as("offset", "<i4"), None, "dataset 'offset' is of <i4, not <i8"),
    (_as("scale", "<u2"), None, "dataset 'scale' is of <u2, not |u1"),
    (_as("strength", "<f2"), None, "dataset 'strength' is of <f2, not <f4"),
]


@pytest.mark.parametrize(
    ("change", "row", "sentence"), LOCALS, ids=[f"{text[:40]}-{row}" for _, row, text in LOCALS]
)
def test_locals(
    change: Callable[[dict[str, np.ndarray]], None], row: int | None, sentence: str, store: Path
) -> None:
    name = rewrite(store, "local/full", UNIT, set_locals(change))
    assert lines(store, quick=True) == []
    findings = found(store)
    problem = next(problem for problem in findings.problems if sentence in problem.what)
    assert (problem.file, problem.row, problem.unit, findings.damaged_units) == (
        name,
        row,
        UNIT,
        [UNIT],
    )


def test_locals_of_another_schema(store: Path) -> None:
    def other(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs["schema"] = "rrt-local/9"

    name = rewrite(store, "local/full", UNIT, other)
    assert lines(store) == [
        f"{name}: its schema is 'rrt-local/9', not 'rrt-local/1'; redo {UNIT}",
    ]


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"inputs": 5, "succeeded": 6, "failed": -1}, "it counts 6 succeeded and -1 failed"),
        ({"inputs": -1, "succeeded": -1, "failed": 0}, "it counts -1 succeeded and 0 failed"),
    ],
)
def test_a_negative_count_in_a_marker(counts: dict[str, int], sentence: str, store: Path) -> None:
    path = store / f"done/{UNIT}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "counts": counts}))
    assert any(sentence in line and line.endswith(f"redo {UNIT}") for line in lines(store))


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("xy", "dataset 'xy' lies as"),
        ("descriptor", "its descriptors do not lie where its marker says"),
    ],
)
def test_a_layout_that_is_not_the_files_own(dataset: str, sentence: str, store: Path) -> None:
    folder = "local/" if dataset == "xy" else "global/"

    def moved(marker: Marker) -> Marker:
        files = []
        for entry in marker.files:
            if entry.name.startswith(folder):
                entry = replace(entry, layout=json.loads(json.dumps(entry.layout)))
                assert entry.layout is not None
                entry.layout[dataset]["offset"] -= 4
            files.append(entry)
        return replace(marker, files=tuple(files))

    change_marker(store, UNIT, moved)
    remake_manifest(store)
    (line,) = lines(store)
    assert sentence in line and line.endswith(f"redo {UNIT}")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_other_dtypes_of_locals(dtype: str, tmp_path: Path) -> None:
    store = make_store(
        make_photographs(tmp_path / "photographs"), tmp_path / "store", local_dtype=dtype
    )
    assert lines(store) == []
    rewrite(store, "local/full", UNIT, set_locals(_set("descriptor", 20, 1)))
    (problem,) = found(store).problems
    wanted = {
        "float32": "the L2 norm of a local",
        "int8": "the largest magnitude of a local descriptor is not 127",
    }
    assert problem.row == 1 and problem.what.startswith(wanted[dtype])


def test_many_rows_of_one_kind_are_counted(store: Path) -> None:
    def all_of_them(arrays: dict[str, np.ndarray]) -> None:
        arrays["scale"][:] = 9

    rewrite(store, "local/full", "part-00002", set_locals(all_of_them))
    assert [problem.row for problem in found(store).problems] == [0, 1, 2, 3, 4]
    nothing = np.full(TinyExtractor().global_dim, np.nan, "<f2").tobytes()
    rewrite(
        store, "global", "part-00002", set_cells("descriptor", dict.fromkeys(range(5), nothing))
    )
    assert len(found(store).problems) == 10


def test_leftovers_are_told_but_no_damage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "global/part-00001.000000000000.parquet").write_bytes(b"of a killed attempt")
    (store / "done/part-00009.json").write_bytes(b"{}")
    (store / "notes.txt").write_text("mine")
    (store / "global/notes.txt").write_text("mine")
    (store / "global/notes.0123456789ab.txt").write_text("mine")
    (store / "done/notes.json").write_text("mine")
    (store / "draft.tmp").write_text("mine")
    (store / "plan/draft.tmp").write_text("mine")
    (store / "plan/plan.json.0123456789ab.tmp").write_text("")
    (store / "scratch").mkdir()
    (store / "scratch/x").write_text("")
    findings = found(store)
    assert findings.problems == []
    assert [(one.file, one.ours) for one in findings.leftovers] == [
        ("done/notes.json", False),
        ("done/part-00009.json", True),
        ("draft.tmp", False),
        ("global/notes.0123456789ab.txt", False),
        ("global/notes.txt", False),
        ("global/part-00001.000000000000.parquet", True),
        ("notes.txt", False),
        ("plan/draft.tmp", False),
        ("plan/plan.json.0123456789ab.tmp", True),
        ("scratch/x", True),
    ]
    assert all(one.age is not None and one.age < 600 for one in findings.leftovers)
    assert cli.main(["verify", str(store)]) == 0
    assert "nothing names done/notes.json and 9 more" in capsys.readouterr().out


def test_the_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one(store, "global/part-00002.*")
    flip(path)
    told = tmp_path / "findings.json"
    assert cli.main(["verify", str(store), "--json", str(told)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"global/{path.name}: its SHA-256 is ") and said.out.count("\n") == 1
    assert "Failed: " in said.err and "1 of 4 units must be done again: part-00002" in said.err
    record = json.loads(told.read_bytes())
    (output,) = record["outputs"]
    assert record["clean"] is False and output["damaged_units"] == ["part-00002"]
    assert (
        output["problems"][0]["file"] == f"global/{path.name}"
        and output["problems"][0]["mend"] == "redo"
    )
    assert cli.main(["verify", str(store), "--quick", "--json", str(told)]) == 0
    assert json.loads(told.read_bytes())["clean"] is True
    assert "(sizes only)" in capsys.readouterr().out


def test_mistakes(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in [
        (["verify"], "STORE is missing"),
        (["verify", str(tmp_path / "nowhere")], "there is no output here"),
        (["verify", str(store), "--threads", "-1"], "--threads is -1"),
        (["verify", str(store), "--json", str(tmp_path / "no/such.json")], "cannot be written"),
    ]:
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said and "Traceback" not in said


def test_outputs_of_any_stage_and_several_at_once(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        run_job(faulty_job(f"{tmp_path}/all/{name}", *["ok"] * 3), RunSettings(workers=1))
    assert [(one.folder, one.files, one.problems) for one in verify.verify(f"{tmp_path}/all")] == [
        ("a", 6, []),
        ("b/c", 6, []),
    ]
    flip(one(tmp_path, "all/b/c/data/part-00002.*"))
    (tmp_path / "all/a/plain/part-00000.json").unlink()
    with pytest.raises(
        JobFailed, match="2 problems; 2 of 6 units must be done again: a/part-00000, b/c/part-00002"
    ):
        verify.run(verify.Options(f"{tmp_path}/all"))
    pool.close_pool()


def test_summaries_are_part_of_the_content(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok", "ok")
    run_job(job, RunSettings(workers=1))
    change_marker(
        tmp_path / "out", "part-00001", lambda marker: replace(marker, summary={"name": "another"})
    )
    assert "its content hash is not that of the files in the markers" in lines(tmp_path / "out")[0]
    pool.close_pool()


def test_remote_places(made: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(made), "/verified/store", recursive=True)
    try:
        assert [one.problems for one in verify.verify("memory://verified/store")] == [[]]
        name = memory.glob("/verified/store/local/full/part-00002.*")[0]
        data = bytearray(memory.cat_file(name))
        data[-1] ^= 1
        memory.pipe_file(name, bytes(data))
        memory.rm(memory.glob("/verified/store/failures/part-00000.*")[0])
        (findings,) = verify.verify("memory://verified/store")
        assert findings.damaged_units == ["part-00000", "part-00002"]
    finally:
        memory.rm("/verified", recursive=True)


def test_a_training_output_has_no_units(tmp_path: Path) -> None:
    """Weights have a manifest and a parts table, but neither plan nor markers."""
    from pipelines.jobs.manifests import write_manifest
    from pipelines.storage.place import open_place
    from schemas.manifest import FileEntry

    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "log.csv").write_bytes(b"step,loss\n")
    unit = Unit("weights", WholeJob(), 9)
    job = replace(faulty_job(str(tmp_path), "ok"), units=(unit,))
    entry = FileEntry("weights.safetensors", 1, 7, hashlib.sha256(b"weights").hexdigest())
    write_manifest(
        open_place(str(tmp_path)),
        job,
        [Marker("weights", job.recipe_hash, "", (entry,), Counts(9, 9))],
        1.0,
    )
    assert Manifest.from_bytes((tmp_path / "manifest.json").read_bytes()).counts.inputs == 9
    assert (found(tmp_path).problems, found(tmp_path).leftovers) == ([], [])
    flip(tmp_path / "weights.safetensors")
    assert "its SHA-256 is" in lines(tmp_path)[0]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no output here"):
        verify.verify(str(tmp_path))
