"""Hostile variants of what is right: of bytes, and of values of JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NAMES = [
    "../x",
    "/etc/x",
    "a/../../x",
    "s3://b/x",
    "C:x",
    "",
    ".",
    "a//b",
    "a\0b",
    "\ud800",
    "n" * 5000,
]
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2.5, 1e308, 2**31, 2**63, 10**30, -(2**64)),
    *("x", [], {}, [[]], [1], {"x": 1}, ["x"]),
    *NAMES,
]
RAW = [  # texts of JSON that no value makes
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b'{"a": 1, "a": 2}',
    b"\xff\xfe",
    b"",
    b"null",
    b"[]",
    b'"x"',
]


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON value, of long lists the first three."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for key, below in inner:
        yield (*where, key)
        if isinstance(below, dict | list):
            yield from places(below, (*where, key))


def set_at(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at a place."""
    changed = copy.deepcopy(value)
    above = changed
    for key in where[:-1]:
        above = above[key]
    above[where[-1]] = new
    return changed


def json_bytes(value: Any) -> st.SearchStrategy[bytes]:
    """JSON of a value with another one at some place, a key less or more, or no such text."""
    where = st.sampled_from([*places(value)])
    values = st.sampled_from(HOSTILE)
    typed = st.builds(
        lambda place, new: json.dumps(set_at(value, place, new)).encode(), where, values
    )
    return st.one_of(typed, typed, st.sampled_from(RAW), byte_changes(json.dumps(value).encode()))


@st.composite
def byte_changes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of a file with some changed, cut off, taken out or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.sampled_from(["set", "set", "set", "cut", "drop", "insert", "zero", "ones"]))
        if how == "cut":
            del changed[place:]
        elif how == "drop":
            del changed[place : place + draw(st.integers(1, 16))]
        elif how == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif how in ("zero", "ones"):
            changed[place : place + 8] = (b"\0" if how == "zero" else b"\xff") * 8
        elif changed:
            changed[place] = draw(st.integers(0, 255))
    return bytes(changed)
