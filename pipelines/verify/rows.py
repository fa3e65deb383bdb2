"""What must hold of the rows in a store's files: globals, failures and locals of one part
(schemas/).

Whether a file is the one that was written, its SHA-256 tells; these checks tell whether what was
written is right.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.verify.problems import Report
from schemas import failures, global_descriptors, local_descriptors
from schemas.image_list import decode_name, make_record_id, split_record_id
from schemas.manifest import FileEntry, Manifest

NORM_TOLERANCE = {
    "float32": 1e-3,
    "float16": 3e-3,
}  # float16 rounds a component by 2^-11 of it at most
PIXELS_OUTSIDE = 0.01  # rounding of a place to float32
BLOCK = 32_768  # local descriptors in memory at a time
ROWS = [
    "record_id",
    "status",
    "width",
    "height",
]  # columns of a part's globals that the other checks need
_PLAIN = re.compile(
    r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_. ()+,-]+)+"
)  # ids that need no encoding, nor a closer look
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoreShape:
    """What a store's recipe says of its files."""

    global_dim: int
    global_dtype: str
    local_dim: int
    local_dtype: str
    scales: int
    hashed: bool  # each ok row must tell its image file's SHA-256

    @staticmethod
    def of(manifest: Manifest) -> StoreShape | None:
        """The shape, or None where the output is none of descriptors."""
        recipe: dict[str, Any] = manifest.recipe
        try:
            extractor = recipe["extractor"]
            return StoreShape(
                int(extractor["global_dim"]),
                str(recipe.get("global_dtype", "float32")),
                int(extractor["local_dim"]),
                str(recipe.get("local_dtype", "float16")),
                len(extractor["scales"]),
                manifest.stage == "extract",
            )
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class PartRows:
    """What the other checks need of a part's rows."""

    ids: list[str]
    ok: np.ndarray  # bool [rows]
    width: np.ndarray  # int [rows], 0 where unknown
    height: np.ndarray

    @staticmethod
    def of(table: pa.Table) -> PartRows:
        """The rows of a table with the columns ROWS."""
        return PartRows(
            table.column("record_id").to_pylist(),
            np.array([status == "ok" for status in table.column("status").to_pylist()], bool),
            table.column("width").to_numpy(),
            table.column("height").to_numpy(),
        )

    @property
    def digests(self) -> np.ndarray:
        """Hashes of the ok rows' record ids, uint64 [n, 2]: 16 bytes an id."""
        joined = b"".join(
            hashlib.blake2b(name.encode(), digest_size=16).digest()
            for name, ok in zip(self.ids, self.ok, strict=True)
            if ok
        )
        return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def read_rows(file: IO[bytes]) -> PartRows:
    """Ids, statuses and picture sizes of a part's globals."""
    return PartRows.of(pq.read_table(file, columns=ROWS))


def check_globals(
    file: IO[bytes], entry: FileEntry, shape: StoreShape, report: Report
) -> PartRows | None:
    """Schema, statuses, ids, hashes and descriptors of a part; gives its rows, or None where they
    cannot be read.
    """
    parquet = pq.ParquetFile(file)
    wanted = global_descriptors.arrow_schema(shape.global_dim, shape.global_dtype)
    found = parquet.schema_arrow
    for name in wanted.names:
        if name not in found.names:
            report.add(entry.name, f"it has no column {name!r}")
            return None
        if found.field(name).type != wanted.field(name).type:
            report.add(
                entry.name,
                f"column {name!r} is of {found.field(name).type}, not {wanted.field(name).type}",
            )
            return None
    for key, value in wanted.metadata.items():
        if (found.metadata or {}).get(key) != value:
            told = (found.metadata or {}).get(key, b"absent").decode()
            report.add(entry.name, f"its {key.decode()} is {told}, not {value.decode()}")
            return None
    if parquet.metadata.num_rows != entry.rows:
        report.add(
            entry.name, f"it has {parquet.metadata.num_rows:,} rows; its marker says {entry.rows:,}"
        )
    table = parquet.read()
    nulls = [name for name in wanted.names if table.column(name).null_count]
    if nulls:
        report.add(entry.name, f"column {nulls[0]!r} has nulls")
        return None
    statuses = table.column("status").to_pylist()
    strange = [row for row, status in enumerate(statuses) if status not in ("ok", "failed")]
    report.rows(
        entry.name, strange, lambda row: f"status is {statuses[row]!r}, neither 'ok' nor 'failed'"
    )
    rows = PartRows.of(table)
    _check_ids(table, entry, report)
    _check_hashes(table, rows, entry, shape, report)
    _check_descriptors(global_descriptors.descriptor_matrix(table), rows.ok, entry, shape, report)
    return rows


def _check_ids(table: pa.Table, entry: FileEntry, report: Report) -> None:
    """Each id is what `make_record_id` gives for its source, name and box."""
    columns = [table.column(name).to_pylist() for name in ("record_id", "source", "box")]
    wrong = []
    for row, (record_id, source, box) in enumerate(zip(*columns, strict=True)):
        if not box and _PLAIN.fullmatch(record_id) and record_id.startswith(f"{source}/"):
            continue
        _, name, _ = split_record_id(record_id)
        try:
            made = make_record_id(source, decode_name(name), tuple(box) if box else None)
        except (ValueError, TypeError):
            made = ""
        if not name or made != record_id:
            wrong.append(row)
    report.rows(
        entry.name,
        wrong,
        lambda row: (
            f"record id {columns[0][row]!r} is not well-formed for source {columns[1][row]!r}"
        ),
    )


def _check_hashes(
    table: pa.Table, rows: PartRows, entry: FileEntry, shape: StoreShape, report: Report
) -> None:
    """SHA-256 of the image files: hex; empty only where the file could not be read."""
    hashes = table.column("sha256").to_pylist()
    wrong = [
        row
        for row, (digest, ok) in enumerate(zip(hashes, rows.ok, strict=True))
        if not _SHA256.fullmatch(digest) and (digest or (ok and shape.hashed))
    ]
    report.rows(entry.name, wrong, lambda row: f"the image's SHA-256 is {hashes[row]!r}")


def _check_descriptors(
    matrix: np.ndarray, ok: np.ndarray, entry: FileEntry, shape: StoreShape, report: Report
) -> None:
    """Finite, L2 norm 1; of failed rows zeros."""
    values = matrix.astype(np.float32)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    report.rows(entry.name, np.flatnonzero(~finite).tolist(), "the descriptor is not finite")
    norms = np.linalg.norm(np.where(finite[:, None], values, 0.0), axis=1)
    off = ok & finite & (np.abs(norms - 1.0) > NORM_TOLERANCE[shape.global_dtype])
    report.rows(
        entry.name,
        np.flatnonzero(off).tolist(),
        lambda row: f"the descriptor's L2 norm is {norms[row]:.6g}, not 1",
    )
    full = ~ok & (values != 0).any(axis=1)
    report.rows(
        entry.name, np.flatnonzero(full).tolist(), "the row failed, but its descriptor is not zeros"
    )


def check_failures(
    file: IO[bytes], entry: FileEntry, rows: PartRows | None, global_name: str, report: Report
) -> None:
    """Schema and count; with the part's rows: one failure for each failed row, and none besides."""
    table = pq.read_table(file)
    if table.schema.names != failures.FAILURES.names or any(
        table.schema.field(name).type != failures.FAILURES.field(name).type
        for name in failures.FAILURES.names
    ):
        report.add(
            entry.name,
            f"its columns are {', '.join(table.schema.names)}, not those of a failures file",
        )
        return
    if table.num_rows != entry.rows:
        report.add(entry.name, f"it has {table.num_rows:,} rows; its marker says {entry.rows:,}")
    told = table.column("record_id").to_pylist()
    reasons = table.column("reason").to_pylist()
    report.rows(
        entry.name, [row for row, reason in enumerate(reasons) if not reason], "it tells no reason"
    )
    if rows is None:
        return
    left = Counter(told)
    bare = []
    for row in np.flatnonzero(~rows.ok).tolist():
        if left[rows.ids[row]] > 0:
            left[rows.ids[row]] -= 1
        else:
            bare.append(row)
    report.rows(
        global_name,
        bare,
        lambda row: f"{rows.ids[row]!r} failed, but no row of {entry.name} tells why",
    )
    over = []
    for row, record_id in reversed(list(enumerate(told))):
        if left[record_id] > 0:
            left[record_id] -= 1
            over.append(row)
    over.reverse()
    report.rows(
        entry.name,
        over,
        lambda row: (
            f"{told[row]!r} is told as failed, but no failed row of {global_name} matches it"
        ),
    )


def check_locals(
    file: IO[bytes],
    entry: FileEntry,
    rows: PartRows | None,
    full: bool,
    shape: StoreShape,
    report: Report,
) -> None:
    """Layout, offsets, rows and all descriptors of a part's locals; `full`: of every ok row.

    `rows` is None where the part's globals cannot be read: what depends on them is left out.
    """
    layout = _check_layout(file, entry, shape, report)
    if layout is None:
        return
    images, count = layout["row"]["shape"][0], layout["descriptor"]["shape"][0]
    if images != entry.rows:
        report.add(entry.name, f"it has {images:,} images; its marker says {entry.rows:,}")
    row, offset = (
        _read(file, layout, "row", 0, images),
        _read(file, layout, "offset", 0, images + 1),
    )
    wrong = int(np.argmax(np.diff(row) <= 0)) + 1 if np.any(np.diff(row) <= 0) else None
    if wrong is not None:
        report.add(entry.name, f"'row' is not ascending at its entry {wrong:,}")
    falls = np.flatnonzero(np.diff(offset) < 0)
    if offset[0] != 0 or offset[-1] != count or len(falls):
        where = (
            f"falls at its entry {falls[0] + 1:,}"
            if len(falls)
            else f"runs from {offset[0]:,} to {offset[-1]:,}"
        )
        report.add(entry.name, f"'offset' {where}; it must rise from 0 to {count:,}")
        return
    inside = (row >= 0) & (row < (len(rows.ok) if rows is not None else 2**31))
    strange = row[~inside].tolist()
    if rows is not None:
        strange = sorted([*strange, *row[inside][~rows.ok[row[inside]]].tolist()])
    report.rows(entry.name, strange, "it has locals, but is no ok row of the part's globals")
    if rows is not None and full and not strange:
        lacking = np.setdiff1d(np.flatnonzero(rows.ok), row)
        report.rows(entry.name, lacking.tolist(), "it is an ok row, but has no entry in the locals")
    sizes = None
    if rows is not None and not strange:
        sizes = np.stack([rows.width[row], rows.height[row]], axis=1)
    _check_blocks(file, entry, layout, row, offset, sizes, shape, report)


def _check_layout(
    file: IO[bytes], entry: FileEntry, shape: StoreShape, report: Report
) -> dict[str, Any] | None:
    """Whether the byte layout in the marker is the file's own, and of the store's dtype; gives it
    if so.
    """
    dtype = shape.local_dtype
    kinds = {
        "row": "<i4", "offset": "<i8", "descriptor": local_descriptors.DTYPES[dtype],
        "xy": "<f4", "scale": "|u1", "strength": "<f4",
        **({local_descriptors.ROTATION: "<f4"} if dtype == "binary" else {}),
    }  # fmt: skip
    if entry.layout is None or set(entry.layout) != set(kinds):
        report.add(entry.name, "its marker has no byte layout of it")
        return None
    before = len(report.problems)
    with h5py.File(file, "r") as opened:
        schema = opened.attrs.get("schema")
        if schema != local_descriptors.SCHEMA_VERSIONS[dtype]:
            report.add(
                entry.name,
                f"its schema is {schema!r}, not {local_descriptors.SCHEMA_VERSIONS[dtype]!r}",
            )
        for name, kind in kinds.items():
            told = entry.layout[name]
            if name not in opened:
                report.add(entry.name, f"it has no dataset {name!r}")
                continue
            data = opened[name]
            start = data.id.get_offset()
            own = {
                "offset": -1 if start is None else int(start),
                "dtype": data.dtype.str,
                "shape": list(data.shape),
            }
            if own != told:
                report.add(entry.name, f"dataset {name!r} lies as {own}; its marker says {told}")
            elif np.dtype(kind) != data.dtype:
                report.add(entry.name, f"dataset {name!r} is of {data.dtype.str}, not {kind}")
    if len(report.problems) > before:
        return None
    lengths = {name: told["shape"][0] for name, told in entry.layout.items()}
    count = lengths["descriptor"]
    if lengths["offset"] != lengths["row"] + 1 or {
        lengths[name] for name in ("xy", "scale", "strength")
    } != {count}:
        report.add(entry.name, f"the lengths of its datasets do not fit together: {lengths}")
        return None
    columns = entry.layout["descriptor"]["shape"][1:]
    width = -(-shape.local_dim // 8) if dtype == "binary" else shape.local_dim
    if columns != [width] or entry.layout["xy"]["shape"][1:] != [2]:
        report.add(entry.name, f"its descriptors have {columns} values, not {[width]}")
        return None
    if dtype == "binary" and not _is_rotation(file, entry.layout, shape.local_dim):
        report.add(entry.name, "its rotation is not orthogonal")
    return entry.layout


def _is_rotation(file: IO[bytes], layout: dict[str, Any], dimension: int) -> bool:
    """Whether the rotation of binary descriptors is one, float32 [W, W]."""
    name = local_descriptors.ROTATION
    if layout[name]["shape"] != [dimension, dimension]:
        return False
    rotation = _read(file, layout, name, 0, dimension).astype(np.float64)
    return bool(
        np.isfinite(rotation).all()
        and np.allclose(rotation.T @ rotation, np.eye(dimension), atol=1e-4)
    )


def _read(file: IO[bytes], layout: dict[str, Any], name: str, start: int, stop: int) -> np.ndarray:
    """Entries of a dataset, as readers read them: by byte ranges."""
    begin, end = local_descriptors.byte_range(layout, name, start, stop)
    if end <= begin:
        return local_descriptors.from_bytes(layout, name, b"")
    file.seek(begin)
    return local_descriptors.from_bytes(layout, name, file.read(end - begin))


def _check_blocks(
    file: IO[bytes],
    entry: FileEntry,
    layout: dict[str, Any],
    row: np.ndarray,
    offset: np.ndarray,
    sizes: np.ndarray | None,
    shape: StoreShape,
    report: Report,
) -> None:
    """Descriptors, places, scales and strengths, a block at a time; one problem of a kind for each
    image.
    """
    count = int(offset[-1])
    found: dict[str, dict[int, None]] = {}  # problem -> images, in order
    last = np.inf
    for start in range(0, count, BLOCK):
        stop = min(count, start + BLOCK)
        image = np.searchsorted(offset, np.arange(start, stop), side="right") - 1
        xy = _read(file, layout, "xy", start, stop)
        strength = _read(file, layout, "strength", start, stop)
        first = np.arange(start, stop) == offset[image]
        before = np.concatenate([[last], strength[:-1]])
        last = float(strength[-1])
        wrong = dict(
            _wrong_descriptors(_read(file, layout, "descriptor", start, stop), shape.local_dtype)
        )
        wrong["a local's scale is none of the store's"] = (
            _read(file, layout, "scale", start, stop) >= shape.scales
        )
        finite = np.asarray(np.isfinite(xy).all(axis=1)) & np.isfinite(strength)
        wrong["a local's place or strength is not finite"] = ~finite
        wrong["the strengths of its locals rise"] = ~first & (strength > before)
        if sizes is not None:
            side = sizes[image]  # 0 where unknown
            outside = ((side > 0) & ((xy < -PIXELS_OUTSIDE) | (xy > side + PIXELS_OUTSIDE))).any(
                axis=1
            )
            wrong["a local lies outside the picture"] = np.asarray(outside)
        for what, mask in wrong.items():
            found.setdefault(what, {}).update(dict.fromkeys(image[mask].tolist()))
    for what, images in found.items():
        report.rows(entry.name, row[list(images)].tolist(), what)


def _wrong_descriptors(values: np.ndarray, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """What can be wrong with stored local descriptors [n, W], and where it is, bool [n]."""
    if dtype == "binary":  # any bits are a descriptor
        return
    if dtype == "int8":
        # 127 stands for the largest magnitude: a descriptor without it was not made by `encoded`
        yield (
            "the largest magnitude of a local descriptor is not 127",
            np.abs(values.astype(np.int16)).max(1) != 127,
        )
        return
    wide = values.astype(np.float32)
    finite = np.asarray(np.isfinite(wide).all(axis=1))
    norms = np.linalg.norm(np.where(finite[:, None], wide, 0.0), axis=1)
    yield "a local descriptor is not finite", ~finite
    yield (
        "the L2 norm of a local descriptor is not 1",
        finite & (np.abs(norms - 1.0) > NORM_TOLERANCE[dtype]),
    )


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
    order = np.argsort(words, kind="stable")  # equal words stay in order
    words = words[order]
    equal = np.flatnonzero(words[1:] == words[:-1])
    found = []
    first: dict[
        tuple[int, ...], tuple[int, int]
    ] = {}  # id -> part and place; of one run of equal words
    last = -2
    for at in equal.tolist():
        new = [at + 1]
        if at != last + 1:
            first, new = {}, [at, at + 1]
        last = at
        for flat in order[new].tolist():
            part = int(np.searchsorted(starts, flat, side="right")) - 1
            place = flat - int(starts[part])
            before = first.setdefault(tuple(digests[part][place].tolist()), (part, place))
            if before != (part, place):
                found.append((part, place, *before))
    return sorted(found)
