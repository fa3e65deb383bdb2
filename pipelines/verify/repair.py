"""repair: does just the damaged units of an output again, so that it is what it was; says so, or
what has changed.

The markers of the damaged units are removed and the job of plan/job.json is run: the commit
protocol does the rest. What was there before is kept in repair/record.json until the end: the next
repair goes on where one was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.engines.driver import run_job
from pipelines.engines.settings import JobFailed, RunSettings
from pipelines.jobs.markers import software_versions
from pipelines.jobs.plan import differences, planned_units
from pipelines.options import option
from pipelines.storage.protocol import Place
from pipelines.verify.bookkeeping import UNREADABLE, Output, find_outputs, read_output
from pipelines.verify.files import FileChecks, groups_of
from pipelines.verify.problems import COMMAND, REDO, Findings
from pipelines.verify.repair_inputs import (
    refuse_absent_inputs,
    refuse_other_inputs,
    refuse_other_software,
    refuse_unnamed_code,
)
from pipelines.verify.verify import examine, findings_of, print_lines, summary
from schemas.errors import UserError
from schemas.inside import check_inside, check_unit_name
from schemas.layout import JOB_NAME, LAYERS, PIECES, PLAN_NAME, REPAIR_RECORD
from schemas.manifest import MANIFEST_NAME, PARTS_NAME, FileEntry, Manifest, content_hash
from schemas.plan import Job

GC_SECONDS = 24 * 3600.0
READERS = 2
MOST_NAMED = 20  # changed images that are named


@dataclass(frozen=True)
class Options:
    """Options of `repair`."""

    store: str = option(
        "an output folder (path or URL), or one that holds outputs", positional=True
    )
    remove_damaged: bool = option(
        "only remove damaged files and their units' markers; the command that made the output "
        "then does them again",
        False,
    )
    own_class: tuple[str, ...] = option(
        "package.module:Class of an extractor or reranker of yours that the output was made with: "
        "repair imports none "
        "that the output alone names",
        (),
    )
    gc: bool = option(
        "remove files that nothing names and that are older than 24 hours, where all else is whole",
        False,
    )


def run(options: Options, settings: RunSettings) -> None:
    """Verify and repair. Raises UserError, and JobFailed where something stays damaged."""
    if settings.overwrite:
        raise UserError(
            "repair: --overwrite makes whole outputs again, repair only what is damaged; leave it "
            "out"
        )
    examined = examine(options.store, READERS)
    print_lines([findings for _, findings in examined])
    examined.sort(key=_when_made)
    for output, findings in examined:
        if not findings.problems and REPAIR_RECORD not in output.listing:
            continue
        if options.remove_damaged:
            _remove_damaged(output, findings)
        else:
            _redo(output, findings, options, settings)
    if not any(findings.problems for _, findings in examined):
        print(summary(options.store, [findings for _, findings in examined]))
    if options.gc:
        _collect(options.store)


def _when_made(item: tuple[Output, Findings]) -> tuple[bool, str]:
    """Inputs before what reads them: layers last, others by time."""
    output = item[0]
    return LAYERS in output.folder.split("/"), output.manifest.made_at if output.manifest else "9"


def _redo(output: Output, findings: Findings, options: Options, settings: RunSettings) -> None:
    """Do the damaged units of an output again and report what came of it."""
    place = output.place
    job = _job(output, findings)
    refuse_unnamed_code(job, place, options.own_class)
    units = {*findings.damaged_units, *(output.units.keys() - output.markers.keys())}
    if units:
        refuse_other_software(job, place)
        refuse_other_inputs(job, place)
        refuse_absent_inputs(job, output, units, {problem.file for problem in findings.problems})
    record = _prepare(output, findings)
    threads = int(
        job.recipe.get("threads", settings.threads_per_worker)
    )  # of the recipe: a network's bits depend on it
    manifest = run_job(job, replace(settings, threads_per_worker=threads), {})
    again = _read_again(place)
    problems = _look_again(again, set(record["units"]))
    if problems:
        with place.alone():
            place.remove_folder(REPAIR_RECORD.partition("/")[0])
        lines = "; ".join(problem.line() for problem in problems[:3])
        raise JobFailed(
            f"{place.url} was done again and is as wrong as before ({lines}): its inputs or the "
            f"software give just this"
        )
    for line in _told(again, record, manifest):
        print(line)
    with place.alone():
        for name in record["damaged"]:
            if name not in again.expected and name.partition("/")[0] not in (
                "plan",
                "done",
                PIECES,
            ):
                place.remove(name)
        place.remove_folder(REPAIR_RECORD.partition("/")[0])


def _job(output: Output, findings: Findings) -> Job:
    """The job that made the output, with all its units.

    Raises UserError where it cannot be known.
    """
    url = output.place.url
    broken = [problem for problem in findings.problems if problem.mend == COMMAND]
    if output.planned is None and not broken:
        raise UserError(
            f"{url} has no units that can be done again: give the command that made it, with "
            f"--overwrite"
        )
    if broken or JOB_NAME not in output.listing:
        why = (
            f"{broken[0].file} is damaged or missing"
            if broken
            else f"it has no {JOB_NAME}, as older versions made it"
        )
        raise UserError(
            f"{url} cannot be done again from here: {why}; give 'repair {url} --remove-damaged', "
            "and then the command that made it"
        )
    try:
        job = Job.from_json(output.place.read(JOB_NAME).decode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{url}/{JOB_NAME} is damaged ({error}): give 'repair {url} --remove-damaged', "
            "and then the command that made it"
        ) from error
    folders = {key: str(job.settings[key] or "") for key in ("out", "store") if key in job.settings}
    moved: dict[str, Any] = {key: _moved(value, job.output, url) for key, value in folders.items()}
    inputs = {
        name: {**entry, "url": _moved(entry["url"], job.output, url)}
        for name, entry in job.inputs.items()
    }
    return replace(
        job,
        output=url,
        settings={**job.settings, **moved},
        inputs=inputs,
        units=planned_units(output.place),
    )


def _moved(above: str, old: str, new: str) -> str:
    """Where a folder that is, or holds, the output lies now; what is elsewhere stays."""
    below = old.removeprefix(above.rstrip("/"))
    holds = bool(above) and old.startswith(above.rstrip("/")) and below[:1] in ("", "/")
    return new.removesuffix(below) if holds and new.endswith(below) else above


def _prepare(output: Output, findings: Findings) -> dict[str, Any]:
    """Write down what was there, then take away the markers of the damaged units, and what hides
    them.
    """
    place = output.place
    with place.alone():
        record = _record(output, findings)
        place.write(REPAIR_RECORD, (json.dumps(record, sort_keys=True, indent=1) + "\n").encode())
        _remove_markers(output, findings)
        for name in (MANIFEST_NAME, PARTS_NAME):
            place.remove(name)  # so that nobody takes the output for whole
    return record


def _record(output: Output, findings: Findings) -> dict[str, Any]:
    """What was there: content, versions, the damaged units' files. What an interrupted repair wrote
    down is older.
    """
    old: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):  # damaged: absent
        old = _checked_record(json.loads(output.place.read(REPAIR_RECORD)))
    units: dict[str, dict[str, str]] = {unit: {} for unit in findings.damaged_units}
    for name, (unit, entry) in output.expected.items():
        if unit in units:
            units[unit][name] = entry.sha256
    damaged = {problem.file for problem in findings.problems if problem.mend == REDO}
    manifest = output.manifest
    return {
        "schema": "rrt-repair/1",
        "content": old.get("content") or _content_before(output, findings),
        "versions": old.get("versions") or (manifest.versions if manifest else {}),
        "units": {
            **units,
            **{unit: files for unit, files in old.get("units", {}).items() if files},
        },
        "damaged": sorted({*damaged, *old.get("damaged", ())}),
    }


def _checked_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record as it is. Raises ValueError, TypeError or KeyError where it is none."""
    for name in record["damaged"]:  # they are removed at the end
        check_inside(name)
    for unit, files in record["units"].items():
        check_unit_name(unit)
        for name in files:
            check_inside(name)
    return record


def _content_before(output: Output, findings: Findings) -> str:
    """The output's content hash before any damage: of the manifest, else of what parts table or
    markers tell; or "".
    """
    manifest = output.manifest
    if manifest is not None and not any(
        problem.file == MANIFEST_NAME for problem in findings.problems
    ):
        return manifest.content
    if manifest is not None and output.parts:
        return content_hash(
            [entry for _, entry in output.parts.values()], manifest.facts.get("units")
        )
    if output.units and len(output.markers) == len(output.units):
        files = [entry for marker in output.markers.values() for entry in marker.files]
        return content_hash(
            files,
            {unit: marker.summary for unit, marker in output.markers.items() if marker.summary},
        )
    return ""


def _remove_markers(output: Output, findings: Findings) -> None:
    """Remove the markers of the damaged units, and of their pieces those that name damaged
    files.
    """
    damaged = {problem.file for problem in findings.problems if problem.mend == REDO}
    for unit in findings.damaged_units:
        output.place.remove(f"done/{unit}.json")
    for name in output.listing:
        if name.startswith(f"{PIECES}/"):
            marker = output.pieces.get(name)
            if name in damaged or (marker and any(entry.name in damaged for entry in marker.files)):
                output.place.remove(name)


def _remove_damaged(output: Output, findings: Findings) -> None:
    """Leave what is whole: the command that made the output goes on from there."""
    place = output.place
    with place.alone():
        _remove_markers(output, findings)
        damaged = {problem.file for problem in findings.problems if problem.mend == REDO}
        plan = {problem.file for problem in findings.problems if problem.mend == COMMAND}
        if JOB_NAME in plan and PLAN_NAME not in plan:
            plan.discard(JOB_NAME)  # it is written again
        for name in (MANIFEST_NAME, PARTS_NAME, *sorted(damaged | plan)):
            place.remove(name)
    named = f" ({', '.join(findings.damaged_units)})" if findings.damaged_units else ""
    print(
        f"{place.url}: {len(findings.damaged_units):,} units were taken back{named}; "
        "give the command that made it again"
    )


def _read_again(place: Place) -> Output:
    output = next(one for one in find_outputs(place) if one.folder == "")
    with ThreadPoolExecutor(READERS) as pool:
        read_output(output, pool)
    return output


def _look_again(output: Output, units: set[str]) -> list[Any]:
    """Problems of the output's manifest and markers, and of the files of the units that were done
    again.
    """
    checks = FileChecks(output, False, None)
    groups = [group for group in groups_of(output) if group[0][0] in units]
    with ThreadPoolExecutor(READERS) as pool:
        found = [
            problem for result in pool.map(checks.check, groups) for problem in result.problems
        ]
    return [*findings_of(output).problems, *found]


def _told(output: Output, record: Mapping[str, Any], manifest: Manifest) -> Iterable[str]:
    """What came of it, a line each."""
    units = sorted(record["units"])
    done = (
        f"{len(units):,} of {len(output.units):,} units were done again"
        if units
        else "the manifest was written again"
    )
    named = f": {', '.join(units[:MOST_NAMED])}" if units else ""
    if not record["content"]:
        yield f"{output.place.url}: {done}{named}; what its content was is not known"
        return
    if manifest.content == record["content"]:
        yield (
            f"{output.place.url}: {done}{named}; it is what it was, byte for byte (content "
            f"{manifest.content[:12]})"
        )
        return
    yield (
        f"{output.place.url}: {done}{named}; its content was {record['content'][:12]}, is now "
        f"{manifest.content[:12]}: "
        "what was made from it (an index, a shortlist) must be made again"
    )
    for unit in units:
        yield from _unit_told(output, unit, record["units"][unit])
    versions = list(differences(record["versions"], software_versions()))
    if versions:
        yield (
            f"{output.place.url}: other software than before may give other bytes "
            f"({'; '.join(versions)})"
        )


def _unit_told(output: Output, unit: str, before: Mapping[str, str]) -> Iterable[str]:
    """What differs between a unit's files before and now: images that are gone or others, or the
    files alone.
    """
    now = (
        {entry.name: entry for entry in output.markers[unit].files}
        if unit in output.markers
        else {}
    )
    new = sorted(name for name in now if name not in before)
    if not new:
        return
    lines: list[str] = []
    for name in new:
        stem = name.split(".")[0]
        old = next(
            (other for other in before if other.split(".")[0] == stem and other not in now), None
        )
        if name.startswith("global/") and old is not None:
            lines += _rows_told(output.place, old, now[name])
    if not lines:
        lines = [f"other than before: {', '.join(new)}"]
    yield from (f"  {unit}: {line}" for line in lines[:MOST_NAMED])
    if len(lines) > MOST_NAMED:
        yield f"  {unit}: and {len(lines) - MOST_NAMED:,} rows more"


def _rows_told(place: Place, old: str, entry: FileEntry) -> list[str]:
    """How the images of a part's rows changed, as the globals before and now tell."""
    columns = ["record_id", "sha256", "status"]
    try:
        before, now = (
            pq.read_table(io.BytesIO(place.read(name)), columns=columns).to_pylist()
            for name in (old, entry.name)
        )
    except (*UNREADABLE, pa.ArrowException):
        return []
    lines = []
    for row, (was, is_) in enumerate(zip(before, now, strict=False)):
        if was == is_:
            continue
        if is_["record_id"] != was["record_id"]:
            what = f"was the row of {was['record_id']}"
        elif is_["status"] != was["status"]:
            told = {
                "ok": "is described now, and failed before",
                "failed": "failed now, and was described before",
            }
            what = told.get(is_["status"], is_["status"])
        else:
            what = "its image file is another than before"
        lines.append(f"row {row}, {is_['record_id']}: {what}")
    return lines


def _collect(url: str) -> None:
    """Remove files that nothing names and that are older than a day, in outputs that are whole.

    Others' files stay.
    """
    for output, findings in examine(url, READERS, quick=True):
        place = output.place
        if findings.problems:
            print(f"{place.url}: it is not whole, so that nothing is removed", file=sys.stderr)
            continue
        with place.alone():
            old = [
                one
                for one in findings.leftovers
                if one.ours and one.age is not None and one.age > GC_SECONDS
            ]
            for leftover in old:
                place.remove(leftover.file)
        if old:
            size = sum(leftover.bytes for leftover in old)
            print(
                f"{place.url}: {len(old):,} files that nothing named were removed ({size:,} bytes)"
            )
