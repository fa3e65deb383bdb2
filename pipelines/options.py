"""Options of a stage: one dataclass makes the command line, the YAML configuration and the Python
call.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

import yaml

from schemas.errors import UserError

T = TypeVar("T")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    *,
    positional: bool = False,
) -> Any:
    """A field of an options dataclass with its help text; without a default it is required.

    A `positional` one may stand on the command line without its flag, in the order of the fields.
    """
    metadata = {"help": help, "choices": choices, "positional": positional}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_arguments(
    parser: argparse._ActionsContainer, options: type, hidden: Collection[str] = ()
) -> None:
    """Add a flag for each field: ``rows_per_part`` becomes ``--rows-per-part``; positional ones
    have none.

    hidden: fields that --help is silent about, since the command refuses them with a sentence.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if not field.metadata.get("help"):
            continue  # set by the program alone
        flag = "--" + field.name.replace("_", "-")
        keywords: dict[str, Any] = {"help": field.metadata.get("help", ""), "dest": field.name}
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        keywords["default"] = argparse.SUPPRESS
        kind = hints[field.name]
        if kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif kind is dict or typing.get_origin(kind) is dict:
            keywords.update(action="append", metavar="KEY=VALUE")
        elif typing.get_origin(kind) is tuple:
            keywords.update(metavar="A,B,...")
        else:
            keywords["metavar"] = {int: "N", float: "X"}.get(
                kind, field.name.split("_")[-1].upper()
            )
            if field.metadata.get("choices"):
                keywords.update(choices=field.metadata["choices"], metavar=None)
        if required:
            keywords["help"] += " (required)"
        elif field.default not in (dataclasses.MISSING, "", (), None) and kind is not bool:
            keywords["help"] += f" (default: {field.default})"
        keywords["help"] = (
            argparse.SUPPRESS if field.name in hidden else keywords["help"].replace("%", "%%")
        )
        names = (flag,)
        if field.metadata.get("positional"):
            names, keywords["dest"] = (field.name,), None
            keywords.update(nargs="?", metavar=field.name.upper())
        parser.add_argument(
            *names, **{key: value for key, value in keywords.items() if value is not None}
        )


def build(options: type[T], values: dict[str, Any], where: str) -> T:
    """The options from flags or YAML values.

    Raises UserError for unknown, missing or ill-typed ones.
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
            choices = field.metadata.get("choices")
            if choices and checked[name] not in choices:
                raise UserError(
                    f"{where}: {name} is {checked[name]!r}; it must be one of {', '.join(choices)}"
                )
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and checked.get(name, "") in ("", ()):
            called = (
                name.upper() if field.metadata.get("positional") else f"--{name.replace('_', '-')}"
            )
            raise UserError(f"{where}: {called} is missing")
    return options(**checked)


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return None if value is None else _convert(value, inner[0], where)
    try:
        if origin is tuple:
            pieces = value.split(",") if isinstance(value, str) else list(value)
            item = typing.get_args(kind)[0]
            return tuple(_convert(piece, item, where) for piece in pieces if piece != "")
        if kind is dict or origin is dict:
            return _mapping(value, where)
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is int and isinstance(value, (bool, float)) and int(value) != value:
            raise ValueError
        if kind is str and not isinstance(value, str):
            return str(value)
        return kind(value)
    except (TypeError, ValueError):
        name = getattr(kind, "__name__", str(kind))
        raise UserError(f"{where} is {value!r}; it must be of type {name}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping as it is, or from a list of ``key=value`` whose values are read as YAML."""
    if isinstance(value, dict):
        return value
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
