"""Checks of the values that a user gives to options; `what` begins the sentence of the error."""

from __future__ import annotations

import math
from collections.abc import Collection

from schemas.errors import UserError


def check_whole(what: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise UserError unless the value is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        up_to = f" to {most:.0f}" if most < math.inf else ""
        raise UserError(f"{what} must be a whole number from {least}{up_to}, not {value!r}.")


def check_number(what: str, value: object, least: float, most: float) -> float:
    """The value as a float. Raise UserError unless it is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{what} must be a number from {least:g} to {most:g}, not {value!r}.")
    return float(value)


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Raise UserError unless the value is one of the known."""
    if value not in known:
        raise UserError(f"{what} is {value!r}; it must be one of {', '.join(known)}.")
