"""Reading Parquet of any bytes: what a file claims is checked before memory is taken for it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_A_BYTE, FEW_ROWS = 64, 1_000_000  # a short file that claims more rows is a trap for memory

# What pyarrow raises of files of any bytes, and Python of values of other kinds than expected.
UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


def table_of(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file's bytes, or some of its columns. Raises what is among UNREADABLE."""
    return columns_of(pq.ParquetFile(io.BytesIO(data)), columns)


def columns_of(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    """All columns or some. Raises pa.ArrowInvalid where one is lacking, or cannot be used."""
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {name!r}")

    check_rows(file.metadata)
    table = file.read(columns and list(columns), use_threads=False)
    table.validate(full=True)  # also that texts are UTF-8
    return table


def check_rows(about: pq.FileMetaData) -> None:
    """Raise pa.ArrowInvalid where a file claims rows that its bytes cannot hold."""
    held = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    most = max(FEW_ROWS, ROWS_A_BYTE * held)
    if about.num_rows > most:
        raise pa.ArrowInvalid(f"it claims {about.num_rows:,} rows in {held:,} bytes")


def check_types(table: pa.Table, schema: pa.Schema | None) -> None:
    """Raise pa.ArrowInvalid where a column has another type than the schema's, or nulls that it
    does not allow; columns that only one of the two has are passed over.
    """
    for field in schema or ():
        if field.name in table.column_names:
            column = table.column(field.name)
            if column.type != field.type:
                raise pa.ArrowInvalid(f"{field.name!r} is {column.type}, not {field.type}")
            if column.null_count and not field.nullable:
                raise pa.ArrowInvalid(f"{field.name!r} has rows without a value")
