"""Whether a repair has what it needs besides the output: the software and the inputs of its units.

All of it is looked at before anything is removed: nothing that is whole is given up for failed
rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence

from pipelines.exchange.import_options import STAGE as IMPORT
from pipelines.exchange.import_readers import open_reader
from pipelines.extract import lazy_locals as layers
from pipelines.extract.describer import STAGE
from pipelines.jobs.manifests import read_manifest
from pipelines.jobs.plan import differences
from pipelines.sources.archive_images import archive_url
from pipelines.sources.archives import archive_size
from pipelines.sources.item import read_location
from pipelines.stages import worker_class
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from pipelines.stores.image_plan import read_rows, read_slice
from pipelines.verify.outputs import Output
from pipelines.verify.problems import UNREADABLE
from rrt_core import extractors, rerankers
from schemas import failures
from schemas.errors import UserError
from schemas.importers import delg
from schemas.layout import ENTRIES
from schemas.manifest import MANIFEST_NAME, canonical_json
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, Unit

READ_NO_OUTPUTS = frozenset({STAGE, IMPORT, layers.STAGE})  # whose inputs have no manifest
MOST_TRIED = 64  # of a unit's remote images, where none of these can be read
_OWN_CLASS = re.compile(r'"([\w.]+:[\w.]+)"')  # a text of JSON


def refuse_unnamed_code(job: Job, place: Place, named: Collection[str]) -> None:
    """Raise UserError where the job would import a module that this software does not hold and
    `named` does not name.

    The output may come from a stranger: what it names as ``package.module:Class`` is code of
    whoever made it.
    """
    worker_class(job.worker)
    options = [
        job.settings.get(key)
        for kind in ("extractor", "reranker")
        for key in (kind, f"{kind}_option")
    ]
    for text in _OWN_CLASS.findall(json.dumps(options, ensure_ascii=False)):
        if not extractors.is_known(text) and text not in named:
            raise UserError(
                f"{place.url} was made with {text}, which is no part of this software: where you "
                f"trust that code, give --own-class {text}"
            )


def refuse_other_software(job: Job, place: Place) -> None:
    """Raise UserError where the extractor or reranker of the recipe is another one now."""
    for kind, create in (("extractor", extractors.create), ("reranker", rerankers.create)):
        before, name = job.recipe.get(kind), job.settings.get(kind)
        if not isinstance(before, dict) or not isinstance(name, str) or not name:
            continue
        made = create(name, **(job.settings.get(f"{kind}_option") or {}))
        now = {key: json.loads(canonical_json(getattr(made, key, None))) for key in before}
        changed = "; ".join(differences(before, now, kind))
        if changed:
            raise UserError(
                f"{place.url} was made by another {kind} ({changed}); what is damaged can only be "
                f"repaired with that one: give the version of this software that made it, or make "
                f"all again with --overwrite"
            )


def refuse_other_inputs(job: Job, place: Place) -> None:
    """Raise UserError where an input is gone or was made again."""
    if job.stage == STAGE and job.settings.get("sources"):  # a file: its images are in the plan
        return
    for name, entry in job.inputs.items():
        url = entry["url"]
        if not url or any(character in url for character in "*?[{,"):  # of several places
            continue
        what = f"{place.url} cannot be done again: {url}, of which it was made ({name}),"
        source = open_place(url)
        if not source.exists():
            raise UserError(f"{what} is not there; bring it back")

        manifest = None if job.stage in READ_NO_OUTPUTS else read_manifest(source)
        if manifest is not None and manifest.content != entry["content"]:
            again = "give the command that made the output, with --overwrite"
            raise UserError(f"{what} was made again since; {again}")
        if manifest is None and job.stage not in READ_NO_OUTPUTS and source.is_folder():
            why = f"has no {MANIFEST_NAME}: it is not finished, or not there; bring it back"
            raise UserError(f"{what} {why}")


def refuse_absent_inputs(
    job: Job, output: Output, units: Collection[str], damaged: Collection[str]
) -> None:
    """Raise UserError where an archive, or all of a source's images, of a unit that must be done
    again cannot be read.

    damaged   files of the output that cannot say which images had failed

    Images that had failed before need not be there. Where some can be read, the others become
    failed rows.
    """
    if job.stage not in READ_NO_OUTPUTS:
        return

    plan, due = output.place, [unit for unit in job.units if unit.name in units]
    if job.stage == layers.STAGE:  # a layer's images are in its store's plan
        plan = open_place(str(job.settings["store"]))
    try:
        if job.stage == IMPORT and job.settings["format"] != "delg":
            open_reader(job.settings)
            return
        works = [_maker(unit).work for unit in due]
        archives = {work.archive: work for work in works if isinstance(work, ArchivedImages)}
        for archive in archives.values():
            _check_archive(plan, archive)
    except (UserError, *UNREADABLE) as error:
        why = f"{output.place.url} cannot be done again: {error}; bring it back"
        raise UserError(why) from error

    for unit in due:
        marker = output.markers.get(unit.name)
        described = marker is None or marker.counts.succeeded > 0
        if described and isinstance(_maker(unit).work, ListedImages):
            _check_images(job, output, plan, unit, damaged)


def _maker(unit: Unit) -> Unit:
    """The unit of a store's plan that read the images: of a layer's unit another one."""
    return unit.work.maker if isinstance(unit.work, LocalsOfParts) else unit


def _check_archive(plan: Place, work: ArchivedImages) -> None:
    url = archive_url(plan, work.archive)
    size, before = archive_size(url), work.bytes
    if 0 < size < before:  # a larger one may be the whole copy that came for a damaged one
        planned = f"and had {before:,} when it was planned: it is cut off, or another one"
        raise UserError(f"{url} has {size:,} bytes, {planned}")


def _check_images(
    job: Job, output: Output, plan: Place, unit: Unit, damaged: Collection[str]
) -> None:
    maker, failed = _maker(unit), _failed(output, unit, damaged)
    rows: Iterable[int] = range(maker.inputs)
    if isinstance(unit.work, LocalsOfParts):
        rows = [row for _, listed in unit.work.parts for row in listed]
    references, repeated = read_slice(plan, maker), maker.of(ListedImages).repeated_rows
    wanted = [
        row for row in rows if row not in repeated and references[row].record_id not in failed
    ]

    locations: dict[str, list[bytes]] = {}  # each source may lie on a disk of its own
    if job.stage == IMPORT:
        folder = os.fsencode(open_place(str(job.settings["input"])).url)
        table = read_rows(plan, ENTRIES, maker.of(ListedImages).start, maker.inputs)
        stems = table.column("stem").to_pylist()
        files = [stems[row] + delg.GLOBAL_SUFFIX.encode() for row in wanted if stems[row]]
        locations[""] = [folder + b"/" + file for file in files]
    for row in wanted if job.stage != IMPORT else ():
        where = f" in the source {references[row].source!r}"
        locations.setdefault(where, []).append(references[row].location)

    for where, listed in locations.items():
        local = all(location.startswith(b"/") for location in listed)
        why = _all_unreadable(listed, local, read_location)
        if why:
            url = output.place.url
            raise UserError(
                f"{url} cannot be done again: none of the {len(listed):,} images of "
                f"{unit.name}{where} that were described before can be read ({why}); bring them "
                f"back, or give 'repair {url} --remove-damaged', and then the command that made it"
            )


def _failed(output: Output, unit: Unit, damaged: Collection[str]) -> set[str]:
    """Record ids of the unit that had failed, as far as that can be known."""
    names = [
        name
        for name, (of, _) in output.expected.items()
        if of == unit.name and name.startswith("failures/") and name not in damaged
    ]
    tables = (read_table(output.place, name, schema=failures.FAILURES) for name in names)
    return {row.record_id for table in tables for row in failures.rows_of(table)}


def _all_unreadable(files: Sequence[bytes], local: bool, read: Callable[[bytes], object]) -> str:
    """The first file with why it cannot be read, where none can be; "" otherwise.

    Of remote ones some are tried.
    """
    step = 1 if local else -(-len(files) // MOST_TRIED) or 1
    first = ""
    for file in files[::step]:
        try:
            read(file)
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            first = first or f"{os.fsdecode(file)}: {getattr(error, 'strerror', None) or error}"
        else:
            return ""
    return first
