"""verify: is an output folder what its manifest says, byte for byte and row for row?

It says which unit must be done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from pipelines.engines.progress import Progress
from pipelines.engines.settings import RunSettings
from pipelines.storage.place import open_place
from pipelines.verify.bookkeeping import read_output
from pipelines.verify.files import FileChecks, groups_of, problems_of
from pipelines.verify.leftovers import leftovers
from pipelines.verify.options import Options as Options
from pipelines.verify.outputs import Output, find_outputs
from pipelines.verify.problems import COMMAND, UNLINK, Findings, words
from schemas.errors import JobFailed, UserError
from schemas.layout import BESIDE_NAME, NEXT

TITLE = "verify   "
NAMED = 8  # units in a summary


def run(options: Options, settings: RunSettings = RunSettings()) -> list[Findings]:
    """Verify, and print a line a problem; no setting is used.

    Raises UserError, and JobFailed where there are problems.
    """
    threads = options.threads or min(4, os.cpu_count() or 1)
    findings = verify(options.store, threads, quick=options.quick)
    if options.json:
        _write_json(options, findings)
    print_lines(findings)
    if any(one.problems for one in findings):
        raise JobFailed(f"{summary(options.store, findings)}; {_next(options.store, findings)}")
    return findings


def _next(url: str, findings: list[Findings]) -> str:
    """What to do, in words."""
    fixes = {problem.fix for one in findings for problem in one.problems}
    advice = f"'repair {url}' does just that again"
    if any(one.missing for one in findings):
        advice = f"the command that makes it goes on from there, as does 'repair {url}'"
    first = {
        UNLINK: "first put the folders themselves where there are links to them",
        COMMAND: "first give the command that made it again: a plan is damaged, which 'repair' "
        "cannot write",
    }
    return next((first[fix] for fix in first if fix in fixes), advice)


def summarise(options: Options, findings: list[Findings]) -> None:
    """The last line, where nothing is wrong."""
    print(f"{summary(options.store, findings)}{' (sizes only)' if options.quick else ''}")


def verify(url: str, threads: int = 2, *, quick: bool = False) -> list[Findings]:
    """The findings of all outputs at or below a place: see `examine`."""
    return [findings for _, findings in examine(url, threads, quick=quick)]


def examine(url: str, threads: int = 2, *, quick: bool = False) -> list[tuple[Output, Findings]]:
    """All outputs at or below a place, each with its findings; writes nothing.

    A file of 256 MB at most, or two pieces of 8 MB, is in memory for each thread, and 18 bytes for
    each ok row of a store, 42 while their record ids are compared. Raises UserError where there is
    no output.
    """
    place = open_place(url)
    outputs = find_outputs(place)
    if not outputs:
        raise UserError(f"{place.url}: there is no output here: no manifest.json in it or below it")

    with ThreadPoolExecutor(threads) as pool:
        for output in outputs:
            read_output(output, pool)
        examined = [(output, findings_of(output)) for output in outputs]
        progress = Progress(TITLE, sum(findings.files for _, findings in examined), "files")
        done = 0
        try:
            for output, findings in examined:
                checks = FileChecks(output, quick)
                futures = [pool.submit(checks.check, group) for group in groups_of(output)]
                for future in as_completed(futures):
                    done += len(future.result().files)
                    progress.show(done)
                findings.problems += problems_of([future.result() for future in futures])
        finally:
            pool.shutdown(cancel_futures=True)
            progress.clear()
    progress.finish(done)
    return examined


def findings_of(output: Output) -> Findings:
    """The findings before any file is looked at."""
    expected = output.expected.values()
    return Findings(
        folder=output.folder,
        url=output.place.url,
        stage=str(output.recipe.get("stage", "")),
        finished=output.manifest is not None,
        missing=output.missing,
        units=len(output.units) or len({unit for unit, _ in expected}),
        files=len(expected),
        bytes=sum(entry.bytes for _, entry in expected),
        counts=output.manifest.counts if output.manifest else None,
        problems=output.report.problems,
        leftovers=leftovers(output),
        processors=dict(
            Counter(
                marker.versions["vector units"]
                for marker in output.markers.values()
                if "vector units" in marker.versions
            )
        ),
    )


def print_lines(findings: list[Findings]) -> None:
    """A line a problem, then a line for what nothing names."""
    lines = [problem.line(one.folder) for one in findings for problem in one.problems]
    for one in findings:
        sizes = {leftover.file: leftover.bytes for leftover in one.leftovers}
        if f"{NEXT}/{BESIDE_NAME}" in sizes:
            size = sum(sizes.pop(name) for name in [*sizes] if name.startswith(f"{NEXT}/"))
            lines.append(
                f"{one.url}/{NEXT}: what an interrupted --overwrite has made so far "
                f"({size:,} bytes); the same command goes on from there"
            )
        if sizes:
            names, size = _listed([*sizes], 1), sum(sizes.values())
            lines.append(f"{one.url}: nothing names {names} ({size:,} bytes); this is no damage")
        if len(one.processors) > 1:
            parts = ", ".join(f"{n:,} by {units}" for units, n in sorted(one.processors.items()))
            lines.append(
                f"{one.url}: parts were made by processors with different vector units ({parts}): "
                "descriptors may differ by 1e-4, logits by 1e-5; this is no damage"
            )
    for line in lines:  # names of files need not be text that can be shown
        print(line.encode(errors="backslashreplace").decode())


def summary(url: str, findings: list[Findings]) -> str:
    """One sentence."""
    problems = sum(len(one.problems) for one in findings)
    if not problems:
        rows = f": {words(findings[0].counts)}" if findings[0].counts and not findings[1:] else ""
        outputs = f"{len(findings):,} outputs, " if len(findings) > 1 else ""
        files, size = sum(one.files for one in findings), sum(one.bytes for one in findings)
        return f"{url} is whole{rows} ({outputs}{files:,} files, {size:,} bytes)"

    units = [f"{one.folder}/{unit}".lstrip("/") for one in findings for unit in one.damaged_units]
    total, missing = sum(one.units for one in findings), sum(one.missing for one in findings)
    what = [f"{missing:,} of {total:,} units are not done yet"] if missing else []
    if units:
        named = _listed(units, NAMED)
        what.append(f"{len(units):,} of {total:,} units must be done again: {named}")
    sentence = "; ".join(what or ["no unit must be done again"])
    return f"{url} has {problems:,} problem{'s' if problems > 1 else ''}; {sentence}"


def _listed(names: list[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _write_json(options: Options, findings: list[Findings]) -> None:
    record: dict[str, Any] = {
        "schema": "rrt-findings/1",
        "url": open_place(options.store).url,
        "quick": options.quick,
        "clean": not any(one.problems for one in findings),
        "outputs": [one.to_json() for one in findings],
    }
    try:
        with open(options.json, "w") as file:
            file.write(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        why = f"--json {options.json} cannot be written: {error.strerror}"
        raise UserError(f"verify: {why}") from error
