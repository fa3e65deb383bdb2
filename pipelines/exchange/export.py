"""export: a store -> NumPy arrays and the record ids of their rows (schemas/exporters/arrays.py).

Failed images are left out and counted. A part's globals and 256 images' locals are in memory at a
time. `export.json` is written last: a folder without it is not whole, and a second command with the
same store finds it and does nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.exchange.export_options import ARRAYS, DEPLOY
from pipelines.exchange.export_options import Options as Options
from pipelines.exchange.export_ranking import export_ranking
from pipelines.jobs.existing_output import say_made
from pipelines.jobs.plan import refuse_other_recipe, write_plan
from pipelines.jobs.replacing import begin_beside, finish_swap, place_for, swap_in
from pipelines.storage.local import full_disk
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.stores.locals import LocalsFile
from pipelines.stores.store import PartFiles, Store
from schemas.errors import UserError
from schemas.exporters.arrays import GrowingArray
from schemas.inside import read_json
from schemas.layout import EXPORT_NAME
from schemas.plan import Job

STAGE, SCHEMA = "export", "rrt-export/1"
IMAGES_READ = 256  # whose local descriptors are in memory
LOCAL_ARRAYS = ("descriptor", "xy", "scale", "strength", "offset")


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Write (or skip) the arrays; gives what `export.json` says. Raises UserError."""
    if options.format != ARRAYS:
        return export_ranking(options, settings.overwrite)
    if options.protocol != DEPLOY:
        raise UserError("export: --protocol goes with a ranking's format, such as --format trec")
    store = Store(options.store)
    place = open_place(options.out)
    if not place.local:
        raise UserError(f"{options.out}: arrays are written to a local disk; copy them from there")
    recipe = {"schema": SCHEMA, "content": store.manifest.content, "locals": options.locals}
    job = Job(STAGE, options.out, "", recipe, {}, ())
    with place.alone():
        finish_swap(place)
        new = place_for(place, settings.overwrite, [store.place.url])
        beside = new.url != place.url
        if not beside:
            made = _read(place)
            if made:
                kept = {key: made.get(key) for key in recipe}
                refuse_other_recipe(place, job, {**job.identity, **kept})
                if all(place.exists(name) for name in _files(options.locals)):
                    say_made(f"{STAGE:<9}", place)
                    return made
        try:
            if beside:
                begin_beside(new, job)
            written = _export(store, new, options, job)
        except OSError as error:
            refused = full_disk(error, error.filename or place.url)
            if refused is None:
                raise
            raise refused from error
        if beside:
            own = [f"{name}{end}" for name in _files(locals=True) for end in ("", ".tmp")]
            swap_in(place, job, own, EXPORT_NAME)
        return written


def _files(locals: bool) -> list[str]:
    arrays = [f"locals/{name}.npy" for name in LOCAL_ARRAYS] if locals else []
    return ["globals.npy", "record_ids.txt", *arrays]


def _read(place: Place) -> dict[str, Any]:
    """What `export.json` says; nothing where it is absent or damaged."""
    try:
        written = read_json(place.read_record(EXPORT_NAME))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return written if isinstance(written, dict) and written.get("schema") == SCHEMA else {}


def _export(store: Store, place: Place, options: Options, job: Job) -> dict[str, Any]:
    if options.locals:
        _require_locals(store)
    write_plan(place, job, {})
    place.remove(EXPORT_NAME)
    root = Path(place.root)
    rows = store.manifest.counts.succeeded
    globals_ = GrowingArray(root / "globals.npy", (rows, store.dimension), "<f4")
    ids = root / "record_ids.txt"
    flat = _open_locals(store, root / "locals") if options.locals else {}
    end = 0
    with open(f"{ids}.tmp", "w", encoding="utf-8", newline="\n") as names:
        for part in store.parts:
            read = store.read_global(part)
            ok = np.flatnonzero(read.ok)
            globals_.add(read.descriptors[ok])
            names.writelines(f"{read.record_ids[row]}\n" for row in ok)
            for piece in _local_pieces(store, part, ok) if flat else ():
                counts = piece.pop("offset")
                flat["offset"].add(end + np.cumsum(counts))
                end += int(counts.sum())
                for name, array in piece.items():
                    flat[name].add(array)
        names.flush()
        os.fsync(names.fileno())
    os.replace(f"{ids}.tmp", ids)
    for grown in (globals_, *flat.values()):
        grown.finish()

    written = {
        **job.recipe,
        "rows": rows,
        "failed": store.manifest.counts.failed,
        "dimension": store.dimension,
        "extractor": store.extractor,
        **({"local_descriptors": end} if flat else {}),
    }
    place.write(EXPORT_NAME, (json.dumps(written, indent=1, sort_keys=True) + "\n").encode())
    return written


def _require_locals(store: Store) -> None:
    """Raise UserError where a part has no local descriptors of its own."""
    for part in store.parts:
        if part.locals is None or part.locals.layout is None:
            raise UserError(
                f"{store.place.url}: part {part.number} holds no local descriptors (those of a "
                f"layer are of some "
                "images only, and are not exported); leave --locals out"
            )


def _open_locals(store: Store, folder: Path) -> dict[str, GrowingArray]:
    """The files of the locals, empty."""
    total, kind = 0, "<f2"
    for part in store.parts:
        assert part.locals is not None and part.locals.layout is not None
        layout = part.locals.layout
        total += int(layout["descriptor"]["shape"][0])
        if layout["descriptor"]["dtype"] != kind:
            kind = "<f4"  # int8 and binary are read as lengths of 1
    made: dict[str, tuple[tuple[int, ...], str]] = {
        "descriptor": ((total, int(store.extractor["local_dim"])), kind),
        "xy": ((total, 2), "<f4"),
        "scale": ((total,), "u1"),
        "strength": ((total,), "<f4"),
        "offset": ((store.manifest.counts.succeeded + 1,), "<i8"),
    }
    flat = {
        name: GrowingArray(folder / f"{name}.npy", shape, dtype)
        for name, (shape, dtype) in made.items()
    }
    flat["offset"].add(np.zeros(1, np.int64))
    return flat


def _local_pieces(store: Store, part: PartFiles, ok: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """A part's locals, some images at a time, and in `offset` how many each of them has."""
    assert part.locals is not None
    file = LocalsFile(store.place, part.locals)
    if not np.array_equal(file.rows, ok):
        raise UserError(
            f"{store.place.url}: the local descriptors of part {part.number} are not those of its "
            f"images"
        )
    for first in range(0, len(ok), IMAGES_READ):
        ends = file.offsets[first : first + IMAGES_READ + 1]
        yield {**file.read([(int(ends[0]), int(ends[-1]))])[0], "offset": np.diff(ends)}


def summarise(options: Options, result: dict[str, Any]) -> None:
    """Print what was written."""
    if options.format != ARRAYS:
        print(f"{result['queries']:,} queries, {options.protocol}: {options.out}")
        return
    print(
        f"{result['rows']:,} images of {result['dimension']} dimensions; {result['failed']:,} "
        f"failed ones left out"
    )
    print(f"arrays: {options.out}")
