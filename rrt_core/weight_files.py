"""Safetensors with their header in a fixed order, so that equal weights are equal bytes."""

from __future__ import annotations

import json


def sorted_header(data: bytes) -> bytes:
    """The safetensors file with its header's keys sorted.

    The library writes metadata in another order every time.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(
        json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
