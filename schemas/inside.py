"""What is read of files that a stranger may have made: values of the right kind, names inside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgspec

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|::|://")
_PLACE = " - at `$"  # how msgspec names the place of a value, in front of .units[3].inputs`
_NEWER = "a newer version of this software may have made it"

MOST_BYTES = 128_000_000  # of JSON: the plan of a billion images has some 80 MB
MOST_DEEP = 64  # brackets in each other; ours are some ten
MOST_NAME, MOST_STEP = 1_000, 200  # bytes of a name; of its steps, to which a temporary one adds

T = TypeVar("T")


def check_inside(name: object) -> str:
    """The name of a file below an output's folder, as it is.

    Raises ValueError for what is not text, is empty, absolute or a URL, holds a backslash or a
    control character, is longer than a disk takes, or steps out of the folder by "..": markers,
    plans and tables may come from a stranger.
    """
    if not isinstance(name, str) or not name or _UNSAFE.search(name):
        raise ValueError(f"{name!r} is no name of a file in the output's folder")

    if any(step in ("", ".", "..") for step in name.split("/")):
        raise ValueError(f"{name!r} leads out of the output's folder")

    try:
        longest = max(len(step.encode()) for step in name.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is no text that can be written") from None
    if longest > MOST_STEP or len(name.encode()) > MOST_NAME:
        raise ValueError(f"{name[:40]!r}... is longer than the name of a file of ours")

    return name


def check_unit_name(name: object) -> str:
    """The name of a unit, which is a part of file names.

    Raises ValueError where it holds a slash, or as above.
    """
    if "/" in check_inside(name):
        raise ValueError(f"{name!r} is no name of a unit: it holds a slash")

    return str(name)


def read_json(data: bytes | str) -> Any:
    """The value of JSON text, where it is one that this software may have written.

    Raises ValueError where it is none, is too large or too deep for what it is read for, holds
    NaN, an infinity or a number beyond float64, or a key twice.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes; at most {MOST_BYTES:,} are read")

    try:
        value = json.loads(
            data, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise ValueError(f"it holds more than {MOST_DEEP} brackets in each other") from None

    level = [value]
    for _ in range(MOST_DEEP):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value

    raise ValueError(f"it holds more than {MOST_DEEP} brackets in each other")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it holds the key {next(k for k in keys if keys.count(k) > 1)!r} twice")

    return made


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it holds {text[:20]}, which is no finite number")

    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()

    return value if isinstance(value, list) else ()


def read_strictly(
    value: object, kind: type[T], hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Values that `read_json` gave, as a struct or dataclass; `hook` makes what msgspec cannot.

    Raises ValueError with the place: "units[3].inputs: expected int, got str".
    """
    try:
        read = msgspec.convert(value, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise ValueError(_located(str(error))) from error

    if unknown := _unknown_key(value, read):
        raise ValueError(f"{unknown} is not known here; {_NEWER}")

    return read


def _located(text: str) -> str:
    """A sentence of msgspec with the place in front; nested readings name theirs inside out."""
    what, *places = text.split(_PLACE)
    where = "".join(place.rstrip("`") for place in reversed(places)).lstrip(".")

    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    what = what.replace("object missing required field", "it has no")
    what = re.sub("^object contains unknown field (.*)", rf"\1 is not known here; {_NEWER}", what)

    return f"{where}: {what}" if where else what


def _unknown_key(value: Any, read: object, where: str = "") -> str:
    """The place of a key that a dataclass has no field for, which msgspec passes over; or ""."""
    if isinstance(read, tuple):
        pairs = enumerate(zip(value, read, strict=True))
        inner = [(f"{where}[{place}]", *pair) for place, pair in pairs]
    elif is_dataclass(read):
        dot = f"{where}." if where else ""
        names = {field.name for field in fields(read)}
        for key in value:
            if key not in names:
                return f"{dot}{key}"
        inner = [(f"{dot}{key}", value[key], getattr(read, key)) for key in value]
    else:
        return ""

    return next(filter(None, (_unknown_key(old, new, place) for place, old, new in inner)), "")
