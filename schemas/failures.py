"""Failures: a Parquet row for each input that failed, with its reason.

Nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

FAILURES = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a sentence
        # a short word: truncated, too_large, crashed ...
        pa.field("error_class", pa.string(), nullable=False),
    ],
    metadata={"schema": "rrt-failures/1"},
)


@dataclass(frozen=True)
class FailureRow:
    """One input that failed: its record id, the stage, a sentence, a word for the class."""

    record_id: str
    stage: str
    reason: str
    error_class: str


def write_part(path: str, rows: Sequence[FailureRow]) -> None:
    """Write a part's failures to a local path."""
    pq.write_table(
        pa.Table.from_pylist([row.__dict__ for row in rows], schema=FAILURES),
        path,
        compression="none",
    )


def rows_of(table: pa.Table) -> list[FailureRow]:
    """The failures of a part's table."""
    return [FailureRow(**row) for row in table.to_pylist()]
