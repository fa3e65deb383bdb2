"""Memory that is free is the least that machine and control groups leave; too little is said."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pipelines.jobs.memory import free_memory, say_memory

GB = 1_000_000_000


def _group(folder: Path, version: int, limit: str, used: int, unused_pages: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {unused_pages}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_above_limits_too(tmp_path: Path, version: int) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/a/b\n3:cpu:/x\n" if version == 1 else "0::/a/b\n")
    groups = tmp_path / "groups"
    root = groups / "memory" if version == 1 else groups
    _group(root / "a", version, str(1_000_000), 900_000, 50_000)
    _group(root / "a/b", version, "max" if version == 2 else str(2**63 - 4096), 10, 0)
    assert free_memory(groups, membership) == 150_000


def test_without_groups_it_is_the_machine_s(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available
    assert abs(free_memory(tmp_path, tmp_path / "absent") - free) < GB


def test_too_many_workers_are_said_with_how_many_fit(capsys: pytest.CaptureFixture[str]) -> None:
    say_memory("extract", 1, 0)
    assert capsys.readouterr().err == ""

    say_memory("extract", 100_000, GB)
    said = capsys.readouterr().err
    assert "WARNING: 100,000 workers" in said and "--workers" in said

    say_memory("extract", 1, 10**15)
    assert "it may be killed" in capsys.readouterr().err
