"""extract --locals-for: local descriptors of images that a shortlist names, as a layer of a store.

Of a million images only some ten thousand are ever reranked; the others need no locals. A layer
lies in STORE/layers/NAME, an output of its own: local/part-00017.<hash>.h5 with the rows of the
store's part 17 that are named and are in no layer yet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.extract.begun import options_as_begun
from pipelines.extract.options import Options
from pipelines.jobs.manifests import read_manifest, require_manifest
from pipelines.jobs.plan import planned_units
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import reranked_rows, truth_of
from pipelines.storage.input_file import read_input
from pipelines.storage.place import open_place
from pipelines.stores.failed_rows import say_failures
from pipelines.stores.locals import LocalsFile
from pipelines.stores.store import Store
from rrt_core.extractors import create, identity_of
from schemas.errors import UserError
from schemas.layout import LAYERS, ROWS_A_PART
from schemas.local_descriptors import bytes_a_local
from schemas.manifest import Manifest, canonical_json, sha256_text
from schemas.plan import ArchivedImages, Job, ListedImages, LocalsOfParts, Unit

STAGE = "locals"

# Recipe of the store that its layers share.
OF_THE_STORE = ("local_dtype", "max_locals", "decoding", "max_pixels", "min_side")

Wanted = dict[int, list[int]]  # part number -> rows, both ascending


def run(options: dict[str, Any], settings: RunSettings) -> Manifest:
    """Make (or finish, or skip) the layer. Raises UserError and JobFailed."""
    job = plan(options, settings)
    if job is None:
        return Store(options["out"]).manifest

    # A finished one of just these images, of which none has locals: all of it failed.
    if options["retry_failed"] and read_manifest(open_place(job.output)) is not None:
        settings = replace(settings, overwrite=True)

    manifest = run_job(job, settings)
    if say_failures(manifest, job.output):
        print(
            f"{'':<9}  once they are as they were, give --retry-failed too",
            file=sys.stderr,
        )
    return manifest


def plan(options: dict[str, Any], settings: RunSettings) -> Job | None:
    """The job of the layer; None where all named images have locals. Raises UserError."""
    store = Store(options["out"])
    if any(name not in store.manifest.recipe for name in OF_THE_STORE):
        raise _imported(store)
    extractor_option = options_as_begun(
        options["extractor"], options["extractor_option"], store.extractor
    )
    options = {**options, "extractor_option": extractor_option}
    extractor = create(options["extractor"], **extractor_option)
    if json.loads(canonical_json(identity_of(extractor))) != store.extractor:
        raise UserError(
            f"{store.place.url} was described by {store.extractor['name']} with other settings or "
            f"weights; give the same --extractor and --extractor-option"
        )
    _refuse_other_options(store, options, settings)

    named = named_rows(store, options)
    wanted = _without_locals(store, named)
    if not wanted:
        count = sum(map(len, named.values()))
        print(f"{STAGE:<9}  all {count:,} images have local descriptors", file=sys.stderr)
        return None

    globals_of = {number: store.part(number).globals.name for number in wanted}
    layer = [[number, wanted[number], globals_of[number]] for number in sorted(wanted)]
    content = sha256_text(canonical_json(sorted(globals_of.values())))
    kept = {key: store.manifest.recipe[key] for key in OF_THE_STORE}
    if "jpeg_rows" in store.manifest.recipe:
        kept["jpeg_rows"] = store.manifest.recipe["jpeg_rows"]
    return Job(
        stage=STAGE,
        output=f"{store.place.url}/{LAYERS}/{sha256_text(canonical_json(layer))[:12]}",
        worker="extract/locals",
        recipe={"extractor": store.extractor, **kept, "threads": settings.threads_per_worker},
        inputs={"globals": {"url": store.place.url, "content": content}},
        units=tuple(_units(store, wanted)),
        settings={**options, **kept, "locals": "all", "store": store.place.url},
        facts={
            "kind": "layer",
            "globals": {str(number): name for number, name in globals_of.items()},
            "bytes_a_local": bytes_a_local(extractor.local_dim, str(kept["local_dtype"])),
        },
        noun="images",
        most_failed=options["max_failures"],
    )


def _refuse_other_options(store: Store, options: dict[str, Any], settings: RunSettings) -> None:
    """Raise UserError for an option that is not the store's: it does nothing, or changes bytes."""
    usual = {field.name: field.default for field in fields(Options)}
    recipe = store.manifest.recipe
    for name in (*OF_THE_STORE, "jpeg_rows"):
        its = recipe.get(name, usual[name])
        if options[name] not in (usual[name], its):
            raise UserError(
                f"extract: {name} is {options[name]!r}; of {store.place.url} it is "
                f"{its!r}, so leave it out"
            )

    if settings.threads_per_worker != recipe["threads"]:
        raise UserError(
            f"{store.place.url} was described with {recipe['threads']} threads a worker, which "
            f"change the bytes; give --threads-per-worker {recipe['threads']}"
        )


def _imported(store: Store) -> UserError:
    return UserError(
        f"{store.place.url} was imported: its pictures were never seen here, so that no local "
        f"descriptors can be added to it; import them with the globals (--local-arrays, or files "
        f"of DELG or AMES), or describe the images with 'extract'"
    )


def named_rows(store: Store, options: dict[str, Any]) -> Wanted:
    """The rows that a run's shortlist reranks, or that a file of record ids names."""
    url = str(options["locals_for"])
    if open_place(url).exists("shortlist"):
        return _of_shortlist(store, url, options)

    try:
        text = read_input(url, "file of record ids, or run of 'search'").decode()
    except UnicodeDecodeError:
        raise UserError(f"{url}: it is no text of record ids") from None

    ids = {line.rstrip("\r") for line in text.split("\n") if line.strip()}
    if not ids:
        raise UserError(f"{url}: it names no record id")

    rows = rows_of(store, ids)
    if sum(map(len, rows.values())) < len(ids):
        described = {
            held[row]
            for number, listed in rows.items()
            for held in [store.read_ids(store.part(number)).record_ids]
            for row in listed
        }
        raise UserError(
            f"{url}: {min(ids - described)!r} is no described image of {store.place.url}"
        )
    return rows


def rows_of(store: Store, ids: set[str]) -> Wanted:
    """The rows of described images by their record ids."""
    rows: Wanted = {}
    for part in store.parts:
        read = store.read_ids(part)
        chosen = [int(row) for row in np.flatnonzero(read.ok) if read.record_ids[row] in ids]
        if chosen:
            rows[part.number] = chosen
    return rows


def _of_shortlist(store: Store, url: str, options: dict[str, Any]) -> Wanted:
    """Of a gallery's store the candidates that are reranked, of the queries' store the queries."""
    manifest = require_manifest(f"{url}/shortlist", "shortlist", "search")
    content = store.manifest.content
    bases = [one["base"] for one in manifest.facts["stores"] if one["content"] == content]
    queries = manifest.inputs["queries"]["content"] == content
    if not bases and not queries:
        raise UserError(
            f"{url}/shortlist was not made of {store.place.url} as it is now; search again"
        )

    names: set[str] = set()
    row_ids: set[int] = set()
    for entry in shortlist_files(url):
        shortlists = read_shortlist_part(url, entry.name)
        truth = truth_of(options["ground_truth"], shortlists)
        for name, rows in shortlists:
            reranked, _ = reranked_rows(name, rows, truth, int(options["shortlist"]))
            names.add(name)
            row_ids |= set(reranked.column("row_id").to_pylist())

    wanted = rows_of(store, names) if queries else {}
    for base in bases[:1]:
        for row_id in sorted(row_ids):
            part, row = divmod(row_id - base * ROWS_A_PART, ROWS_A_PART)
            if 0 <= part < store.span:
                wanted.setdefault(part, []).append(row)
    return {part: sorted(set(listed)) for part, listed in sorted(wanted.items())}


def _without_locals(store: Store, named: Wanted) -> Wanted:
    """The rows that neither the store's own files nor a finished layer holds."""
    wanted: Wanted = {}
    for number, rows in named.items():
        part = store.part(number)
        own = [(store.place, part.locals)] if part.locals else []
        files = (LocalsFile(place, entry) for place, entry in (*own, *part.layers))
        held = {int(row) for file in files for row in file.rows}
        if missing := [row for row in rows if row not in held]:
            wanted[number] = missing
    return wanted


def _units(store: Store, wanted: Wanted) -> Iterable[Unit]:
    """A unit for each unit of the store's plan that made some of the parts."""
    makers = store.makers(planned_units(store.place))
    numbers: dict[str, list[int]] = {}
    for number in sorted(wanted):
        maker = makers.get(number)
        if maker is None or not isinstance(maker.work, (ArchivedImages, ListedImages)):
            raise _imported(store)
        numbers.setdefault(maker.name, []).append(number)

    for name, listed in numbers.items():
        parts = tuple((number, tuple(wanted[number])) for number in listed)
        images = sum(len(rows) for _, rows in parts)
        yield Unit(name, LocalsOfParts(makers[listed[0]], parts), images)
