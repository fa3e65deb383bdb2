"""Every option of every command, as the registry has them, and hostile values for each."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipelines.stages import COMMANDS, load

HUGE = "9" * 40
NUMBERS = ("0", "-1", "-0.5", HUGE, "nan", "inf", "-inf", "", "three", "1e400", "0x10", "1,2")
TEXTS = ("", "no-such-thing", "x" * 5_000, "a\0b", "a\nb", "../../..", "ftp://no.such/x", "\udcff")
LISTS = ("", ",", "0", "-1,5", "nan,inf", f"{HUGE},1", "one,two", "x,x", "a\0b", "no-such-thing")
MAPPINGS = (
    "",
    "novalue",
    "=1",
    "no_such_option=1",
    "sizes=0",
    "max_locals=.nan",
    "max_locals=-1",
    f"max_locals={HUGE}",
    "weights=[[[[{a: [",
    "sizes=&a [*a]",
    "a\0=1",
)


class Case(NamedTuple):
    """A value given to an option of a command."""

    command: str
    field: str
    value: str
    flags: tuple[str, ...]  # as they stand on the command line


def options_of(command: str) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that a command offers, with their types: what to do, then how to run."""
    entry = COMMANDS[command]
    for kind, offered in ((load(entry.options), None), (load(entry.settings), entry.uses)):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.metadata.get("help") and (offered is None or field.name in offered):
                yield field, hints[field.name]


def values_for(kind: Any) -> tuple[str, ...]:
    """Hostile values for an option of a type; none for a switch, which takes no value."""
    if bool in (kind, *typing.get_args(kind)):
        return ()
    if typing.get_origin(kind) is dict:
        return MAPPINGS
    if typing.get_origin(kind) is tuple:
        return LISTS
    return NUMBERS if {int, float} & {kind, *typing.get_args(kind)} else TEXTS


def cases() -> list[Case]:
    """All of them, of every command of the registry."""
    found = []
    for command in COMMANDS:
        for field, kind in options_of(command):
            flag = "--" + field.name.replace("_", "-")
            for value in values_for(kind):
                positional = field.metadata.get("positional")
                flags = (value,) if positional else (f"{flag}={value}",)
                found.append(Case(command, field.name, value, flags))
    return found
