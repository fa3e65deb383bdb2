"""Whether a repair has what it needs besides the output: the software that made it, and the inputs
of its units.

All of it is looked at before anything is taken away: nothing that is whole is given up for failed
    rows.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
from pipelines.storage.place import Place, open_place
from pipelines.stores.image_plan import read_rows, read_slice
from pipelines.verify.bookkeeping import UNREADABLE, Output
from rrt_core import extractors, rerankers
from schemas import failures
from schemas.errors import UserError
from schemas.importers import delg
from schemas.layout import ENTRIES
from schemas.manifest import MANIFEST_NAME, canonical_json
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, Unit

READ_NO_OUTPUTS = frozenset(
    {STAGE, IMPORT, layers.STAGE}
)  # stages whose inputs' contents are no manifest's
_OWN_CLASS = re.compile(r"[\w.]+:[\w.]+")
MOST_ASKED = 64  # of a unit's remote images, where none of these is there


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
    for text in _texts(options):
        if _OWN_CLASS.fullmatch(text) and not extractors.is_known(text) and text not in named:
            raise UserError(
                f"{place.url} was made with {text}, which is no part of this software: where you "
                f"trust that code, "
                f"give --own-class {text}"
            )


def _texts(value: Any) -> Iterable[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def refuse_other_software(job: Job, place: Place) -> None:
    """Raise UserError where the extractor or reranker of the recipe now is another one: its rows
    would not fit.
    """
    for kind, create in (("extractor", extractors.create), ("reranker", rerankers.create)):
        told, name = job.recipe.get(kind), job.settings.get(kind)
        if not isinstance(told, dict) or not isinstance(name, str) or not name:
            continue
        made = create(name, **(job.settings.get(f"{kind}_option") or {}))
        now = {key: json.loads(canonical_json(getattr(made, key, None))) for key in told}
        changed = list(differences(told, now, kind))
        if changed:
            raise UserError(
                f"{place.url} was made by another {kind} ({'; '.join(changed)}); what is damaged "
                f"can only be repaired "
                f"with that one: give the version of this software that made it, or make all "
                f"again with --overwrite"
            )


def refuse_other_inputs(job: Job, place: Place) -> None:
    """Raise UserError where an input is gone or was made again."""
    for name, entry in job.inputs.items():
        url = entry["url"]
        if not url or any(character in url for character in "*?[{,"):  # of several places
            continue
        if job.stage == STAGE and job.settings.get(
            "sources"
        ):  # a file of sources: its images are in the plan
            continue
        what = f"{place.url} cannot be done again: {url}, of which it was made ({name}),"
        there = open_place(url)
        if not there.exists():
            raise UserError(f"{what} is not there; bring it back")
        if job.stage in READ_NO_OUTPUTS:
            continue
        if there.exists(MANIFEST_NAME):
            manifest = read_manifest(there)
            if manifest is not None and manifest.content != entry["content"]:
                raise UserError(
                    f"{what} was made again since; give the command that made the output, with "
                    f"--overwrite"
                )
        elif there.is_folder():
            raise UserError(
                f"{what} has no {MANIFEST_NAME}: it is not finished, or not there; bring it back"
            )


def refuse_absent_inputs(
    job: Job, output: Output, units: Collection[str], damaged: Collection[str]
) -> None:
    """Raise UserError where an archive, or all of a source's images, of a unit that must be done
    again cannot be read.

    damaged   files of the output that cannot be asked which images had failed

    Images that had failed before need not be there. Where some can be read, the others become
    failed rows.
    """
    if job.stage not in READ_NO_OUTPUTS:
        return
    looked = _Looked(job, output, damaged)
    if job.stage == IMPORT and job.settings["format"] != "delg":
        try:
            open_reader(job.settings)
        except (UserError, *UNREADABLE) as error:
            raise looked.refusal(str(error), "bring it back") from error
        return
    for unit in job.units:
        if unit.name in units:
            looked.at(unit)


@dataclass
class _Looked:
    """Looks at the inputs of single units."""

    job: Job
    output: Output
    damaged: Collection[str]

    def __post_init__(self) -> None:
        self.plan = self.output.place  # a layer's images are in its store's plan
        if self.job.stage == layers.STAGE:
            self.plan = open_place(str(self.job.settings["store"]))
        self.archives: set[int] = set()  # that are there

    def refusal(self, why: str, mend: str) -> UserError:
        return UserError(f"{self.output.place.url} cannot be done again: {why}; {mend}")

    def at(self, unit: Unit) -> None:
        """Raise UserError where the unit's inputs are gone."""
        maker = unit.work.maker if isinstance(unit.work, LocalsOfParts) else unit
        if isinstance(maker.work, ArchivedImages):
            self._archive(maker.work)
        elif isinstance(maker.work, ListedImages) and self._succeeded(unit):
            self._images(unit, maker)

    def _archive(self, work: ArchivedImages) -> None:
        ordinal = work.archive
        if ordinal in self.archives:
            return
        url = archive_url(self.plan, ordinal)
        try:
            size, before = archive_size(url), work.bytes
        except UserError as error:
            raise self.refusal(str(error), "bring it back") from error
        if 0 < size < before:  # a larger one may be the whole copy that came for a damaged one
            why = (
                f"{url} has {size:,} bytes, and had {before:,} when it was planned: it is cut "
                f"off, or another one"
            )
            raise self.refusal(why, "bring the whole one back")
        self.archives.add(ordinal)

    def _images(self, unit: Unit, maker: Unit) -> None:
        failed = self._failed(unit)
        work = maker.of(ListedImages)
        repeated = work.repeated_rows
        rows: Iterable[int] = range(maker.inputs)
        if isinstance(unit.work, LocalsOfParts):
            rows = [row for _, listed in unit.work.parts for row in listed]
        references = read_slice(self.plan, maker)
        wanted = [
            row for row in rows if row not in repeated and references[row].record_id not in failed
        ]
        if self.job.stage == IMPORT:
            stems = (
                read_rows(self.plan, ENTRIES, work.start, maker.inputs).column("stem").to_pylist()
            )
            place = open_place(str(self.job.settings["input"]))
            files = [
                os.fsdecode(stem) + delg.GLOBAL_SUFFIX
                for row in wanted
                if (stem := stems[row]) is not None
            ]
            self._refuse_all_unreadable(
                unit, "", files, place.local, lambda name: _found(place, name)
            )
            return
        for source in dict.fromkeys(
            references[row].source for row in wanted
        ):  # each may lie on a disk of its own
            locations = [
                references[row].location for row in wanted if references[row].source == source
            ]
            local = all(location.startswith(b"/") for location in locations)
            self._refuse_all_unreadable(
                unit, f" in the source {source!r}", locations, local, read_location
            )

    def _refuse_all_unreadable(
        self,
        unit: Unit,
        where: str,
        files: Sequence[Any],
        local: bool,
        read: Callable[[Any], object],
    ) -> None:
        why = _all_unreadable(files, local, read)
        if why:
            raise self.refusal(
                f"none of the {len(files):,} images of {unit.name}{where} that were described "
                f"before can be read "
                f"({why})",
                f"bring them back, or give 'repair {self.output.place.url} --remove-damaged', and "
                f"then the command "
                "that made it",
            )

    def _succeeded(self, unit: Unit) -> bool:
        """Whether any of the unit's images may have been described."""
        marker = self.output.markers.get(unit.name)
        return marker is None or marker.counts.succeeded > 0

    def _failed(self, unit: Unit) -> set[str]:
        """Record ids of the unit that had failed, as far as that can be known."""
        found: set[str] = set()
        for name, (of, _) in self.output.expected.items():
            if of == unit.name and name.startswith("failures/") and name not in self.damaged:
                found |= {
                    row.record_id
                    for row in failures.read_part(io.BytesIO(self.output.place.read(name)))
                }
        return found


def _found(place: Place, name: str) -> None:
    if place.size(name) is None:
        raise FileNotFoundError(2, os.strerror(2))


def _all_unreadable(files: Sequence[Any], local: bool, read: Callable[[Any], object]) -> str:
    """The first file with why it cannot be read, where none can be; "" otherwise. Of remote ones
    some are asked for.
    """
    step = 1 if local else -(-len(files) // MOST_ASKED) or 1
    first = ""
    for file in files[::step]:
        try:
            read(file)
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            first = first or f"{os.fsdecode(file)}: {getattr(error, 'strerror', None) or error}"
        else:
            return ""
    return first
