"""What is read of files that a stranger may have made: values of the right kind, names inside."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgspec

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|::|://")
_PLACE = " - at `$"  # how msgspec names the place of a value, in front of .units[3].inputs`
_NEWER = "a newer version of this software may have made it"

T = TypeVar("T")


def check_inside(name: object) -> str:
    """The name of a file below an output's folder, as it is.

    Raises ValueError for what is not text, is empty, absolute or a URL, holds a backslash or a
    control character, or steps out of the folder by "..": markers, plans and tables may come from a
    stranger.
    """
    if not isinstance(name, str) or not name or _UNSAFE.search(name):
        raise ValueError(f"{name!r} is no name of a file in the output's folder")

    if any(step in ("", ".", "..") for step in name.split("/")):
        raise ValueError(f"{name!r} leads out of the output's folder")

    return name


def check_unit_name(name: object) -> str:
    """The name of a unit, which is a part of file names.

    Raises ValueError where it holds a slash, or as above.
    """
    if "/" in check_inside(name):
        raise ValueError(f"{name!r} is no name of a unit: it holds a slash")

    return str(name)


def read_strictly(
    value: object, kind: type[T], hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Values that json.loads gave, as a struct or dataclass; `hook` makes what msgspec cannot.

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
