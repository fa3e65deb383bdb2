"""Parquet tables in memory; one that is damaged is named in a sentence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.protocol import Place
from schemas.errors import UserError


class Damaged(UserError):
    """A file that cannot be read as a table."""


def read_table(place: Place, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a place's file, or some of its columns.

    Raises FileNotFoundError, and Damaged where the file is, or lacks a column.
    """
    return parse_table(place.read(name), f"{place.url}/{name}", columns)


def parse_table(data: bytes, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """As read_table, of the bytes of the file `where`."""
    with naming(where):
        return columns_of(pq.ParquetFile(io.BytesIO(data)), columns)


def table_bytes(table: pa.Table, **how: Any) -> bytes:
    """The table as a Parquet file; `how` are options of pyarrow's writer."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **how)
    return buffer.getvalue()


def columns_of(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    """All columns or some. Raises pa.ArrowInvalid where one is lacking."""
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {name!r}")

    return file.read(columns and list(columns), use_threads=False)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """What the block cannot read is Damaged: the file `where`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise Damaged(
            f"{where} cannot be read as a Parquet table: {why}; bring the file back or make it "
            f"again"
        ) from error
