"""verify: is an output folder what its manifest says, byte for byte and row for row? Says which
unit to do again.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from pipelines.engines.progress import Progress
from pipelines.engines.settings import JobFailed
from pipelines.options import option
from pipelines.storage.place import open_place
from pipelines.verify.bookkeeping import Output, find_outputs, read_output
from pipelines.verify.files import FileChecks, GroupFindings, groups_of, repeated
from pipelines.verify.leftovers import leftovers
from pipelines.verify.problems import COMMAND, Findings, Problem
from schemas.errors import UserError
from schemas.layout import LAYERS
from schemas.manifest import FileEntry

TITLE = "verify   "
NAMED = 8  # units in a summary


@dataclass(frozen=True)
class Options:
    """Options of `verify`."""

    store: str = option(
        "an output folder (path or URL): a store, an index, a run; all outputs below it",
        positional=True,
    )
    quick: bool = option("look at manifests, markers and sizes alone; read no data", False)
    json: str = option("write what was found to this file", "")


@dataclass(frozen=True)
class Settings:
    """How to run."""

    threads: int = option("files that are read at the same time; 0: one a core, 4 at most", 0)

    @property
    def count(self) -> int:
        """Threads to read with. Raises UserError."""
        if not 0 <= self.threads <= 64:
            raise UserError(f"verify: --threads is {self.threads}; it must lie in 0 .. 64")
        return self.threads or min(4, os.cpu_count() or 1)


def run(options: Options, settings: Settings) -> list[Findings]:
    """Verify, and print a line a problem.

    Raises UserError, and JobFailed where there are problems.
    """
    found = verify(options.store, settings.count, quick=options.quick)
    if options.json:
        _write_json(options, found)
    print_lines(found)
    if any(one.problems for one in found):
        raise JobFailed(f"{summary(options.store, found)}; {_mend(options.store, found)}")
    return found


def _mend(url: str, found: list[Findings]) -> str:
    """What to do, in words."""
    if any(problem.mend == COMMAND for one in found for problem in one.problems):
        return (
            "first give the command that made it again: a plan is damaged, which 'repair' cannot "
            "write"
        )
    if any(one.missing for one in found):
        return f"the command that makes it goes on from there, as does 'repair {url}'"
    return f"'repair {url}' does just that again"


def summarise(options: Options, found: list[Findings]) -> None:
    """The last line, where nothing is wrong."""
    print(f"{summary(options.store, found)}{' (sizes only)' if options.quick else ''}")


def verify(url: str, threads: int = 2, *, quick: bool = False) -> list[Findings]:
    """What is found in all outputs at or below a place, each with its problems: see `examine`."""
    return [findings for _, findings in examine(url, threads, quick=quick)]


def examine(url: str, threads: int = 2, *, quick: bool = False) -> list[tuple[Output, Findings]]:
    """All outputs at or below a place, each with what is found; writes nothing.

    A file of 256 MB at most, or a piece of 8 MB, is in memory for each thread, and 18 bytes for
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
        found = [findings_of(output) for output in outputs]
        progress = Progress(TITLE, sum(len(output.expected) for output in outputs), "files")
        try:
            for output, findings in zip(outputs, found, strict=True):
                parent, before = _store_of(output, outputs, pool), sum(one.files for one in found)
                _check_files(output, parent, findings, quick, pool, progress, before)
        finally:
            pool.shutdown(cancel_futures=True)
            progress.clear()
    progress.finish(sum(findings.files for findings in found))
    return list(zip(outputs, found, strict=True))


def _check_files(
    output: Output,
    parent: Output | None,
    findings: Findings,
    quick: bool,
    pool: ThreadPoolExecutor,
    progress: Progress,
    before: int,
) -> None:
    parents: dict[int, FileEntry] | None = None
    if parent is not None and output.manifest is not None:
        files = {name: entry for name, (_, entry) in parent.expected.items()}
        named = dict(output.manifest.facts.get("globals") or {})
        parents = {int(number): files[name] for number, name in named.items() if name in files}
    checks = FileChecks(output, quick, parents.get if parents is not None else None)
    futures = [pool.submit(checks.check, group) for group in groups_of(output)]
    done: list[GroupFindings] = []
    for future in as_completed(futures):
        result = future.result()
        done.append(result)
        findings.files += result.files
        findings.bytes += result.bytes
        progress.show(before + findings.files)
    told = {(problem.unit, problem.file) for problem in findings.problems}
    contents = sorted(
        (p for one in done for p in one.problems), key=lambda p: (p.unit, p.file, p.row or 0)
    )
    wrong_ids = {problem.file for problem in contents}
    later: list[Problem] = [problem for problem in repeated(done) if problem.file not in wrong_ids]
    findings.problems += [
        p for p in [*contents, *later] if p.row is not None or (p.unit, p.file) not in told
    ]


def _store_of(output: Output, outputs: list[Output], pool: ThreadPoolExecutor) -> Output | None:
    """The store that a layer belongs to, where it is there."""
    above, layer, _ = output.place.url.rpartition(f"/{LAYERS}/")
    if not layer or output.manifest is None:
        return None
    store = next((one for one in outputs if one.place.url == above), None)
    if store is None:  # the layer alone is verified
        store = next((one for one in find_outputs(open_place(above)) if one.folder == ""), None)
        if store is not None:
            read_output(store, pool)
    return store


def print_lines(found: list[Findings]) -> None:
    """A line a problem, then a line for what nothing names."""
    for findings in found:
        for problem in findings.problems:
            print(problem.line(findings.folder))
    for findings in found:
        if findings.leftovers:
            size = sum(leftover.bytes for leftover in findings.leftovers)
            first = findings.leftovers[0].file
            more = (
                f"{first} and {len(findings.leftovers) - 1:,} more"
                if len(findings.leftovers) > 1
                else first
            )
            print(f"{findings.url}: nothing names {more} ({size:,} bytes); this is no damage")


def summary(url: str, found: list[Findings]) -> str:
    """One sentence."""
    problems = sum(len(one.problems) for one in found)
    if not problems:
        rows = ""
        if len(found) == 1 and found[0].counts:
            counts = found[0].counts
            rows = (
                f": {counts.inputs:,} inputs = {counts.succeeded:,} succeeded + {counts.failed:,} "
                f"failed"
            )
        outputs = f"{len(found):,} outputs, " if len(found) > 1 else ""
        files, size = sum(one.files for one in found), sum(one.bytes for one in found)
        return f"{url} is whole{rows} ({outputs}{files:,} files, {size:,} bytes)"
    units = [f"{one.folder}/{unit}".lstrip("/") for one in found for unit in one.damaged_units]
    total = sum(one.units for one in found)
    named = ", ".join(units[:NAMED]) + (
        f" and {len(units) - NAMED:,} more" if len(units) > NAMED else ""
    )
    missing = sum(one.missing for one in found)
    what = (
        f"{len(units):,} of {total:,} units must be done again: {named}"
        if units
        else "no unit must be done again"
    )
    if missing:
        what = f"{missing:,} of {total:,} units are not done yet" + (f"; {what}" if units else "")
    return f"{url} has {problems:,} problem{'s' if problems > 1 else ''}; {what}"


def _write_json(options: Options, found: list[Findings]) -> None:
    record: dict[str, Any] = {
        "schema": "rrt-findings/1",
        "url": open_place(options.store).url,
        "quick": options.quick,
        "clean": not any(one.problems for one in found),
        "outputs": [one.to_json() for one in found],
    }
    try:
        with open(options.json, "w") as file:
            file.write(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"verify: --json {options.json} cannot be written: {error.strerror}"
        ) from error


def findings_of(output: Output) -> Findings:
    """The findings before any file is looked at."""
    manifest = output.manifest
    recipe = (manifest.recipe if manifest else (output.planned or {}).get("recipe")) or {}
    return Findings(
        folder=output.folder,
        url=output.place.url,
        stage=str(recipe.get("stage", "")),
        finished=manifest is not None,
        missing=output.missing,
        units=len(output.units) or len({unit for unit, _ in output.expected.values()}),
        counts=manifest.counts if manifest else None,
        problems=output.problems,
        leftovers=leftovers(output),
    )
