"""What must hold of the rows of a part of a store: its globals and locals.

Whether a file is the one that was written, its SHA-256 shows; these checks show whether what was
written is right: an extractor of one's own may break its contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import IO, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.verify.problems import UNREADABLE, Report
from schemas.global_descriptors import arrow_schema, descriptor_matrix, rows_at
from schemas.local_descriptors import (
    DTYPES,
    NAMES,
    OTHER_DTYPES,
    ROTATION,
    SCHEMA_VERSIONS,
    check_layout,
    layout_of,
)
from schemas.manifest import FileEntry
from schemas.openers.hdf5 import open_hdf5
from schemas.openers.parquet import columns_of

# float16 rounds a component by 2^-11 of it at most
NORM_TOLERANCE = {"float32": 1e-3, "float16": 3e-3}
PIXELS_OUTSIDE = 0.01  # rounding of a place to float32
BLOCK = 32_768  # local descriptors in memory at a time


@dataclass(frozen=True)
class StoreShape:
    """What a store's recipe says of its files."""

    global_dim: int
    global_dtype: str
    local_dim: int
    local_dtype: str
    scales: int
    strongest_first: bool  # else the locals have an order of their own

    @staticmethod
    def of(recipe: dict[str, Any]) -> StoreShape | None:
        """The shape, or None where the output is none of descriptors."""
        try:
            extractor = recipe["extractor"]
            return StoreShape(
                int(extractor["global_dim"]),
                str(recipe.get("global_dtype", "float32")),
                int(extractor["local_dim"]),
                str(recipe.get("local_dtype", "float16")),
                len(extractor["scales"]),
                "order" not in extractor["config"],
            )
        except UNREADABLE:
            return None


@dataclass(frozen=True)
class PartRows:
    """What the other checks need of a part's rows."""

    ids: list[str]
    ok: np.ndarray  # bool [rows]
    sizes: np.ndarray  # int [rows, 2], width and height; 0 where unknown

    @staticmethod
    def of(table: pa.Table) -> PartRows:
        """The rows of a part's globals."""
        ok = np.array([status == "ok" for status in table.column("status").to_pylist()], bool)
        sizes = [table.column(name).to_numpy() for name in ("width", "height")]
        return PartRows(table.column("record_id").to_pylist(), ok, np.stack(sizes, axis=1))

    @property
    def digests(self) -> np.ndarray:
        """Hashes of the ok rows' record ids, uint64 [n, 2]: 16 bytes an id."""
        ids = (name for name, ok in zip(self.ids, self.ok, strict=True) if ok)
        joined = b"".join(blake2b(name.encode(), digest_size=16).digest() for name in ids)
        return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def check_globals(file: IO[bytes], entry: FileEntry, shape: StoreShape, report: Report) -> PartRows:
    """Descriptors of a part: finite, L2 norm 1, of failed rows zeros; gives the part's rows.

    Raises KeyError or ValueError where its columns are not those of globals.
    """
    wanted = arrow_schema(shape.global_dim, shape.global_dtype)
    name = entry.name
    table = columns_of(pq.ParquetFile(file), None).select(wanted.names)
    metadata = table.schema.metadata or {}
    if table.schema.types != wanted.types or wanted.metadata.items() - metadata.items():
        raise ValueError("its columns are not those that the recipe asks for")

    rows = PartRows.of(table)
    if len(rows.ids) != entry.rows:
        report.add(name, f"it has {len(rows.ids):,} rows; its marker says {entry.rows:,}")
    stored = descriptor_matrix(table, shape.global_dim)
    if entry.layout is not None:
        at = rows_at(entry.layout, entry.bytes, entry.rows, shape.global_dim)
        begin, end = at.span(0, len(stored) - 1)
        file.seek(begin)
        if file.read(max(0, end - begin)) != stored.tobytes():
            report.add(name, "its descriptors do not lie where its marker says")
    values = stored.astype(np.float32)
    finite, norms = finite_norms(values)
    off = rows.ok & finite & (np.abs(norms - 1.0) > NORM_TOLERANCE[shape.global_dtype])
    full = ~rows.ok & (values != 0).any(axis=1)
    report.rows(name, np.flatnonzero(~finite), "the descriptor is not finite")
    report.rows(
        name,
        np.flatnonzero(off),
        lambda row: f"the descriptor's L2 norm is {norms[row]:.6g}, not 1",
    )
    report.rows(name, np.flatnonzero(full), "the row failed, but its descriptor is not zeros")
    return rows


def finite_norms(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of float32 [n, D] are finite, bool [n], and the L2 norms of these, float32 [n]."""
    finite = np.asarray(np.isfinite(values).all(axis=1))
    return finite, np.linalg.norm(np.where(finite[:, None], values, 0.0), axis=1)


def check_locals(
    file: IO[bytes], entry: FileEntry, rows: PartRows | None, shape: StoreShape, report: Report
) -> None:
    """Layout, rows, offsets and all descriptors of a part's locals.

    `rows` is None where the part's globals are not at hand: what depends on them is left out.
    """
    with open_hdf5(file) as opened:
        if opened.attrs.get("schema") != SCHEMA_VERSIONS[shape.local_dtype]:
            what = f"its schema is {opened.attrs.get('schema')!r}"
            report.add(entry.name, f"{what}, not {SCHEMA_VERSIONS[shape.local_dtype]!r}")
        if not _layout_fits(opened, entry, shape.local_dtype, report):
            return
        check_layout(entry.layout or {}, entry.bytes)
        row, offset = opened["row"][()], opened["offset"][()]
        falls = np.flatnonzero(np.diff(row) <= 0)
        if len(falls):
            report.add(entry.name, f"'row' is not ascending at its entry {falls[0] + 1:,}")
        if not _offsets_fit(entry.name, offset, len(opened["descriptor"]), report):
            return

        if len(row) != entry.rows:
            what = f"it has the locals of {len(row):,} images; its marker says {entry.rows:,}"
            report.add(entry.name, what)
        sizes = None
        if rows is not None:
            absent = row[(row < 0) | (row >= len(rows.ok)) | ~rows.ok[row % max(1, len(rows.ok))]]
            report.rows(entry.name, absent, "its globals have no described image in this row")
            if len(absent):
                return
            sizes = rows.sizes[row]
        for what, wrong in _wrong_locals(opened, offset, sizes, shape):
            images = np.searchsorted(offset, np.flatnonzero(wrong), side="right") - 1
            report.rows(entry.name, row[np.unique(images)], what)


def _layout_fits(file: h5py.File, entry: FileEntry, dtype: str, report: Report) -> bool:
    """Whether the byte layout in the marker, by which readers read, is the file's own, and the
    descriptors are of the store's dtype.
    """
    layout, marked, before = layout_of(file), entry.layout or {}, len(report.problems)
    for name in (*NAMES, *((ROTATION,) if dtype == "binary" else ())):
        if name not in layout or layout[name] != marked.get(name):
            what = f"lies as {layout.get(name)}; its marker says {marked.get(name)}"
            report.add(entry.name, f"dataset {name!r} {what}")
        elif layout[name]["dtype"] != OTHER_DTYPES.get(name, DTYPES[dtype]):
            what = f"is of {layout[name]['dtype']}, not {OTHER_DTYPES.get(name, DTYPES[dtype])}"
            report.add(entry.name, f"dataset {name!r} {what}")
    return len(report.problems) == before


def _offsets_fit(name: str, offset: np.ndarray, count: int, report: Report) -> bool:
    falls = np.flatnonzero(np.diff(offset) < 0)
    if not len(falls) and (offset[0], offset[-1]) == (0, count):
        return True
    runs = f"runs from {offset[0]:,} to {offset[-1]:,}"
    where = f"falls at its entry {falls[0] + 1:,}" if len(falls) else runs
    report.add(name, f"'offset' {where}; it must rise from 0 to {count:,}")
    return False


def _wrong_locals(
    file: h5py.File, offset: np.ndarray, sizes: np.ndarray | None, shape: StoreShape
) -> Iterator[tuple[str, np.ndarray]]:
    """What can be wrong with single locals, and of which it is so, bool [n].

    sizes   width and height of each image, int [m, 2], 0 where unknown
    """
    xy, scale, strength = (file[name][()] for name in ("xy", "scale", "strength"))
    yield from _wrong_descriptors(file["descriptor"], shape.local_dtype)
    yield "a local's scale is none of the store's", scale >= shape.scales

    finite = np.asarray(np.isfinite(xy).all(axis=1)) & np.isfinite(strength)
    yield "a local's place or strength is not finite", ~finite

    if shape.strongest_first:
        rises = np.zeros(len(strength), bool)
        rises[1:] = strength[1:] > strength[:-1]
        rises[offset[offset < len(strength)]] = False  # the first of an image
        yield "the strengths of its locals rise", rises

    if sizes is not None:
        side = np.repeat(sizes, np.diff(offset), axis=0)
        outside = (xy < -PIXELS_OUTSIDE) | (xy > side + PIXELS_OUTSIDE)
        yield "a local lies outside the picture", ((side > 0) & outside).any(axis=1)


def _wrong_descriptors(data: h5py.Dataset, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """As above, of the stored descriptors [n, W]."""
    if dtype == "binary":  # any bits are a descriptor
        return

    finite, right = np.ones(len(data), bool), np.ones(len(data), bool)
    for start in range(0, len(data), BLOCK):
        block = slice(start, start + BLOCK)
        if dtype == "int8":
            right[block] = np.abs(data[block].astype(np.int16)).max(axis=1) == 127
        else:
            finite[block], norms = finite_norms(data[block].astype(np.float32))
            right[block] = np.abs(norms - 1.0) <= NORM_TOLERANCE[dtype]

    what = "the L2 norm of a local descriptor is not 1"
    if dtype == "int8":  # 127 stands for the largest magnitude
        what = "the largest magnitude of a local descriptor is not 127"
    yield "a local descriptor is not finite", ~finite
    yield what, finite & ~right


def repeated_rows(digests: Sequence[np.ndarray]) -> list[tuple[int, int, int, int]]:
    """Equal ids among the ok rows of all parts: (part, place, part and place of the first), in
    order.

    `digests` are `PartRows.digests` of each part; a place counts ok rows. Another 24 bytes an id
    are held while the first words are sorted; the second ones are looked at where these are equal.
    """
    if not digests:
        return []
    starts = np.concatenate([[0], np.cumsum([len(one) for one in digests])])
    words = np.concatenate([one[:, 0] for one in digests])
    order = np.argsort(words, kind="stable")
    words = words[order]
    equal = np.flatnonzero(words[1:] == words[:-1])

    repeats = []
    first: dict[tuple[int, ...], tuple[int, int]] = {}  # id -> part and place
    for flat in np.unique(order[np.concatenate([equal, equal + 1])]).tolist():
        part = int(np.searchsorted(starts, flat, side="right")) - 1
        place = flat - int(starts[part])
        before = first.setdefault(tuple(digests[part][place].tolist()), (part, place))
        if before != (part, place):
            repeats.append((part, place, *before))
    return repeats
