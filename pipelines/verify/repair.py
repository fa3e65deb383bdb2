"""repair: does just the damaged units of an output again, and says what has changed.

The markers of the damaged units are removed and the job of plan/job.json is run: the commit
protocol does the rest. What the output was before is kept in repair/record.json until the end: the
next repair goes on where one was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.inputs import find_input
from pipelines.jobs.lease import held
from pipelines.jobs.plan import planned_units
from pipelines.jobs.replacing import finish_swap
from pipelines.storage.place import open_place
from pipelines.storage.tables import reading
from pipelines.verify.bookkeeping import DONE, read_output
from pipelines.verify.files import FileChecks, groups_of, problems_of
from pipelines.verify.outputs import Output, find_outputs
from pipelines.verify.problems import COMMAND, REDO, UNLINK, Findings, Problem
from pipelines.verify.repair_inputs import (
    refuse_absent_inputs,
    refuse_other_inputs,
    refuse_other_software,
    refuse_unnamed_code,
)
from pipelines.verify.repair_options import Options as Options
from pipelines.verify.repair_record import Record, changes, new_record
from pipelines.verify.verify import examine, findings_of, print_lines, summary
from schemas.errors import JobFailed, UserError
from schemas.layout import (
    JOB_NAME,
    LAYERS,
    NEXT,
    PIECES,
    PLAN_FOLDER,
    PLAN_NAME,
    REPAIR_RECORD,
    SWAP_NAME,
    is_layout_name,
)
from schemas.manifest import MANIFEST_NAME, PARTS_NAME
from schemas.plan import Job

GC_SECONDS = 24 * 3600.0
READERS = 2
REPAIR_FOLDER = REPAIR_RECORD.partition("/")[0]


def run(options: Options, settings: RunSettings = RunSettings()) -> None:
    """Verify and repair. Raises UserError, and JobFailed where something stays damaged."""
    if settings.overwrite:
        raise UserError(
            "repair: --overwrite makes whole outputs again, repair only what is damaged; leave it "
            "out"
        )
    for output in find_outputs(open_place(options.store)):
        if f"{NEXT}/{SWAP_NAME}" in output.listing:
            with held(output.place):
                finish_swap(output.place)

    examined = examine(options.store, READERS)
    print_lines([findings for _, findings in examined])

    for output, findings in _by_inputs(examined):
        if findings.problems or REPAIR_RECORD in output.listing:
            for link in _files(findings, UNLINK):
                raise UserError(
                    f"{output.place.url}/{link} is a link to a folder elsewhere, behind which "
                    f"nothing is removed or written: put the folder itself in its place, then "
                    f"give 'repair' again"
                )
            if options.remove_damaged:
                _remove_damaged(output, findings)
            else:
                _redo(output, findings, options, settings)

    if not any(findings.problems for _, findings in examined):
        print(summary(options.store, [findings for _, findings in examined]))
    if options.gc:
        _collect(options.store)


def _by_inputs(examined: list[tuple[Output, Findings]]) -> list[tuple[Output, Findings]]:
    """Inputs before what reads them; unfinished outputs after others, and layers last."""
    outputs = [output for output, _ in examined]
    contents = {one.manifest.content: one for one in outputs if one.manifest is not None}

    def made_of(output: Output) -> int:
        """How many of these outputs it was made of, and they of, and so on."""
        found, left = set[str](), [output]
        while left:
            read = left.pop().recipe.get("inputs")
            named = read.values() if isinstance(read, dict) else ()
            new = {one for one in named if isinstance(one, str) and one in contents} - found
            found |= new
            left += [contents[one] for one in new]
        return len(found)

    def when(item: tuple[Output, Findings]) -> tuple[bool, bool, int, str]:
        output = item[0]
        made_at = output.manifest.made_at if output.manifest else ""
        return LAYERS in output.folder.split("/"), not made_at, made_of(output), made_at

    return sorted(examined, key=when)


def _files(findings: Findings, fix: str) -> list[str]:
    """Files with problems that have this fix, sorted."""
    return sorted({problem.file for problem in findings.problems if problem.fix == fix})


def _redo(output: Output, findings: Findings, options: Options, settings: RunSettings) -> None:
    """Do the damaged units of an output again and report what came of it."""
    place = output.place
    units = {*findings.damaged_units, *(output.units.keys() - output.markers.keys())}
    with reading(place, JOB_NAME):  # its settings are of any types
        job = _job(output, findings)
        refuse_unnamed_code(job, place, options.own_class)
        if units:
            refuse_other_software(job, place)
            refuse_other_inputs(job, place)
            refuse_absent_inputs(job, output, units, _files(findings, REDO))

        # of the recipe, since a network's bits depend on it
        threads = int(job.recipe.get("threads", settings.threads_per_worker))

    record = _prepare(output, findings)
    manifest = run_job(job, replace(settings, threads_per_worker=threads), {})
    again = next(one for one in find_outputs(place) if one.folder == "")
    problems = _look_again(again, record.units)

    with held(place):
        for name in filter(is_layout_name, record.damaged) if not problems else ():
            folder = name.partition("/")[0]
            if name not in again.expected and folder not in (PLAN_FOLDER, DONE, PIECES):
                again.remove(name)
        place.remove_folder(REPAIR_FOLDER)
    if problems:
        lines = "; ".join(problem.line() for problem in problems[:3])
        raise JobFailed(
            f"{place.url} was done again and is as wrong as before ({lines}): its inputs or the "
            f"software give just this"
        )
    print(*changes(again, record, manifest), sep="\n")


def _job(output: Output, findings: Findings) -> Job:
    """The job that made the output, with all its units.

    Raises UserError where it cannot be known.
    """
    url, why = output.place.url, ""
    broken = _files(findings, COMMAND)
    if broken:
        why = f"{broken[0]} is damaged or missing"
    elif output.planned is None:
        raise UserError(
            f"{url} has no units that can be done again: give the command that made it, with "
            f"--overwrite"
        )
    elif JOB_NAME not in output.listing:
        why = f"it has no {JOB_NAME}, as older versions made it"
    if why:
        raise UserError(
            f"{url} cannot be done again from here: {why}; give 'repair {url} --remove-damaged', "
            "and then the command that made it"
        )

    job = Job.from_json(output.place.read_record(JOB_NAME).decode())
    folders = {key: str(job.settings[key] or "") for key in ("out", "store") if key in job.settings}
    moved: dict[str, Any] = {key: _moved(old, job.output, url) for key, old in folders.items()}
    inputs = {
        name: {
            **entry,
            "url": find_input(entry["url"], entry["content"], url)
            or _moved(entry["url"], job.output, url),
        }
        for name, entry in job.inputs.items()
    }
    for key, below in (("queries", ""), ("index", "/search"), ("ground_truth", "")):
        if key in job.settings and key in inputs:
            moved[key] = inputs[key]["url"].removesuffix(below)
    settings, units = {**job.settings, **moved}, planned_units(output.place)
    return replace(job, output=url, settings=settings, inputs=inputs, units=units)


def _moved(above: str, old: str, new: str) -> str:
    """Where a folder that is, or holds, the output lies now; what is elsewhere stays."""
    below = old.removeprefix(above.rstrip("/"))
    holds = bool(above) and old.startswith(above.rstrip("/")) and below[:1] in ("", "/")
    return new.removesuffix(below) if holds and new.endswith(below) else above


def _prepare(output: Output, findings: Findings) -> Record:
    """Write down what the output was, then remove the markers of the damaged units."""
    with held(output.place):
        record = new_record(output, findings)
        output.place.write(REPAIR_RECORD, record.to_bytes())
        _remove_markers(output, findings)
        for name in (MANIFEST_NAME, PARTS_NAME):  # so that nobody takes the output for whole
            output.remove(name)
    return record


def _remove_markers(output: Output, findings: Findings) -> None:
    """Remove the markers of the damaged units, and of their pieces those that name damaged
    files.
    """
    damaged = set(_files(findings, REDO))
    for unit in findings.damaged_units:
        output.remove(f"{DONE}/{unit}.json")
    for name in output.listing:
        if name.startswith(f"{PIECES}/"):
            marker = output.pieces.get(name)
            named = {entry.name for entry in marker.files} if marker else set()
            if damaged & {name, *named}:
                output.remove(name)


def _remove_damaged(output: Output, findings: Findings) -> None:
    """Leave what is whole: the command that made the output goes on from there."""
    plan = set(_files(findings, COMMAND))
    if PLAN_NAME not in plan:
        plan.discard(JOB_NAME)  # it is written again
    with held(output.place):
        _remove_markers(output, findings)
        # others are its owner's, whatever a marker names
        own = filter(is_layout_name, _files(findings, REDO))
        for name in (MANIFEST_NAME, PARTS_NAME, *own, *sorted(plan)):
            output.remove(name)
    units = findings.damaged_units
    named = f" ({', '.join(units)})" if units else ""
    print(
        f"{output.place.url}: {len(units):,} units were taken back{named}; give the command that "
        f"made it again"
    )


def _look_again(output: Output, units: Collection[str]) -> list[Problem]:
    """Problems of the output's manifest and markers, and of the files of some units."""
    with ThreadPoolExecutor(READERS) as pool:
        read_output(output, pool)
        groups = [group for group in groups_of(output) if group.unit in units]
        checked = list(pool.map(FileChecks(output, False).check, groups))
    return [*findings_of(output).problems, *problems_of(checked)]


def _collect(url: str) -> None:
    """Remove files that nothing names and that are older than a day, in outputs that are whole.

    Others' files stay.
    """
    for output, findings in examine(url, READERS, quick=True):
        if findings.problems:
            print(f"{output.place.url}: it is not whole: nothing is removed", file=sys.stderr)
            continue
        old = [one for one in findings.leftovers if one.ours and (one.age or 0.0) > GC_SECONDS]
        if old:
            with held(output.place):
                for leftover in old:
                    output.remove(leftover.file)
            size = sum(leftover.bytes for leftover in old)
            what = f"{len(old):,} files that nothing named were removed ({size:,} bytes)"
            print(f"{output.place.url}: {what}")
