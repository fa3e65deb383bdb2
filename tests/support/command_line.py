"""The command line in this process: its workers stay from one command to the next."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli import main
from pipelines.engines.local.pool import close_pool as end_workers

__all__ = ["Ended", "command", "end_workers", "findings"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it said on both streams."""

    code: int
    said: str


def command(*arguments: object) -> Ended:
    """Run a command as `python -m pipelines` does."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    return Ended(code, said.getvalue())


def findings(folder: Path) -> list[dict[str, Any]]:
    """What `verify` finds in the outputs at or below a folder; its exit code must fit."""
    report = folder.with_name(f"{folder.name}-findings.json")
    ended = command("verify", folder, "--json", report)
    record = json.loads(report.read_text())
    report.unlink()

    assert ended.code == (0 if record["clean"] else 1), ended.said
    outputs: list[dict[str, Any]] = record["outputs"]
    return outputs
