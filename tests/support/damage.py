"""A small store for tests of verify and repair, and ways to damage it, hashes made to fit again
where wished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.jobs.manifests import write_manifest
from pipelines.jobs.plan import planned_units
from pipelines.storage.place import open_place
from rrt_core.extractors import Description
from rrt_core.images import Image
from schemas import local_descriptors
from schemas.manifest import Marker
from schemas.plan import Job
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR
from tests.tiny_extractor import TinyExtractor

OUTSIDE = "tests.support.damage:Outside"
BROKEN = 7  # the photograph that cannot be decoded: row 2 of part 1


class Outside(TinyExtractor):
    """An extractor that breaks its contract: its locals lie beyond the picture."""

    def _one(self, image: Image) -> Description:
        described = super()._one(image)
        return replace(described, xy=described.xy + 1000)


def make_photographs(folder: Path, count: int = 20) -> Path:
    """Photographs 00.png, 01.png ..., of which one is no picture."""
    folder.mkdir()
    for number in range(count):
        picture(number).save(folder / f"{number:02}.png")
    (folder / f"{BROKEN:02}.png").write_bytes(b"no picture")
    return folder


def make_store(photographs: Path, out: Path, **options: Any) -> Path:
    """A store of four parts with five rows each."""
    given = {"extractor": EXTRACTOR, "rows_per_part": 5, **options}
    extract.run(
        extract_options.Options(images=str(photographs), out=str(out), **given),
        RunSettings(workers=1),
    )
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """All data files of an output, with their bytes."""
    kinds = ("global", "local", "failures", "data", "plain")
    paths = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def one(folder: Path, pattern: str) -> Path:
    """The one file of a pattern."""
    (found,) = folder.glob(pattern)
    return found


def flip(path: Path, place: int | None = None) -> None:
    """Flip the bits of one byte, in the middle of the file if not told."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 0xFF
    path.write_bytes(data)


def rewrite(
    store: Path, kind: str, unit: str, change: Callable[[Path], dict[str, Any] | None]
) -> str:
    """Change a file and make marker, parts table and manifest fit; gives its new name.

    `change` gets the path, changes the file, and may give entries of the marker's file entry (rows,
    layout).
    """
    path = one(store, f"{kind}/{unit}.*")
    changed = change(path) or {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stem, _, suffix = path.name.split(".")
    target = path.with_name(f"{stem}.{digest[:12]}.{suffix}")
    os.replace(path, target)
    old, new = (str(name.relative_to(store)) for name in (path, target))
    about = {"name": new, "bytes": target.stat().st_size, "sha256": digest, **changed}
    if kind == "global":  # written by others, whose pages are not measured
        about.setdefault("layout", None)

    def entries(marker: Marker) -> Marker:
        files = tuple(
            replace(entry, **about) if entry.name == old else entry for entry in marker.files
        )
        return replace(marker, files=files)

    change_marker(store, unit, entries)
    remake_manifest(store)
    return new


def change_marker(store: Path, unit: str, change: Callable[[Marker], Marker]) -> None:
    """Change a marker."""
    path = store / f"done/{unit}.json"
    marker = Marker.from_bytes(path.read_bytes())
    assert marker is not None
    path.write_bytes(change(marker).to_bytes())


def remake_manifest(store: Path) -> None:
    """Write parts table and manifest from the markers as they are."""
    place = open_place(str(store))
    job = replace(Job.from_json((store / "plan/job.json").read_text()), units=planned_units(place))
    markers = [
        Marker.from_bytes((store / f"done/{unit.name}.json").read_bytes()) for unit in job.units
    ]
    write_manifest(place, job, [marker for marker in markers if marker], 1.0)


def set_cells(column: str, cells: dict[int, Any]) -> Callable[[Path], None]:
    """A change of a Parquet file: cells of a column."""

    def change(path: Path) -> None:
        table = pq.read_table(path)
        values = table.column(column).to_pylist()
        for row, value in cells.items():
            values[row] = value(values[row]) if callable(value) else value
        index = table.schema.get_field_index(column)
        field = table.schema.field(column)
        pq.write_table(
            table.set_column(index, field, pa.array(values, field.type)), path, compression="none"
        )

    return change


def set_descriptor(
    row: int, change: Callable[[np.ndarray], Any], dtype: str = "<f2"
) -> Callable[[Path], None]:
    """A change of a global descriptor in place."""

    def cell(value: bytes) -> bytes:
        vector = np.frombuffer(value, dtype).copy()
        return np.asarray(change(vector), dtype).tobytes()

    return set_cells("descriptor", {row: cell})


def set_locals(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], dict[str, Any]]:
    """A change of the arrays of a part's locals; the layout is measured again."""

    def apply(path: Path) -> dict[str, Any]:
        arrays = local_descriptors.read_part(str(path))
        with h5py.File(path, "r", locking=False) as file:
            schema = file.attrs["schema"]
        change(arrays)
        layout = {}
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.attrs["schema"] = schema
            for name, array in arrays.items():
                file.create_dataset(name, data=array, track_times=False)
        with h5py.File(path, "r", locking=False) as file:
            for name, array in arrays.items():
                start = file[name].id.get_offset()
                layout[name] = {
                    "offset": int(start),
                    "dtype": array.dtype.str,
                    "shape": list(array.shape),
                }
        return {"layout": layout}

    return apply
