"""Options of a stage: one dataclass makes its command line, YAML configuration and Python call."""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Collection
from typing import Any, ClassVar, TypeVar

from schemas.errors import UserError

T = TypeVar("T")
_LIMITS = {"above": operator.gt, "at least": operator.ge, "at most": operator.le}


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    *,
    positional: bool = False,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A field of an options dataclass with its help text; without a default it is required.

    A `positional` one may stand on the command line without its flag, in the order of the fields.
    `least`, `most` and `above` are the range of a number, or of each number of a list.
    """
    limits = {"above": above, "at least": least, "at most": most}
    metadata = {
        "help": help,
        "choices": choices,
        "positional": positional,
        "limits": {words: limit for words, limit in limits.items() if limit is not None},
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
    """Raise UserError for a value that is none of the choices, or a number outside the range."""
    if value == field.default:
        return

    called, choices = _called(field, where), field.metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{called} is {value!r}; it must be one of {', '.join(choices)}")

    limits = field.metadata.get("limits", {})
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{called} is {number}; it must be a finite number")
        if not all(_LIMITS[words](number, limit) for words, limit in limits.items()):
            wanted = " and ".join(f"{words} {limit:,}" for words, limit in limits.items())
            raise UserError(f"{called} is {number}; it must be {wanted}")


def _called(field: dataclasses.Field[Any], where: str) -> str:
    """A field as messages name it, such as `search: --nprobe`."""
    flag = f"--{field.name.replace('_', '-')}"
    name = field.name.upper() if field.metadata.get("positional") else flag
    return f"{where}: {name}" if where else name


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
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if not field.metadata.get("help"):
            continue  # set by the program alone
        if offered is not None and field.name not in (*offered, *hidden):
            continue

        kind, help = hints[field.name], field.metadata["help"]
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
    hints = typing.get_type_hints(options)
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
    return options(**checked)


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return None if value is None else _convert(value, inner[0], where)
    try:
        if origin is tuple:
            pieces = [value] if isinstance(value, int | float) else value
            pieces = pieces.split(",") if isinstance(pieces, str) else list(pieces)
            item = typing.get_args(kind)[0]
            return tuple(_convert(piece, item, where) for piece in pieces if piece != "")
        if origin is dict:
            return _mapping(value, where)
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is int and isinstance(value, float) and int(value) != value:
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        name = getattr(kind, "__name__", str(kind))
        raise UserError(f"{where} is {value!r}; it must be of type {name}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping as it is, or from a list of ``key=value`` whose values are read as YAML."""
    if isinstance(value, dict):
        return value

    import yaml  # not for --help

    pairs = {}
    for text in value:
        key, equals, given = text.partition("=")
        if not equals:
            raise UserError(f"{where}: {text!r} is not KEY=VALUE")
        parsed = yaml.safe_load(given)
        if isinstance(parsed, str) and "," in parsed:
            parsed = [yaml.safe_load(piece) for piece in parsed.split(",")]
        pairs[key.strip()] = parsed
    return pairs
