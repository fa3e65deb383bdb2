"""rerank --weights: the same as the reranker's option, and refused beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import command
from tests.support.small_world import arguments_of, make_world


@pytest.mark.slow
def test_weights_are_the_rerankers_option(tmp_path: Path) -> None:
    make_world(tmp_path)
    given = arguments_of(tmp_path, "rerank", "reranker")
    missing = str(tmp_path / "no.safetensors")
    for flags in (["--weights", missing], ["--reranker-option", f"weights={missing}"]):
        ended = command("rerank", *given, *flags)
        assert ended.code == 2 and "no.safetensors: no such file" in ended.said
    ended = command("rerank", *given, "--weights", "a", "--reranker-option", "weights=b")
    assert ended.code == 2 and "--weights and --reranker-option weights exclude" in ended.said
