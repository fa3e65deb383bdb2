"""Checks of extractors' options."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UserError


def read_option(path: Path, option: str) -> bytes:
    """The bytes of the file that an option names. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The file {path} cannot be read ({error.strerror}): correct the extractor's option "
            f"{option!r}."
        ) from error


def check_whole(option: str, value: object, least: int, most: int) -> None:
    """Raise UserError unless the option's value is a whole number within its range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(
            f"The extractor's option {option} must be a whole number from {least} to {most}, not "
            f"{value!r}."
        )


def check_copies(sizes: object, max_locals: object, enlarge: object, min_size: object) -> None:
    """Raise UserError unless the options of an image's copies lie within their ranges."""
    if not isinstance(sizes, (list, tuple)) or not 1 <= len(sizes) <= 255:
        raise UserError(
            "The extractor's option sizes must be a list of 1 to 255 longest sides in pixels, "
            f"such as [512, 256] or [518], not {sizes!r}."
        )
    for size in sizes:
        check_whole("sizes", size, 32, 4096)
    if list(sizes) != sorted(set(sizes), reverse=True):
        raise UserError(
            "The extractor's option sizes must fall, each size once, the largest first, not "
            f"{list(sizes)!r}."
        )
    check_whole("max_locals", max_locals, 1, 65535)
    check_whole("min_size", min_size, 0, 4096)
    if (
        isinstance(enlarge, bool)
        or not isinstance(enlarge, (int, float))
        or not 1.0 <= enlarge <= 16.0
    ):
        raise UserError(
            f"The extractor's option enlarge must be a number from 1 to 16, not {enlarge!r}."
        )
