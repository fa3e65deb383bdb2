"""Names of files inside an output: relative, and never out of it."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|::|://")


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
