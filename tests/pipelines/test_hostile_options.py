"""Every option of every command with hostile values: one sentence, or accepted; nothing touched.

The commands stand at outputs that they have finished, so that all is read and checked and no work
is left to do. benchmarks/quality/hostile_inputs.py tries the same values through the real door.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.stages import COMMANDS
from tests.pipelines.option_cases import cases
from tests.support.command_line import command, end_workers
from tests.support.hostile import assert_one_sentence
from tests.support.small_world import arguments_of, make_world

CASES = cases()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished output of every command."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    yield folder
    end_workers()


def seen(folder: Path) -> dict[str, str]:
    """All files below a folder with their content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "here" not in path.parts
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world / "here" / "a" / "b" / "c"
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    before, wrong = seen(world), []

    for case in CASES:
        if case.command != name:
            continue
        started = time.monotonic()
        try:
            ended = command(name, *arguments_of(world, name, case.field), *case.flags)
            assert "Traceback" not in ended.said, ended
            # a place that cannot be reached is no mistake
            assert ended.code in ((0, 1, 2) if "://" in case.value else (0, 2)), ended
            if ended.code:
                assert_one_sentence(ended.said.splitlines()[-1])
            assert time.monotonic() - started < 20
        except Exception as error:  # noqa: BLE001  shown with the others
            wrong.append((case, type(error).__name__, str(error)))

    assert not wrong, "\n".join(map(str, wrong))
    assert seen(world) == before


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "convert-delg"])
def test_the_command_without_them_has_nothing_left_to_do(name: str, world: Path) -> None:
    ended = command(name, *arguments_of(world, name))
    assert ended.code == 0, ended
