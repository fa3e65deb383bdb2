"""YAML of a user: what is plain is read as it is, all else is one sentence, whatever its size."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.yaml_text import parse_yaml
from schemas.errors import UserError
from tests.support.hostile import accepted, inputs

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
PIECES = st.sampled_from(
    [
        *("a: b", "- ", "\n", "  ", "[", "{", "]", "}", ": ", ", ", "key", "? ", "#", "---", "..."),
        *(
            "&a ",
            "*a",
            "<<: *a",
            "!!int x",
            "!!binary =",
            "!!set {a}",
            "!!python/name:os.system ",
        ),
        *("'", '"', "| ", "0x", "0b", ".inf", "1:2:3", "2001-99-99", "\t", "%YAML 9", "é", "\x07"),
    ]
)


@inputs(30)
@given(PLAIN)
def test_plain_values_come_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value).encode(), "f.yaml") == value


@inputs(80)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_pieces_of_yaml_in_any_order(text: str) -> None:
    accepted(lambda: parse_yaml(text, "f.yaml"))


@inputs(30)
@given(st.binary(max_size=200))
def test_bytes(data: bytes) -> None:
    accepted(lambda: parse_yaml(data, "f.yaml"))


def bomb(levels: int, width: int, merge: bool = False) -> str:
    """Aliases of aliases: width ** levels values."""
    lines = ["a0: {x: 1}" if merge else "a0: &a0 x"]
    if merge:
        lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if merge else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb(12, 9), "by aliases"),
        (bomb(12, 9, merge=True), "by aliases"),
        ("a: &a [*a]", "stands within"),
        ("a: &a {b: *a}", "stands within"),
        ("[" * 100_000, "nests deeper"),
        ("{a: " * 100_000, "nests deeper"),
        ("- " * 50_000, "nests deeper"),
        ("a: 1\nb: 2\na: 3", "the key 'a' of line 3 stands twice"),
        ("x: {1: a}", "the key '1' of line 1 is no text"),
        ("yes: a", "the key 'yes' of line 1 is no text"),
        ("? [a]\n: b", "the key of line 1 is no text"),
        ("title: A: b", "line 1: mapping values are not allowed here"),
        ("a: !!python/name:os.system x", "only plain values"),
        ("a: !!binary aGk=", "only plain values"),
        ("a: !!int x", "no valid YAML"),
        ("a: 1\n---\nb: 1", "no valid YAML"),
        ("a: " + "9" * 5000, "no valid YAML"),
        ("#" * 2_000_000, "more than 1,000,000 bytes"),
        (b"a: \xff\xfe", "byte 3 is no UTF-8"),
        ("a: b".encode("utf-16"), "no UTF-8"),
        (b"a: \0", "no valid YAML"),
    ],
)
def test_what_is_refused_and_how(text: str | bytes, sentence: str) -> None:
    tracemalloc.start()
    begun = time.monotonic()
    assert not accepted(lambda: parse_yaml(text, "f.yaml"))
    assert time.monotonic() - begun < 5
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    with pytest.raises(UserError, match=sentence) as said:
        parse_yaml(text, "f.yaml")
    assert str(said.value).startswith("f.yaml: ")


def test_dates_are_texts_and_aliases_are_shared() -> None:
    assert parse_yaml("a: 2001-12-14\nb: &x [1]\nc: *x\nd: {<<: {k: 1}, k: 2}", "f") == {
        "a": "2001-12-14",
        "b": [1],
        "c": [1],
        "d": {"k": 2},
    }
    assert parse_yaml(b"", "f") is None
    assert parse_yaml("\ufeffa: é".encode(), "f") == {"a": "é"}
