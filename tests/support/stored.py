"""What a store holds, read for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence

from pipelines.storage.protocol import Place
from schemas import failures
from schemas.failures import FailureRow


def failure_rows(store: Place, names: Sequence[str]) -> list[FailureRow]:
    """The failures of a store's parts, in order."""
    return [
        row for name in sorted(names) for row in failures.read_part(io.BytesIO(store.read(name)))
    ]
