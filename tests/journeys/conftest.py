"""Fixtures of the journeys: tests of the whole program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `tests.`
from tests.journeys.command_line import end_workers
from tests.journeys.old_outputs import OldOutputs, unpack


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    """The workers stay for all tests of a module."""
    yield
    end_workers()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> OldOutputs:
    """The old outputs, for tests that change nothing of them."""
    return unpack(tmp_path_factory.mktemp("untouched"))


@pytest.fixture
def old(tmp_path: Path) -> OldOutputs:
    """The old outputs, for one test alone."""
    return unpack(tmp_path)
