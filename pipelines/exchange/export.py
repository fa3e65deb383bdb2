"""export: a store -> NumPy arrays and the record ids of their rows (schemas/exporters/arrays.py
tells the files).

Failed images are left out and counted. A part's globals and 256 images' locals are in memory at a
time. `export.json` is written last: a folder without it is not whole, and a second command with the
same store finds it and does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.engines.settings import RunSettings
from pipelines.exchange.export_options import Options as Options
from pipelines.storage.local import full_disk
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.stores.locals import LocalsFile
from pipelines.stores.store import PartFiles, Store
from schemas.errors import UserError
from schemas.exporters.arrays import GrowingArray

NAME, SCHEMA = "export.json", "rrt-export/1"
IMAGES_READ = 256  # whose local descriptors are in memory
LOCAL_ARRAYS = ("descriptor", "xy", "scale", "strength", "offset")


def run(options: Options, settings: RunSettings = RunSettings()) -> dict[str, Any]:
    """Write (or skip) the arrays; gives what `export.json` says. Raises UserError."""
    store = Store(options.store)
    place = open_place(options.out)
    if not place.local:
        raise UserError(f"{options.out}: arrays are written to a local disk; copy them from there")
    asked = {"schema": SCHEMA, "content": store.manifest.content, "locals": options.locals}
    made = _made(place)
    if made is not None and not settings.overwrite:
        if all(made.get(key) == value for key, value in asked.items()):
            print(f"export     already made: {place.url}", file=sys.stderr)
            return made
        raise UserError(
            f"{place.url} holds an export of another store or of other files; give --overwrite"
        )
    if made is None and not place.exists(NAME) and place.has_files() and not _ours(place):
        raise UserError(f"{place.url} holds files of something else; give an empty or a new folder")
    with place.alone():
        try:
            return _export(store, place, options, asked)
        except OSError as error:
            refused = full_disk(error, error.filename or place.url)
            if refused is None:
                raise
            raise refused from error


def _made(place: Place) -> dict[str, Any] | None:
    try:
        told = json.loads(place.read(NAME))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return told if isinstance(told, dict) and told.get("schema") == SCHEMA else None


def _ours(place: Place) -> bool:
    """Whether nothing but what a killed export leaves is there."""
    names = {
        name.removesuffix(".tmp") for name in os.listdir(place.root) if not name.startswith(".")
    }
    names = {name for name in names if not name.startswith(f"{NAME}.")}  # its temporary name
    return names <= {"globals.npy", "record_ids.txt", "locals"}


def _export(store: Store, place: Place, options: Options, asked: dict[str, Any]) -> dict[str, Any]:
    if options.locals:
        _require_locals(store)
    place.remove(NAME)
    root = Path(place.root)
    rows = store.manifest.counts.succeeded
    globals_ = GrowingArray(root / "globals.npy", (rows, store.dimension), "<f4")
    ids = root / "record_ids.txt"
    for (
        name
    ) in LOCAL_ARRAYS:  # those of an export that is made again must not stand beside other globals
        (root / "locals" / f"{name}.npy").unlink(missing_ok=True)
    if not options.locals:
        with contextlib.suppress(OSError):  # it is not there, or holds files of something else
            (root / "locals").rmdir()
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
    told = {
        **asked,
        "rows": rows,
        "failed": store.manifest.counts.failed,
        "dimension": store.dimension,
        "extractor": store.extractor,
        **({"local_descriptors": end} if flat else {}),
    }
    place.write(NAME, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
    return told


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
    print(
        f"{result['rows']:,} images of {result['dimension']} dimensions; {result['failed']:,} "
        f"failed ones left out"
    )
    print(f"arrays: {options.out}")
