"""What a store holds, read for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from schemas import failures
from schemas.failures import FailureRow
from tests.support.command_line import command


def failure_rows(store: Place, names: Sequence[str]) -> list[FailureRow]:
    """The failures of a store's parts, in order."""
    return [row for name in sorted(names) for row in failures.rows_of(read_table(store, name))]


def imported(folder: Path, name: str, rows: np.ndarray, *more: str) -> Path:
    """A store of globals alone, of float [n, D], by `import`."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(folder / f"{name}.npy", unit.astype(np.float32))
    names = "".join(f"{name}{row:06}.jpg\n" for row in range(len(rows)))
    (folder / f"{name}.txt").write_text(names)
    given = ("npy", folder / f"{name}.npy", "--list", folder / f"{name}.txt")
    ended = command("import", *given, "--out", folder / name, "--workers", "1", *more)
    assert ended.code == 0, ended.said
    return folder / name
