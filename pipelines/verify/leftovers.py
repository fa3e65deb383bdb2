"""Files in an output that nothing names, and which of them are ours."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from pipelines.storage.local import is_temporary
from pipelines.verify.outputs import Output
from pipelines.verify.problems import Leftover
from schemas.layout import LEASE_FOLDER, PIECES, TRANSIENT
from schemas.manifest import MANIFEST_NAME, PARTS_NAME

WRITTEN_INTO = frozenset(
    {"", "plan", "done", PIECES}
)  # folders in which a write that was killed leaves its file
_HASHED = r"\.[0-9a-f]{12}\."
_DATA = re.compile(rf"(.+){_HASHED}(\w+)")


def leftovers(output: Output) -> list[Leftover]:
    """Files of the folder that nothing names.

    None of outputs without markers: their other files are their own.
    """
    if not any(name.startswith("done/") for name in output.listing):
        return []
    units = [*output.units] or [*output.markers]
    expected = output.expected
    known = {
        MANIFEST_NAME,
        PARTS_NAME,
        *expected,
        *output.pieces,
        *(f"done/{unit}.json" for unit in units),
    }
    known |= {problem.file for problem in output.report.problems}
    ours = _our_names(units, expected)
    now = time.time()
    return [
        Leftover(
            name,
            listed.bytes,
            None if listed.written is None else now - listed.written,
            ours.fullmatch(name) is not None
            or (is_temporary(name) and name.rpartition("/")[0] in WRITTEN_INTO),
        )
        for name, listed in sorted(output.listing.items())
        if name not in known and (not name.startswith("plan/") or name.endswith(".tmp"))
    ]


def _our_names(units: Iterable[str], files: Iterable[str]) -> re.Pattern[str]:
    """What this software calls markers and data files of these units and kinds, whatever their
    numbers and hashes.

    All else in the same folders is somebody's own. What lies in the folders of attempts is ours
    whatever its name.
    """
    done = "|".join(sorted({_any_number(unit) for unit in units}))
    data = {
        f"{_any_number(match[1])}{_HASHED}{match[2]}"
        for name in files
        if (match := _DATA.fullmatch(name))
    }
    attempts = "|".join((*TRANSIENT, LEASE_FOLDER))
    return re.compile(
        "|".join(
            [
                f"(?:{attempts})/.+",
                rf"done/(?:{done})\.json",
                rf"{PIECES}/(?:{done})\.\d+\.json",
                *sorted(data),
            ]
        ),
        re.DOTALL,
    )


def _any_number(name: str) -> str:
    return re.sub(r"\d+", r"\\d+", re.escape(name))
