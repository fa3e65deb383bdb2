"""Index keys are tried before any work: one that cannot be used leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.command_line import command
from tests.support.stored import imported

pytestmark = pytest.mark.usefixtures("workers_end")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred imported descriptors of 64 dimensions."""
    folder = tmp_path_factory.mktemp("imported")
    return imported(folder, "gallery", np.random.default_rng(0).normal(size=(300, 64)))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("HNSW32", "keys that can be used are Flat"),
        ("NSG32", "keys that can be used are Flat"),
        ("IVF0,Flat", "1 to 1,048,576 lists"),
        ("IVF512,Flat", "needs 512 images or more to be trained, and would be trained on 300"),
        ("PQ7", "multiple of the number of subquantizers"),
        ("IVF16,PQ16x12", "needs 4,096 images or more"),
        ("nonsense", "keys that can be used are Flat"),
    ],
)
def test_a_key_that_cannot_be_used(key: str, words: str, store: Path, tmp_path: Path) -> None:
    ended = command("index", "--stores", store, "--key", key, "--out", tmp_path / "index")
    assert ended.code == 2 and words in ended.said, ended.said
    assert ended.said.startswith("Error: ") and ended.said.count("\n") == 1
    assert not (tmp_path / "index").exists()


def test_fewer_training_rows_than_lists(store: Path, tmp_path: Path) -> None:
    few = ("--key", "IVF64,Flat", "--training-rows", "20")
    ended = command("index", "--stores", store, *few, "--out", tmp_path / "index")
    assert ended.code == 2 and "would be trained on 20" in ended.said, ended.said


def test_a_projection_in_front_of_codes(store: Path, tmp_path: Path) -> None:
    rows = ("--rows-per-shard", "100", "--workers", "1")
    ended = command(
        "index", "--stores", store, "--key", "PCA16,SQ8", *rows, "--out", tmp_path / "i"
    )
    assert ended.code == 0, ended.said
