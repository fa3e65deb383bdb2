"""Checks of extractors' options."""

from __future__ import annotations

from pathlib import Path

from rrt_core.execution import TORCH
from rrt_core.extractors.spread import STRENGTH
from rrt_core.options import check_number, check_whole
from schemas.errors import UserError

# Options that extractors did not always have -> what stores of before were described with. A
# configuration is silent on that value, so that those stores are what they were.
FORMER = {"order": STRENGTH, "execution": TORCH}


def later_config(**given: str) -> dict[str, str]:
    """What of such options goes into a configuration."""
    return {option: value for option, value in given.items() if value != FORMER[option]}


def read_option(path: Path, option: str) -> bytes:
    """The bytes of the file that an option names. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The file {path} cannot be read ({error.strerror}): correct the extractor's option "
            f"{option!r}."
        ) from error


def check_copies(sizes: object, max_locals: object, enlarge: object, min_size: object) -> None:
    """Raise UserError unless the options of an image's copies lie within their ranges."""
    if not isinstance(sizes, (list, tuple)) or not 1 <= len(sizes) <= 255:
        raise UserError(
            "The extractor's option sizes must be a longest side in pixels or a list of 1 to 255 "
            f"of them, such as 518 or [512, 256], not {sizes!r}."
        )
    for size in sizes:
        check_whole("The extractor's option sizes", size, 32, 4096)
    if list(sizes) != sorted(set(sizes), reverse=True):
        raise UserError(
            "The extractor's option sizes must fall, each size once, the largest first, not "
            f"{list(sizes)!r}."
        )
    check_whole("The extractor's option max_locals", max_locals, 1, 65535)
    check_whole("The extractor's option min_size", min_size, 0, 4096)
    check_number("The extractor's option enlarge", enlarge, 1.0, 16.0)
