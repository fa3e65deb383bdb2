"""Global descriptors: a Parquet file a part, one row an image of the part's plan, failed or not.

The descriptor is `fixed_size_binary` with its dtype and dimension in the schema's metadata: no
nulls, no dictionary, no compression, one row group a part and one page a column, so that a part is
read at the disk's speed, and single rows by byte ranges: where the descriptors begin (the *layout*)
is kept in the unit's marker. A failed row has zeros for a descriptor, never null, and is not
indexed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.image_list import Box

SCHEMA_VERSION = "rrt-global/1"
CUT = "own_rows"  # metadata of a part: JSON, record id -> share of the rows of a cut JPEG
# pyarrow's options; a page's size is a wish that no part reaches.
WRITING: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "data_page_size": 1 << 30,
    "version": "2.6",
}
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


@dataclass(frozen=True)
class GlobalRow:
    """What one image gave. `descriptor` is float32 [D] with L2 = 1, or None where it failed."""

    record_id: str
    source: str
    width: int  # of the upright original, pixels; 0 where unknown
    height: int
    box: Box | None
    resize_factor: float
    bytes: int  # of the image file
    sha256: str  # of the image file, hex; "" where it could not be read
    descriptor: np.ndarray | None
    own_rows: float = 1.0  # the share of a cut JPEG's rows that the file holds


def arrow_schema(dimension: int, dtype: str) -> pa.Schema:
    """The schema of a part for descriptors of a dimension and dtype ("float32" | "float16")."""
    width = dimension * DTYPES[dtype].itemsize
    metadata = {"schema": SCHEMA_VERSION, "dtype": dtype, "dimension": str(dimension)}
    return pa.schema(
        [
            pa.field("record_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("box", pa.list_(pa.float64()), nullable=False),  # x, y, w, h, or empty
            pa.field("resize_factor", pa.float64(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),  # ok | failed
            pa.field("descriptor", pa.binary(width), nullable=False),
        ],
        metadata=metadata,
    )


def write_part(
    path: str, rows: Sequence[GlobalRow], dimension: int, dtype: str
) -> dict[str, Any] | None:
    """Write a part to a local path; gives its layout: where its descriptors lie (`rows_at`)."""
    kind = DTYPES[dtype]
    matrix = np.zeros((len(rows), dimension), kind)
    for index, row in enumerate(rows):
        if row.descriptor is not None:
            matrix[index] = row.descriptor
    width = dimension * kind.itemsize
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(matrix).tobytes())]
    )
    schema = arrow_schema(dimension, dtype)
    cut = {row.record_id: round(row.own_rows, 4) for row in rows if row.own_rows < 1}
    if cut:  # said beside the rows, so that parts without such images stay what they are
        schema = schema.with_metadata({**schema.metadata, CUT: json.dumps(cut)})
    table = pa.table(
        {
            "record_id": [row.record_id for row in rows],
            "source": [row.source for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "box": [list(row.box) if row.box else [] for row in rows],
            "resize_factor": [row.resize_factor for row in rows],
            "bytes": [row.bytes for row in rows],
            "sha256": [row.sha256 for row in rows],
            "status": ["failed" if row.descriptor is None else "ok" for row in rows],
            "descriptor": binary,
        },
        schema=schema,
    )
    pq.write_table(table, path, row_group_size=max(1, len(rows)), **WRITING)
    return _layout_in(path, matrix)


def _layout_in(path: str, matrix: np.ndarray) -> dict[str, Any] | None:
    """Where the descriptors lie in a file: the last bytes of their column, where that is one page.

    "offset" (bytes), "dtype", "shape" [rows, D]. None where they do not stand there as they are.
    """
    metadata = pq.read_metadata(path)
    if metadata.num_row_groups != 1:
        return None
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    (column,) = (one for one in columns if one.path_in_schema == "descriptor")
    offset = column.data_page_offset + column.total_compressed_size - matrix.nbytes
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(matrix.nbytes) != matrix.tobytes():
            return None
    kind = matrix.dtype.newbyteorder("<").str
    return {"descriptor": {"offset": offset, "dtype": kind, "shape": list(matrix.shape)}}


def rows_at(layout: dict[str, Any], size: int, rows: int, dimension: int) -> Rows:
    """Where the rows of a part's descriptors lie, by its layout.

    A marker may come from a stranger: raises ValueError where that is no layout of a file of `size`
    bytes with so many rows and dimensions.
    """
    try:
        entry = layout["descriptor"]
        offset, kind, shape = entry["offset"], np.dtype(entry["dtype"]), entry["shape"]
        fits = kind in DTYPES.values() and shape == [rows, dimension] and type(offset) is int
        if not fits or not 0 <= offset <= size - rows * dimension * kind.itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the layout in its marker is {layout!r:.100}") from None
    return Rows(offset, kind, dimension)


class Rows(NamedTuple):
    """Where the first row of a part's descriptors begins, and of what numbers each one is."""

    offset: int
    kind: np.dtype[Any]
    dimension: int

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.dimension * self.kind.itemsize

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The bytes begin .. end of the rows first .. last, both of them included."""
        return self.offset + first * self.width, self.offset + (last + 1) * self.width

    def of(self, data: bytes) -> np.ndarray:
        """The descriptors [n, D] in the bytes of some rows, in the stored dtype."""
        return np.frombuffer(data, self.kind).reshape(-1, self.dimension)


PART_COLUMNS = ("record_id", "status", "descriptor")


@dataclass(frozen=True)
class GlobalPart:
    """A part in memory: ids, which rows are ok, the descriptors [rows, D] as stored."""

    record_ids: list[str]
    ok: np.ndarray  # bool [rows]
    descriptors: np.ndarray  # float32 | float16 [rows, D]


def part_of(table: pa.Table, dimension: int) -> GlobalPart:
    """A part of its table, of which PART_COLUMNS are used.

    Raises ValueError where its schema is another, or that of another dimension.
    """
    return GlobalPart(
        record_ids=table.column("record_id").to_pylist(),
        ok=np.array([status == "ok" for status in table.column("status").to_pylist()], bool),
        descriptors=descriptor_matrix(table, dimension),
    )


def descriptor_matrix(table: pa.Table, dimension: int) -> np.ndarray:
    """The descriptors of a part's table as [rows, D] in the stored dtype.

    They are not copied where that can be. Raises ValueError where its schema is another.
    """
    metadata = {
        key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
    }
    if metadata.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"its schema is {metadata.get('schema')!r}, this software reads {SCHEMA_VERSION!r}"
        )
    kind = DTYPES.get(metadata.get("dtype", ""))
    if kind is None or metadata.get("dimension") != str(dimension):
        said = f"{metadata.get('dtype')} of {metadata.get('dimension')} dimensions"
        raise ValueError(f"its descriptors are {said}; the store has {dimension}")

    wanted = arrow_schema(dimension, metadata["dtype"])
    for name in PART_COLUMNS:
        column = table.column(name)
        if column.type != wanted.field(name).type or column.null_count:
            raise ValueError(f"its column {name!r} is not what a part of globals holds")

    column = table.column("descriptor").combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    flat = np.frombuffer(array.buffers()[1], kind, count=(array.offset + len(array)) * dimension)
    return flat.reshape(-1, dimension)[array.offset :]
