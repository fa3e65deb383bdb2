"""Manifest, plan, markers and parts table of an output: read, and checked on each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from pipelines.jobs.manifests import parts_of
from pipelines.verify.outputs import Output
from pipelines.verify.problems import COMMAND, FINISH, REWRITE, UNLINK, words
from schemas.inside import check_inside, read_json
from schemas.layout import (
    IMAGES_NAME,
    JOB_NAME,
    LAYER,
    NEXT,
    PIECES,
    PLAN_NAME,
    REPAIR_RECORD,
    ROTATION_NAME,
    SOURCE_NAME,
    SWAP_NAME,
)
from schemas.manifest import (
    MANIFEST_NAME,
    PARTS_NAME,
    Counts,
    FileEntry,
    Manifest,
    Marker,
    recipe_hash,
)
from schemas.plan import Job, Plan

FULL = f"local/{LAYER}/"  # locals of all ok rows
DONE = "done"


def read_output(output: Output, pool: ThreadPoolExecutor) -> None:
    """Read and check all that is no data; what is wrong is in `output.report`."""
    if f"{NEXT}/{SWAP_NAME}" in output.listing and MANIFEST_NAME not in output.listing:
        what = "it is missing: a new output is being put in the place of the old one"
        output.report.add(MANIFEST_NAME, what, fix=FINISH)
        return

    _read_manifest(output)
    _read_plan(output)
    _read_markers(output, pool)
    _read_parts(output)
    _compare_files(output)
    _compare_manifest(output)
    _check_links(output)


def _read_manifest(output: Output) -> None:
    report = output.report
    if MANIFEST_NAME not in output.listing:
        what = "it is missing: the output is not finished, or a repair was interrupted"
        report.add(MANIFEST_NAME, what, fix=FINISH)
        return

    with report.reading(MANIFEST_NAME, fix=REWRITE):
        manifest = Manifest.from_bytes(output.place.read_record(MANIFEST_NAME))
        if recipe_hash(manifest.recipe) != manifest.recipe_hash:
            report.add(MANIFEST_NAME, "its recipe hash is not that of its recipe", fix=REWRITE)
        output.manifest = manifest


def _read_plan(output: Output) -> None:
    report = output.report
    if PLAN_NAME not in output.listing:
        if any(name.startswith(f"{DONE}/") for name in output.listing):
            report.add(PLAN_NAME, "it is missing", fix=COMMAND)
        return

    with report.reading(PLAN_NAME, fix=COMMAND):
        plan = Plan.from_bytes(output.place.read_record(PLAN_NAME))
        if recipe_hash(plan.recipe) != plan.recipe_hash:
            raise ValueError("its recipe hash is not that of its recipe")
        output.planned, output.units = plan.recipe, {unit.name: unit for unit in plan.units}
        _check_plan(output, plan)


def _check_plan(output: Output, plan: Plan) -> None:
    """What belongs to a plan: its job, its tables of images and archives, its rotation."""
    place, report, expected = output.place, output.report, dict[str, str]()
    if output.manifest is not None and output.manifest.recipe_hash != plan.recipe_hash:
        report.add(MANIFEST_NAME, f"its recipe is not that of {PLAN_NAME}", fix=REWRITE)

    if JOB_NAME in output.listing:
        with report.reading(JOB_NAME, fix=COMMAND):
            job = Job.from_json(place.read_record(JOB_NAME).decode())
            if job.recipe_hash != plan.recipe_hash:
                report.add(JOB_NAME, f"its recipe is not that of {PLAN_NAME}", fix=COMMAND)

    if "rotation" in plan.recipe:
        expected[ROTATION_NAME] = plan.recipe["rotation"]
    if SOURCE_NAME in output.listing:
        with report.reading(SOURCE_NAME, fix=COMMAND):
            source = read_json(place.read_record(SOURCE_NAME))
            expected |= {IMAGES_NAME: source["images_sha256"], **source.get("files", {})}
    for name, digest in expected.items():
        with report.reading(name, fix=COMMAND):
            if sha256(place.read(check_inside(name))).hexdigest() != digest:
                report.add(name, "its SHA-256 is not the one of the plan", fix=COMMAND)


def _read_markers(output: Output, pool: ThreadPoolExecutor) -> None:
    futures = {
        name: pool.submit(output.place.read_record, name)
        for name in output.listing
        if name.startswith((f"{PIECES}/", f"{DONE}/")) and name.endswith(".json")
    }
    for name, data in futures.items():
        folder, _, unit = name.removesuffix(".json").partition("/")
        if folder == PIECES:
            unit = unit.rpartition(".")[0]
        if output.units and unit not in output.units:
            continue  # a leftover

        with output.report.reading(name, unit=unit):
            marker = Marker.decoded(data.result())
            wrong = _marker_wrong(output, unit, marker, folder == PIECES)
            if wrong:
                output.report.add(name, wrong, unit=unit)
            elif folder == PIECES:
                output.pieces[name] = marker
            else:
                output.markers[unit] = marker

    for unit in output.units if output.manifest is not None else ():
        name = f"{DONE}/{unit}.json"
        if name not in output.listing:
            output.report.add(name, "the marker is missing", unit=unit)


def _marker_wrong(output: Output, name: str, marker: Marker, piece: bool) -> str:
    """What is wrong with a marker, in words; "" where nothing is."""
    planned, counts = output.units.get(name), marker.counts
    if marker.unit != name:
        return f"it is the marker of {marker.unit}"
    if output.recipe and marker.recipe != recipe_hash(output.recipe):
        return "it is of another recipe"
    if planned is not None and marker.slice != planned.slice:
        return "it is of another plan"

    counted_before = planned is not None and not piece and not planned.work.open
    inputs = planned.inputs if planned is not None and counted_before else counts.inputs
    if counts.inputs != inputs:
        return f"it counts {counts.inputs:,} inputs; the plan gave the unit {inputs:,}"

    rows_of = {"global/": counts.inputs, "failures/": counts.failed, FULL: counts.succeeded}
    for kind, count in rows_of.items():
        rows = [entry.rows for entry in marker.files if entry.name.startswith(kind)]
        if rows and sum(rows) != count:
            return f"it counts {words(counts)}; its files of {kind} have {sum(rows):,} rows"
    return ""


def _read_parts(output: Output) -> None:
    manifest, report = output.manifest, output.report
    if manifest is None:
        return

    with report.reading(PARTS_NAME, fix=REWRITE):
        files = parts_of(output.place, manifest)
        if files is None:
            absent = PARTS_NAME not in output.listing
            what = "it is missing" if absent else "its SHA-256 is not the one in the manifest"
            report.add(PARTS_NAME, what, fix=REWRITE)
            return

        output.parts = {entry.name: (unit, entry) for unit, entry in files}
        sums = {"files": len(files), "bytes": sum(entry.bytes for _, entry in files)}
        for key, value in sums.items():
            if manifest.parts.get(key) != value:
                what = f"it says {manifest.parts.get(key)} {key}; {PARTS_NAME} has {value:,}"
                report.add(MANIFEST_NAME, what, fix=REWRITE)


def _compare_files(output: Output) -> None:
    """The markers' files against those of the parts table, unit by unit."""
    listed: dict[str, dict[str, FileEntry]] = {}
    for name, (unit, entry) in output.parts.items():
        listed.setdefault(unit, {})[name] = entry

    for unit, marker in output.markers.items() if listed else ():
        named, of_table = {entry.name: entry for entry in marker.files}, listed.get(unit, {})
        for name in sorted(named.keys() | of_table.keys()):
            if named.get(name) != of_table.get(name):
                pair = ("marker", PARTS_NAME) if name in named else (PARTS_NAME, "marker")
                what = f"{name} is in the {pair[0]}, but not so in the {pair[1]}"
                output.report.add(f"{DONE}/{unit}.json", what, unit=unit)


def _compare_manifest(output: Output) -> None:
    """The manifest's content and counts against those of parts table and markers."""
    manifest, report = output.manifest, output.report
    if manifest is None:
        return

    for where, content in output.contents().items():
        alone = where == PARTS_NAME or not output.parts or not report.problems
        if content != manifest.content and alone:
            what = f"its content hash is not that of the files in {where}"
            report.add(MANIFEST_NAME, what, fix=REWRITE)

    if output.complete:
        pairs = [(output.units.get(unit), marker) for unit, marker in output.markers.items()]
        each = [unit.adds(marker.counts) if unit else marker.counts for unit, marker in pairs]
        counts = sum(each, Counts(0, 0, 0))
        if counts != manifest.counts:
            what = f"it counts {words(manifest.counts)}; the markers sum up to {words(counts)}"
            report.add(MANIFEST_NAME, what, fix=REWRITE)


def _check_links(output: Output) -> None:
    """A folder of the output's own may be no link: repair would remove and write behind it."""
    names = (*output.expected, PLAN_NAME, REPAIR_RECORD, f"{DONE}/", f"{PIECES}/")
    own = {name.partition("/")[0] for name in names}
    for link in output.links:
        if link.partition("/")[0] in own:
            what = "it is a link to a folder elsewhere, behind which nothing is read or removed"
            output.report.add(link, what, fix=UNLINK)
