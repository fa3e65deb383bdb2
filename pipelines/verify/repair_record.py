"""What an output was before its repair, kept until the end, and what has changed since."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain

from pipelines.jobs.markers import software_versions
from pipelines.jobs.plan import differences
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from pipelines.verify.outputs import Output
from pipelines.verify.problems import REDO, UNREADABLE, Findings
from schemas.inside import check_inside, check_unit_name, read_strictly
from schemas.layout import REPAIR_RECORD
from schemas.manifest import MANIFEST_NAME, Manifest, read_record

REPAIR_SCHEMA = "rrt-repair/1"
MOST_NAMED = 20  # changed images that are named


@dataclass(frozen=True)
class Record:
    """What repair/record.json holds: what an output was before its repair."""

    content: str  # its content hash; "" where that is not known
    versions: dict[str, str]  # of the software that made it
    units: dict[str, dict[str, str]]  # damaged unit -> its files -> SHA-256
    damaged: tuple[str, ...]  # files, which are removed at the end

    def __post_init__(self) -> None:
        for unit in self.units:
            check_unit_name(unit)
        for name in chain(self.damaged, *self.units.values()):
            check_inside(name)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        record = {"schema": REPAIR_SCHEMA, **asdict(self)}
        return (json.dumps(record, sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> Record:
        """The record. Raises ValueError, with the place of what is wrong."""
        return read_strictly(read_record(data, REPAIR_SCHEMA), Record)


def new_record(output: Output, findings: Findings) -> Record:
    """The record of a repair that begins; what an interrupted one wrote down is older and stays."""
    old = Record("", {}, {}, ())
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one counts as absent
        old = Record.from_bytes(output.place.read_record(REPAIR_RECORD))

    units: dict[str, dict[str, str]] = {unit: {} for unit in findings.damaged_units}
    for name, (unit, entry) in output.expected.items():
        if unit in units:
            units[unit][name] = entry.sha256

    manifest = output.manifest
    content = next(iter(output.contents().values()), "")
    if manifest is not None and not any(one.file == MANIFEST_NAME for one in findings.problems):
        content = manifest.content
    damaged = {problem.file for problem in findings.problems if problem.fix == REDO}
    return Record(
        content=old.content or content,
        versions=old.versions or (manifest.versions if manifest else {}),
        units=units | {unit: files for unit, files in old.units.items() if files},
        damaged=tuple(sorted({*damaged, *old.damaged})),
    )


def changes(output: Output, record: Record, manifest: Manifest) -> Iterator[str]:
    """What came of a repair, a line each."""
    units, url, now = sorted(record.units), output.place.url, manifest.content[:12]
    done = "the manifest was written again"
    if units:
        named = ", ".join(units[:MOST_NAMED])
        done = f"{len(units):,} of {len(output.units):,} units were done again: {named}"

    if not record.content:
        yield f"{url}: {done}; what its content was is not known"
        return
    if manifest.content == record.content:
        yield f"{url}: {done}; it is what it was, byte for byte (content {now})"
        return

    yield (
        f"{url}: {done}; its content was {record.content[:12]}, is now {now}: what was made "
        f"from it (an index, a shortlist) must be made again"
    )
    for unit in units:
        yield from (f"  {unit}: {line}" for line in _unit_changes(output, unit, record.units))
    versions = "; ".join(differences(record.versions, software_versions()))
    if versions:
        yield f"{url}: other software than before may give other bytes ({versions})"


def _unit_changes(output: Output, unit: str, units: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Images of a unit that are gone or others, a line each; where there are none, its files."""
    before = {name.split(".")[0]: name for name in units[unit]}
    files = output.markers[unit].files if unit in output.markers else ()
    new = sorted(entry.name for entry in files if entry.name not in units[unit])
    lines = [
        line
        for name in new
        if name.startswith("global/") and name.split(".")[0] in before
        for line in _row_changes(output.place, before[name.split(".")[0]], name)
    ]
    if len(lines) > MOST_NAMED:
        lines[MOST_NAMED:] = [f"and {len(lines) - MOST_NAMED:,} rows more"]
    return lines or ([f"other than before: {', '.join(new)}"] if new else [])


def _row_changes(place: Place, before: str, now: str) -> Iterator[str]:
    """How the images of a part's rows changed, where its globals of before are still readable."""
    columns = ["record_id", "sha256", "status"]
    with contextlib.suppress(*UNREADABLE):
        old, new = (read_table(place, name, columns).to_pylist() for name in (before, now))
        for row, (was, is_) in enumerate(zip(old, new, strict=False)):
            what = {
                "ok": "is described now, and failed before",
                "failed": "failed now, and was described before",
            }.get(is_["status"], is_["status"])
            if is_["record_id"] != was["record_id"]:
                what = f"was the row of {was['record_id']}"
            elif is_["status"] == was["status"]:
                what = "its image file is another than before"
            if was != is_:
                yield f"row {row}, {is_['record_id']}: {what}"
