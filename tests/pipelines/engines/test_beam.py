"""A job's units as a Beam transform, on a real in-process runner: results, failures, metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from pipelines.engines.beam import NAMESPACE, Finish, RunUnits, UnitFailure, UnitResult
from pipelines.engines.driver import run_job
from pipelines.engines.local import pool
from pipelines.engines.outputs import finish, next_job
from pipelines.engines.settings import Planned, RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.index import stage as index
from pipelines.jobs.manifests import read_manifest
from pipelines.jobs.markers import read_marker
from pipelines.storage.place import open_place
from schemas.errors import JobFailed, UserError
from schemas.manifest import Counts
from schemas.plan import Job
from tests.support.faulty_worker import faulty_job
from tests.support.watching import EXTRACTOR

ROOT = Path(__file__).resolve().parents[3]


def beam_run(
    job: Job, notes: Path, names: Sequence[str] | None = None, manifest: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """What the transform emits, and the metrics; elements are noted in a file a name."""
    options = PipelineOptions(["--direct_running_mode=in_memory", "--direct_num_workers=1"])
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=options)
    begin = pipeline if names is None else pipeline | "Names" >> beam.Create(names)
    units = begin | RunUnits(job)
    header, output, folder = job.to_json(job.units), job.output, str(notes)
    notes.mkdir(exist_ok=True)

    def note(one: Any) -> None:
        work = Job.from_json(header)
        unit = next(unit for unit in work.units if unit.name == one.unit)
        marker = read_marker(open_place(output), work, unit)
        assert (marker is not None) == isinstance(one, UnitResult), (
            "emitted after its marker stands"
        )
        kept = [one.unit, list(one[1:]) if isinstance(one, UnitFailure) else one.counts.inputs]
        (Path(folder) / f"{type(one).__name__}-{one.unit}").write_text(json.dumps(kept))

    _ = (units.done, units.failed) | beam.Flatten() | beam.Map(note)
    if manifest:
        _ = units.done | Finish(job.output)
    result = pipeline.run()
    result.wait_until_finish()
    emitted = [json.loads(path.read_text()) for path in sorted(notes.iterdir())]
    queried = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(NAMESPACE))
    metrics: dict[str, Any] = {}
    for one in (*queried["counters"], *queried["distributions"]):  # one a step
        name, seen = one.key.metric.name, one.committed
        metrics[name] = metrics[name] + seen if isinstance(metrics.get(name), int) else seen
    return emitted, metrics


def planned(job: Job) -> Job:
    """The job with its plan written, as a stage's would be."""
    with pytest.raises(Planned):
        run_job(job, RunSettings(plan_only=True))
    return job


def test_results_metrics_and_manifest(tmp_path: Path) -> None:
    job = planned(faulty_job(f"{tmp_path}/out", *["ok"] * 5))
    assert not (tmp_path / "out/done").exists(), "a plan, and no more"
    emitted, metrics = beam_run(job, tmp_path / "notes", manifest=True)
    assert emitted == [[unit.name, 3] for unit in job.units]
    spent = metrics.pop("unit_milliseconds")
    assert metrics == {"inputs": 15, "succeeded": 15, "failed": 0}
    assert spent.count == 5 and 0 <= spent.min <= spent.max <= spent.sum

    manifest = read_manifest(open_place(job.output))
    assert manifest is not None and manifest.counts == Counts(15, 15)
    local = run_job(faulty_job(f"{tmp_path}/local", *["ok"] * 5), RunSettings(workers=1))
    assert manifest.content == local.content
    assert finish(job.output) == manifest, "a runner may do it twice"
    assert run_job(job, RunSettings()) == manifest
    assert not {"attempts", "scratch", "errors"} & set(os.listdir(job.output))


def test_failed_units_have_an_output_of_their_own(tmp_path: Path) -> None:
    job = planned(faulty_job(f"{tmp_path}/out", "ok", "raise", "user_error", "ok"))
    emitted, metrics = beam_run(job, tmp_path / "notes")
    assert emitted == [
        ["part-00001", ["ValueError: no good: part-00001", False]],
        ["part-00002", ["part-00002: mend your settings", True]],
        ["part-00000", 3],
        ["part-00003", 3],
    ]
    assert metrics["failed_units"] == 2 and metrics["inputs"] == 6
    with pytest.raises(
        JobFailed, match=r"2 of 4 parts of .* are not done, the first is part-00001"
    ):
        finish(job.output)
    assert read_manifest(open_place(job.output)) is None


def test_named_units_are_done_and_those_done_before_give_their_result(tmp_path: Path) -> None:
    job = planned(faulty_job(f"{tmp_path}/out", *["ok"] * 4))
    first, _ = beam_run(job, tmp_path / "first", ["part-00002"])
    assert first == [["part-00002", 3]]
    when = (tmp_path / "out/done/part-00002.json").stat().st_mtime_ns
    rest, metrics = beam_run(job, tmp_path / "rest")
    assert [name for name, _ in rest] == ["part-00000", "part-00001", "part-00003"]
    assert metrics["inputs"] == 9
    again, _ = beam_run(job, tmp_path / "again", ["part-00002", "part-00003"])
    assert [name for name, _ in again] == ["part-00002", "part-00003"]
    assert (tmp_path / "out/done/part-00002.json").stat().st_mtime_ns == when
    _, metrics = beam_run(job, tmp_path / "twice", ["part-00003"] * 3)
    assert metrics["inputs"] == 9, "at least once: each name has its result"
    with pytest.raises(Exception, match="has no unit 'part-9'"):
        beam_run(job, tmp_path / "none", ["part-9"])


def test_results_stay_in_the_windows_of_their_names(tmp_path: Path) -> None:
    """Though each result comes while the next unit is under way."""
    job = planned(faulty_job(f"{tmp_path}/out", *["ok"] * 3))
    notes = str(tmp_path / "windows")
    os.makedirs(notes)

    def note(one: UnitResult, window: Any = beam.DoFn.WindowParam) -> None:
        (Path(notes) / one.unit).write_text(str(int(window.start)))

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        units = (
            pipeline
            | beam.Create([(unit.name, 10 * n) for n, unit in enumerate(job.units)])
            | beam.Map(lambda pair: TimestampedValue(*pair))
            | beam.WindowInto(FixedWindows(10))
            | RunUnits(job)
        )
        _ = units.done | beam.Map(note)
        _ = units.done | Finish(job.output)
    assert [path.read_text() for path in sorted(Path(notes).iterdir())] == ["0", "10", "20"]
    assert read_manifest(open_place(job.output)) is not None


def test_a_real_stage_has_equal_contents_by_the_loop_and_by_beam(
    photographs: Path, tmp_path: Path
) -> None:
    """With an archive, and a unit that waits for all others: what a list names and none holds."""
    names = sorted(path.name for path in photographs.iterdir())
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in names:
            archive.add(photographs / name, name)
    (tmp_path / "list.txt").write_text("\n".join([*names, "absent.png"]))

    def describe(out: str) -> extract_options.Options:
        return extract_options.Options(
            images=f"{tmp_path}/images.tar",
            list=f"{tmp_path}/list.txt",
            out=f"{tmp_path}/{out}",
            extractor=EXTRACTOR,
            rows_per_part=7,
        )

    def gather(out: str) -> index.Options:
        return index.Options(
            stores=(f"{tmp_path}/{out}",), out=f"{tmp_path}/{out}-index", rows_per_shard=7
        )

    contents = {}
    for out in ("loop", "beam"):
        for run, options in ((extract.run, describe(out)), (index.run, gather(out))):
            while out == "beam" and (job := next_job(run, options)) is not None:
                notes = tmp_path / f"notes-{Path(job.output).name}"
                emitted, metrics = beam_run(job, notes, manifest=True)
                assert len(emitted) == len(job.units)
                assert metrics["inputs"] == sum(inputs for _, inputs in emitted)
            manifest = run(options, RunSettings(workers=2))  # type: ignore[operator]
            contents[out, manifest.stage] = manifest.content
            assert manifest.counts.inputs == 31 and manifest.counts.succeeded == 30
    pool.close_pool()
    assert len(set(contents.values())) == 2, contents
    assert sorted(path.name for path in tmp_path.glob("notes-*")) == [
        "notes-beam",
        "notes-search",
        "notes-shards",
    ]


def test_the_last_unit_is_not_begun_while_others_are_not_done(
    photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("absent.png")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(photographs / "00_0.png", "00_0.png")
    options = extract_options.Options(
        images=f"{tmp_path}/images.tar",
        list=f"{tmp_path}/list.txt",
        out=f"{tmp_path}/out",
        extractor=EXTRACTOR,
    )
    job = next_job(extract.run, options)
    assert job is not None
    last = job.units[-1].name
    emitted, _ = beam_run(job, tmp_path / "notes", [last])
    assert emitted == [[last, ["it waits for 1 other units that are not done", False]]]


def test_the_driver_gives_a_beam_runner_the_same_pipeline(tmp_path: Path) -> None:
    job = faulty_job(f"{tmp_path}/out", "ok", "raise_once", "ok")
    settings = RunSettings(
        runner="FnApiRunner", beam_options=("--direct_running_mode=in_memory",), workers=1
    )
    manifest = run_job(job, settings)
    local = run_job(faulty_job(f"{tmp_path}/local", "ok", "ok", "ok"), RunSettings(workers=1))
    pool.close_pool()
    assert manifest.counts == local.counts and manifest.content == local.content


def test_a_local_run_imports_no_beam(tmp_path: Path) -> None:
    """Neither the driver nor its worker, which says so in its log."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "end = os._exit\n"
        "def noting(code):\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'a') as file:\n"
        "        file.write(f'{\"apache_beam\" in sys.modules} ')\n"
        "    end(code)\n"
        "os._exit = noting\n"
    )
    program = (
        "import os, sys\n"
        "from pipelines.engines.local import pool\n"
        "from pipelines.engines.driver import run_job\n"
        "from pipelines.engines.settings import RunSettings\n"
        "from tests.support.faulty_worker import faulty_job\n"
        "run_job(faulty_job(sys.argv[1], 'ok'), RunSettings(workers=1))\n"
        "worker = pool.shared_pool(1).members[0].process\n"
        "worker.stdin.close(); worker.wait()\n"
        "os._exit(0)\n"
    )
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", program, f"{tmp_path}/out"]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    assert (tmp_path / "seen").read_text() == "False False "


def test_what_cannot_be_finished_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no job was planned there"):
        finish(f"{tmp_path}/nothing")
    (tmp_path / "out/plan").mkdir(parents=True)
    (tmp_path / "out/plan/job.json").write_text('{"stage": 1}')
    with pytest.raises(UserError, match=r"plan/job.json is damaged"):
        finish(f"{tmp_path}/out")


def test_the_example_of_the_docs(photographs: Path, tmp_path: Path) -> None:
    """As it stands there, but for an extractor that starts at once."""
    text = (ROOT / "docs/engines.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    own = 'out="stores/photos"'
    assert example.count(own) == 1
    (tmp_path / "example.py").write_text(example.replace(own, f'{own}, extractor="{EXTRACTOR}"'))
    (tmp_path / "photos").symlink_to(photographs)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "inputs 30" in run.stdout and "search-000 Counts(inputs=30" in run.stdout
    assert (tmp_path / "index/search/manifest.json").exists()
