"""What a store holds, read for tests."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from schemas import failures
from schemas.failures import FailureRow


def failure_rows(store: Place, names: Sequence[str]) -> list[FailureRow]:
    """The failures of a store's parts, in order."""
    return [row for name in sorted(names) for row in failures.rows_of(read_table(store, name))]
