"""Files of sources: all that YAML may hold in their place is accepted or refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.configurations import read_configuration
from pipelines.sources.spec import KEYS, check_sources, read_sources
from schemas.errors import UserError
from tests.support.hostile import accepted, inputs

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a", "a/b", "..", "gallery", "*.tar", "x{1..3}.tar", "no\0t", "é" * 300]),
    st.sampled_from(["memory://x", "ftp://127.0.0.1:1/x", "s4://x", "http://[", "::", "~x"]),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
SOURCES = st.lists(
    st.dictionaries(st.sampled_from([*KEYS, "image"]), VALUES, max_size=5) | VALUES, max_size=3
)


@inputs(40)
@given(SOURCES | st.fixed_dictionaries({"sources": SOURCES}) | VALUES)
def test_files_of_sources(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "sources.yaml"
    path.write_text(yaml.safe_dump(content))
    accepted(lambda: check_sources(read_sources(str(path))))


@pytest.mark.parametrize("path", ["/dev/zero", "FIFO", "/proc/self/mem", "x" * 5000, "no\0", "."])
def test_what_is_no_file_of_yaml(path: str, tmp_path: Path) -> None:
    if path == "FIFO":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    assert not accepted(lambda: read_sources(path))
    assert not accepted(lambda: read_configuration(path))


def test_a_file_of_yaml_without_end(tmp_path: Path) -> None:
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="1,000,000 are read"):
        read_sources(str(tmp_path / "large.yaml"))
