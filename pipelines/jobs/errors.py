"""Records of units' exceptions, in `errors/`: how a worker reports them to the driver."""

from __future__ import annotations

import contextlib
import json
import traceback
from typing import Any

from pipelines.storage.local import REFUSED, full_disk
from pipelines.storage.protocol import Place
from schemas.errors import Damaged, UserError
from schemas.inside import read_json
from schemas.layout import PLAN_NAME


def final_error(error: Exception, place: Place) -> UserError | None:
    """The user's mistake, or the disk's refusal, behind an error: no retry fixes it."""
    if isinstance(error, UserError):
        return error

    refused = full_disk(error, place.url)
    if refused is None and isinstance(error, OSError) and error.errno in REFUSED:
        where = f"{error.filename or place.url} cannot be used"
        return UserError(f"{where}: {REFUSED[error.errno]}; fix it, the same command goes on")

    return refused


def gone(place: Place) -> UserError:
    """The sentence for an output that somebody removed under its workers."""
    return UserError(
        f"{place.url}: the folder, or its {PLAN_NAME}, was removed while the command ran; give the "
        f"command again"
    )


def write_error(place: Place, unit: str, error: Exception) -> None:
    """Write a unit's exception down for the driver: a sentence, whether a retry is of use, the
    traceback.
    """
    final = final_error(error, place)
    record = {
        "unit": unit,
        "sentence": str(final) if final else f"{type(error).__name__}: {error}",
        "final": final is not None,
        "damaged": isinstance(final, Damaged),
        "later": final is not None and not final.at_once,
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError, UserError):  # a full disk: the driver finds it out by itself
        place.write(f"errors/{unit}.json", json.dumps(record).encode(), durable=False)


def read_error(place: Place, unit: str) -> dict[str, Any] | None:
    """What was written down of a unit's exception, if anything was."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        record = read_json(place.read_record(f"errors/{unit}.json"))
        if isinstance(record, dict) and {"sentence", "final", "traceback"} <= record.keys():
            return record

    return None
