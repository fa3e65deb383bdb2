"""The outputs of tests/old_outputs in a test's own folder, its place put in for theirs."""

from __future__ import annotations

import json
import os
import shlex
import tarfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OLD = Path(__file__).resolve().parents[1] / "old_outputs"
MADE = json.loads((OLD / "commands.json").read_text())


@dataclass(frozen=True)
class OldOutputs:
    """All old outputs and their inputs below a folder."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        """The folder of an output, or of one of those in it."""
        return self.root / "outputs" / name

    def commands(self, name: str) -> list[list[str]]:
        """The commands that made an output, in their order, with the places as they are now."""
        place, new = MADE["place"], str(self.root)
        listed = [shlex.split(line) for line in MADE["outputs"][name]]
        return [[text.replace(place, new) for text in arguments] for arguments in listed]


def unpack(root: Path) -> OldOutputs:
    """The old outputs below `root`, as if they had been made there."""
    for member, data in _members():
        path = root / member.name
        if data is None:
            path.mkdir()
            continue
        path.write_bytes(data)
        os.utime(path, (member.mtime, member.mtime))

    (root / "inputs/sources.yaml").write_text(_moved_text(root / "inputs/sources.yaml", root))
    for path in sorted((root / "outputs").rglob("*")):
        if path.suffix == ".parquet" and path.parent.name == "plan":
            _move_table(path, root)
        elif path.name in ("manifest.json", "job.json", "source.json"):
            path.write_text(_moved_text(path, root))

    for path in (root / "outputs").rglob("plan/source.json"):
        _hash_again(path)
    return OldOutputs(root)


@cache
def _members() -> list[tuple[tarfile.TarInfo, bytes | None]]:
    """What is packed: folders, and files with their bytes; unpacked once for all tests."""
    with tarfile.open(OLD / "old_outputs.tar.xz") as archive:
        held = []
        for member in archive:
            file = archive.extractfile(member)
            held.append((member, file.read() if file else None))
        return held


def _moved_text(path: Path, root: Path) -> str:
    return path.read_text().replace(MADE["place"], str(root))


def _move_table(path: Path, root: Path) -> None:
    """Move the places in a plan's table, and write it as the program would that lists it anew."""
    table = pq.read_table(path)
    place, new = MADE["place"], str(root)
    columns, fields = [], []
    for field in table.schema:
        values = table.column(field.name).to_pylist()
        if pa.types.is_string(field.type):
            values = [text.replace(place, new) for text in values]
        elif pa.types.is_binary(field.type):
            values = [text and text.replace(place.encode(), new.encode()) for text in values]
        elif pa.types.is_list(field.type):  # read from Parquet, its items have another name
            field = field.with_type(pa.list_(field.type.value_type))
        columns.append(pa.array(values, field.type))
        fields.append(field)
    pq.write_table(pa.table(columns, pa.schema(fields, table.schema.metadata)), path)


def _hash_again(source: Path) -> None:
    """Let plan/source.json name the hashes of the plan's tables as they are now."""
    record = json.loads(source.read_text())
    store = source.parents[1]
    record["images_sha256"] = sha256((store / "plan/images.parquet").read_bytes()).hexdigest()
    for name in record["files"]:
        record["files"][name] = sha256((store / name).read_bytes()).hexdigest()
    source.write_text(json.dumps(record))
