"""Options of a stage: one dataclass makes its command line, YAML configuration and Python call."""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Collection
from functools import cache
from typing import Any, ClassVar, TypeVar

from schemas.errors import UserError

T = TypeVar("T")
_LIMITS = {"above": operator.gt, "at least": operator.ge, "at most": operator.le}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

# What no option exceeds, where it says nothing itself.
MOST_WHOLE = 2**31 - 1
MOST_NUMBER = 1e9
MOST_TEXT = 65_536  # characters
MOST_ITEMS = 10_000  # of a list
MOST_DEPTH = 16  # of a mapping
MOST_SEED = 2**63 - 1
_EMPTY: tuple[Any, ...] = ("", (), {}, None)


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    *,
    positional: bool = False,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    unique: bool = False,
    needs: tuple[str, ...] = (),
    excludes: tuple[str, ...] = (),
) -> Any:
    """A field of an options dataclass with its help text; without a default it is required.

    A `positional` one may stand on the command line without its flag, in the order of the fields.
    `least`, `most` and `above` are the range of a number, or of each number of a list. `unique`: a
    list names nothing twice. Where it is given it `needs` one of those fields to be given too, and
    none that it `excludes`: it would have no effect.
    """
    limits = {"above": above, "at least": least, "at most": most}
    metadata = {
        "help": help,
        "choices": choices,
        "positional": positional,
        "limits": {words: limit for words, limit in limits.items() if limit is not None},
        "unique": unique,
        "needs": needs,
        "excludes": excludes,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """Base of a dataclass of options: refuses values outside their range or choices.

    It does so however the options are made. `command` begins the sentence of the UserError.
    """

    command: ClassVar[str] = ""

    def __init_subclass__(cls, command: str = "") -> None:
        cls.command = command

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check(field, getattr(self, field.name), self.command)


def _check(field: dataclasses.Field[Any], value: Any, where: str) -> None:
    """Raise UserError for a value that no option of its kind takes, or outside the range."""
    if value == field.default:
        return

    called, choices = _called(field, where), field.metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{called} is {shown(value)}; it must be one of {', '.join(choices)}")

    check_value(value, called)
    if field.metadata.get("unique") and len(set(value)) < len(value):
        twice = next(item for item in value if value.count(item) > 1)
        raise UserError(f"{called} names {shown(twice)} twice; name each once")

    limits = field.metadata.get("limits", {})
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        most = MOST_WHOLE if isinstance(number, int) else MOST_NUMBER
        within = {"at most": most, **limits} if abs(number) > most else limits
        if not all(_LIMITS[words](number, limit) for words, limit in within.items()):
            wanted = " and ".join(f"{words} {limit:,}" for words, limit in within.items())
            raise UserError(f"{called} is {shown(number)}; it must be {wanted}")


def check_value(value: Any, called: str, depth: int = 0) -> None:
    """Raise UserError for text that is no name, a number that is not finite, too much of anything.

    It looks into lists and mappings. `called` begins the sentence.
    """
    if isinstance(value, str):
        _check_text(value, called)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{called} is {value}; it must be a finite number")
    elif isinstance(value, list | tuple | dict):
        if len(value) > MOST_ITEMS or depth > MOST_DEPTH:
            raise UserError(f"{called} holds too much; {MOST_ITEMS:,} values are the most")
        for key in value if isinstance(value, dict) else ():
            if not isinstance(key, str):
                raise UserError(f"{called} has the key {shown(key)}; keys must be text: quote it")
            _check_text(key, called)
        for item in value.values() if isinstance(value, dict) else value:
            check_value(item, called, depth + 1)


def _check_text(text: str, called: str) -> None:
    if len(text) > MOST_TEXT:
        raise UserError(f"{called} has {len(text):,} characters; {MOST_TEXT:,} are the most")
    if any(character in text for character in "\0\r\n"):
        raise UserError(f"{called} is {shown(text)}; it must be one line without NUL bytes")


def shown(value: Any) -> str:
    """A value as messages show it: short, and on one line."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number of too many digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"


def _called(field: dataclasses.Field[Any], where: str) -> str:
    """A field as messages name it, such as `search: --nprobe`."""
    flag = f"--{field.name.replace('_', '-')}"
    name = field.name.upper() if field.metadata.get("positional") else flag
    return f"{where}: {name}" if where else name


@cache
def _hints(options: type) -> dict[str, Any]:
    return typing.get_type_hints(options)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def add_arguments(
    parser: argparse._ActionsContainer,
    options: type,
    offered: Collection[str] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Add a flag for each field: ``rows_per_part`` becomes ``--rows-per-part``.

    offered: the fields that get one, of all. hidden: fields that are parsed and that --help leaves
    out, since the command refuses or ignores them with a sentence.
    """
    hints = _hints(options)
    for field in dataclasses.fields(options):
        if not field.metadata.get("help"):
            continue  # set by the program alone
        if offered is not None and field.name not in (*offered, *hidden):
            continue

        kind, help = _plain(hints[field.name]), field.metadata["help"]
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS}
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is dict:
            keywords.update(action="append", metavar="KEY=VALUE")
        elif typing.get_origin(kind) is tuple:
            keywords["metavar"] = "A,B,..."
        elif field.metadata.get("choices"):
            keywords["choices"] = field.metadata["choices"]
        else:
            word = field.name.split("_")[-1].upper()
            keywords["metavar"] = {int: "N", float: "X"}.get(kind, word)

        if _required(field):
            help += " (required)"
        elif field.default not in (dataclasses.MISSING, "", (), None) and kind is not bool:
            help += f" (default: {field.default})"
        keywords["help"] = argparse.SUPPRESS if field.name in hidden else help.replace("%", "%%")

        if field.metadata.get("positional"):
            keywords.update(nargs="?", metavar=field.name.upper())
            parser.add_argument(field.name, **keywords)
        else:
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, dest=field.name, **keywords)


def build(options: type[T], values: dict[str, Any], where: str) -> T:
    """The options from flags or YAML values.

    Raises UserError for unknown, missing or ill-typed ones, and numbers outside their range.
    """
    hints = _hints(options)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(
            f"{where}: there is no option {unknown[0]!r}; known are {', '.join(fields)}"
        )

    checked: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            checked[name] = _convert(values[name], hints[name], f"{where}: {name}")
            _check(field, checked[name], where)
        if _required(field) and checked.get(name, "") in ("", ()):
            raise UserError(f"{_called(field, where)} is missing")
    _refuse_unused(fields, checked, where)
    return options(**checked)


def _refuse_unused(
    fields: dict[str, dataclasses.Field[Any]], values: dict[str, Any], where: str
) -> None:
    """Raise UserError for an option that has no effect, given what else is given."""
    given = [name for name, value in values.items() if value is not False and value not in _EMPTY]
    for name in given:
        called, metadata = _called(fields[name], where), fields[name].metadata
        needs, others = metadata.get("needs", ()), metadata.get("excludes", ())
        if needs and not set(needs) & set(given):
            flags = " or ".join(_called(fields[need], "") for need in needs)
            raise UserError(f"{called} has no effect without {flags}; leave it out, or give that")
        for other in set(others) & set(given):
            flag = _called(fields[other], "")
            raise UserError(f"{called} and {flag} exclude each other; give one of them")


def _plain(kind: Any) -> Any:
    """The type of an option that may be None, else the type itself."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    return next(choice for choice in typing.get_args(kind) if choice is not type(None))


def _convert(value: Any, kind: Any, where: str) -> Any:
    if value is None and kind is not _plain(kind):
        return None
    kind = _plain(kind)
    origin = typing.get_origin(kind)
    try:
        if origin is tuple:
            pieces = [value] if isinstance(value, int | float) else value
            pieces = pieces.split(",") if isinstance(pieces, str) else pieces
            if not isinstance(pieces, list | tuple):
                raise ValueError
            item = typing.get_args(kind)[0]
            return tuple(_convert(piece, item, where) for piece in pieces if piece != "")
        if origin is dict:
            return _mapping(value, where)
        # a YAML mapping, list, null or truth value is no text and no number
        if not isinstance(value, bool if kind is bool else int | float | str):
            raise ValueError
        if isinstance(value, bool) and kind is not bool:
            raise ValueError
        if kind is int and isinstance(value, float) and int(value) != value:
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        words = _KINDS.get(kind) or ("a list" if origin is tuple else "a mapping of options")
        raise UserError(f"{where} is {shown(value)}; it must be {words}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping as it is, or from a list of ``key=value`` whose values are read as YAML."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError

    from pipelines.yaml_text import parse_yaml  # not for --help

    pairs = {}
    for text in value:
        key, equals, given = text.partition("=")
        if not equals:
            raise UserError(f"{where}: {shown(text)} is not KEY=VALUE")
        key, called = key.strip(), f"{where}: {shown(text)}"
        if not key or key in pairs:
            raise UserError(f"{called}: the key is {'given twice' if key else 'empty'}")

        parsed = parse_yaml(given, called)
        if isinstance(parsed, str) and "," in parsed:
            pieces = parsed.removesuffix(",").split(",")
            parsed = [parse_yaml(piece, called) for piece in pieces]
        pairs[key] = parsed
    return pairs
