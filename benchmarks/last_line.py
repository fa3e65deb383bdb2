"""The last line that a benchmark prints: its figures as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print the figures as one line of JSON.

    Numbers and arrays of numpy become Python's; what is not finite becomes null.
    """
    print(json.dumps(_plain(figures), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()

    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
