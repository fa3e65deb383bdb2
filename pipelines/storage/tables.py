"""Parquet tables: read whole, or by the blocks that hold what is wanted; one that is damaged is
named in a sentence.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.blocks import LOCAL_BLOCK, BlockFile
from pipelines.storage.byte_sources import open_bytes
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
    with _named(where):
        return _columns(pq.ParquetFile(io.BytesIO(data)), columns)


def read_columns(place: Place, name: str, columns: Sequence[str]) -> pa.Table:
    """As read_table, but only the blocks of the file that hold the columns are fetched.

    Of a part of 4,096 globals that is 2 MB, not the whole file. Raises Damaged, and UserError
    where the file is absent.
    """
    with open_table(place, name, LOCAL_BLOCK) as file:
        return _columns(file, columns)


@contextlib.contextmanager
def open_table(place: Place, name: str, block: int = 0) -> Iterator[pq.ParquetFile]:
    """A place's file, of which only the blocks that are read are fetched.

    Raises Damaged, and UserError where the file is absent.
    """
    where = f"{place.url}/{name}"
    with contextlib.closing(BlockFile(open_bytes(where), block)) as stream, _named(where):
        yield pq.ParquetFile(pa.PythonFile(stream, "r"))


def table_bytes(table: pa.Table, **how: Any) -> bytes:
    """The table as a Parquet file; `how` are options of pyarrow's writer."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **how)
    return buffer.getvalue()


def _columns(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    for name in columns or ():
        if name not in file.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {name!r}")

    return file.read(columns and list(columns), use_threads=False)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise Damaged(
            f"{where} cannot be read as a Parquet table: {why}; bring the file back or make it "
            f"again"
        ) from error
