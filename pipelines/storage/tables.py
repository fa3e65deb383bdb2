"""Parquet tables in memory; one that is damaged is named in a sentence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.protocol import Place
from schemas.errors import Damaged, UserError
from schemas.layout import PLAN_FOLDER
from schemas.openers.parquet import UNREADABLE, check_types, table_of


def read_table(
    place: Place,
    name: str,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
) -> pa.Table:
    """The table of an output's file, or some of its columns, of the types that `schema` gives them.

    Raises Damaged where the file is missing, no such table, or lacks a column.
    """
    with reading(place, name):
        table = table_of(place.read(name), columns)
        check_types(table, schema)
        return table


def parse_table(data: bytes, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """As read_table, of the bytes of the file `where`, which is no output's."""
    with naming(where):
        return table_of(data, columns)


def table_bytes(table: pa.Table, **how: Any) -> bytes:
    """The table as a Parquet file; `how` are options of pyarrow's writer."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **how)
    return buffer.getvalue()


@contextlib.contextmanager
def reading(place: Place, name: str) -> Iterator[None]:
    """The gate of what is read of an output: what the block cannot use is Damaged, by its name."""
    try:
        yield
    except UserError:  # it names its file already, or the place does not answer
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _damaged(place, name, "it is missing") from error
    except UNREADABLE as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or repr(error)
        raise _damaged(place, name, f"it is damaged: {why[:300]}") from error


def _damaged(place: Place, name: str, why: str) -> Damaged:
    if name.startswith(f"{PLAN_FOLDER}/"):  # which repair cannot write
        what = " ".join(why.split())
        return Damaged(f"{place.url}/{name}: {what}; give the command that made it again")

    return Damaged.file(place.url, name, why)


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """What the block cannot read is Damaged: the file `where`."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        raise Damaged(
            f"{where} cannot be read as a Parquet table: {why}; bring the file back or make it "
            f"again"
        ) from error
