"""Bytes, durations and workers in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def workers_text(count: int) -> str:
    """``1 worker``, ``8 workers``."""
    return f"{count:,} worker{'s' if count != 1 else ''}"


def byte_text(count: float) -> str:
    """Bytes in a unit that suits: ``3.4 MB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return (
                f"{count / size:,.1f} {unit}"
                if abs(count) < 100 * size
                else f"{count / size:,.0f} {unit}"
            )
    return f"{count:.0f} bytes"
