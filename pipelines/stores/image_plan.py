"""The plan of what a store describes: listed images and archives, written once, read by reruns and
workers.

`extract` and `import` cut it into parts alike.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.archives import ARCHIVE_SUFFIXES, archive_size, find_archives, path_of
from pipelines.sources.listing import list_images, listed_names
from pipelines.sources.spec import SourceSpec
from pipelines.storage.blocks import BlockFile
from pipelines.storage.byte_sources import open_bytes
from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.image_list import ImageReference, encode_name, image_table, references_of
from schemas.layout import ARCHIVES, ARCHIVES_NAME, IMAGES_NAME, LISTED, LISTED_NAME, SOURCE_NAME
from schemas.manifest import canonical_json, sha256_text
from schemas.plan import Unit
from schemas.row_ids import ROWS_A_PART

PART_BYTES = 256_000_000
PARTS_WISHED = (
    16  # small stores are cut finer, so that workers share them and little is lost on a kill
)


@dataclass(frozen=True)
class Archive:
    """An archive of a source. `prefix` stands before its members' paths in record ids."""

    source: str
    name: str
    bytes: int
    prefix: str
    listed: bool


@dataclass(frozen=True)
class Planned:
    """What is to be described: record ids of listed images, archives, and the hash of the lists of
    what they hold.
    """

    ids: Sequence[str]
    archives: tuple[Archive, ...]
    listed: str
    names: int = 0  # of these lists

    @property
    def images(self) -> int | None:
        """Images in all; None where archives without a list hold an unknown number."""
        return (
            len(self.ids) + self.names if all(archive.listed for archive in self.archives) else None
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the input: no places, no times."""
        if not self.archives:
            return sha256_text("\n".join(self.ids))
        archives = [asdict(archive) for archive in self.archives]
        return sha256_text(
            canonical_json([sha256_text("\n".join(self.ids)), archives, self.listed])
        )


def read_planned(place: Place, specs: Sequence[SourceSpec]) -> Planned | None:
    """What the store's plan says, or None where it has none of these sources, or it is damaged."""
    try:
        told = json.loads(place.read(SOURCE_NAME))
        images = place.read(IMAGES_NAME)
        if told["spec"] != _spec(specs) or told["images_sha256"] != sha256(images).hexdigest():
            return None
        archives = tuple(Archive(**archive) for archive in told["archives"])
        for name, expected in told["files"].items():
            if sha256(place.read(name)).hexdigest() != expected:
                return None
        named = int(told["names"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ids = pq.read_table(io.BytesIO(images), columns=["record_id"]).column("record_id").to_pylist()
    return Planned(ids, archives, told["listed"], named)


def changed_since(place: Place, specs: Sequence[SourceSpec], fingerprint: str) -> str:
    """In what the sources differ now from the store's plan, whose fingerprint is given, in words.

    "" where in nothing, or where they are remote or gone.
    """
    if any("://" in spec.images for spec in specs):
        return ""  # to list a remote place may take minutes
    try:
        now, _ = list_sources(specs)
    except UserError:
        return ""
    planned = read_planned(place, specs) if now.fingerprint != fingerprint else None
    if planned is None:
        return ""
    before, after = set(planned.ids), set(now.ids)
    found = [
        f"{len(ids):,} image{'s' * (len(ids) > 1)} {there} (such as {min(ids)})"
        for ids, there in ((after - before, "more"), (before - after, "fewer"))
        if ids
    ]
    return " and ".join(found) or "archives, lists or an order that are not those of before"


def list_sources(specs: Sequence[SourceSpec]) -> tuple[Planned, dict[str, bytes]]:
    """List all sources; gives what is planned and the plan's files. Raises UserError."""
    references: list[ImageReference] = []
    archives: list[Archive] = []
    urls: list[str] = []
    listed: list[tuple[str, str]] = []
    for spec in specs:
        if not spec.in_archives:
            references += list_images(spec)
            continue
        found = find_archives(spec.images)
        stems = [_stem(url) for url in found]
        if not spec.list and len(set(stems)) < len(stems):
            twice = next(stem for stem in stems if stems.count(stem) > 1)
            raise UserError(
                f"{spec.images}: two archives are called {twice}; give them as sources of their own"
            )
        for url, stem in zip(found, stems, strict=True):
            prefix = f"{stem}/" if len(found) > 1 and not spec.list else ""
            archives.append(
                Archive(spec.name, _name(url), archive_size(url), prefix, bool(spec.list))
            )
        urls += [url if "://" in url else os.path.abspath(os.path.expanduser(url)) for url in found]
        if spec.list:
            listed += [(spec.name, encode_name(name)) for name in listed_names(spec)]
    files = {IMAGES_NAME: images_file(references)}
    if archives:
        files[ARCHIVES_NAME] = table_file(pa.table({"url": urls}, schema=ARCHIVES))
    if listed:
        columns = {"source": [source for source, _ in listed], "name": [name for _, name in listed]}
        files[LISTED_NAME] = table_file(pa.table(columns, schema=LISTED))
    ids = [reference.record_id for reference in references]
    hashed = (
        sha256_text("\n".join(f"{source}\0{name}" for source, name in listed)) if listed else ""
    )
    planned = Planned(ids, tuple(archives), hashed, len(listed))
    told: dict[str, Any] = {
        "spec": _spec(specs),
        "images_sha256": sha256(files[IMAGES_NAME]).hexdigest(),
        "files": {
            name: sha256(data).hexdigest() for name, data in files.items() if name != IMAGES_NAME
        },
        "archives": [asdict(archive) for archive in archives],
        "listed": hashed,
        "names": len(listed),
    }
    return planned, {**files, SOURCE_NAME: json.dumps(told).encode()}


def read_slice(place: Place, unit: Unit) -> Sequence[ImageReference]:
    """The unit's slice of the plan; reads only the row groups that hold it."""
    name = unit.payload.get("again") or IMAGES_NAME
    references = references_of(read_rows(place, name, unit.payload["start"], unit.inputs))
    if (
        sha256_text("\n".join(reference.record_id for reference in references))
        != unit.payload["ids"]
    ):
        raise UserError(f"{place.url}/{name} is not what the plan says; give --overwrite")
    return references


def read_rows(place: Place, name: str, start: int, rows: int) -> pa.Table:
    """Rows of a plan's table; reads only the row groups that hold them."""
    with contextlib.closing(BlockFile(open_bytes(f"{place.url}/{name}"))) as stream:
        file = pq.ParquetFile(pa.PythonFile(stream, "r"))
        first, last = start // ROWS_A_PART, (start + rows - 1) // ROWS_A_PART
        table = file.read_row_groups(list(range(first, last + 1)))
    return table.slice(start - first * ROWS_A_PART, rows)


def rows_that_fit(bytes_an_image: int) -> int:
    """Images that a part may have: at most 4,096, and 256 MB."""
    return max(1, min(ROWS_A_PART, PART_BYTES // bytes_an_image))


def rows_per_part(bytes_an_image: int, images: int) -> int:
    """Images a part of a listing: as many as fit, but a small one is cut into about 16 parts of 32
    or more.
    """
    return min(rows_that_fit(bytes_an_image), max(32, -(-images // PARTS_WISHED)))


def repeated_places(names: Sequence[str]) -> set[int]:
    """Places of the ids that stand earlier already."""
    first: dict[str, int] = {}
    return {place for place, name in enumerate(names) if first.setdefault(name, place) != place}


def table_file(table: pa.Table) -> bytes:
    """A plan's table as `read_rows` reads it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROWS_A_PART)
    return buffer.getvalue()


def images_file(references: Sequence[ImageReference]) -> bytes:
    """A plan's table of images."""
    return table_file(image_table(references))


def _spec(specs: Sequence[SourceSpec]) -> str:
    return canonical_json([asdict(spec) for spec in specs])


def _name(url: str) -> str:
    return path_of(url).rstrip("/").rpartition("/")[2]


def _stem(url: str) -> str:
    name = _name(url)
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
