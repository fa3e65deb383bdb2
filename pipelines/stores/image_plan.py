"""The plan of what a store describes: listed images and archives, written once.

Reruns and workers read it; `extract` and `import` cut it into parts alike.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256

import pyarrow as pa

from pipelines.sources.archives import ARCHIVE_SUFFIXES, archive_size, find_archives, path_of
from pipelines.sources.listing import list_images, listed_names
from pipelines.sources.spec import SourceSpec
from pipelines.storage.byte_sources import open_table
from pipelines.storage.protocol import Place
from pipelines.storage.tables import parse_table, read_table, table_bytes
from schemas.errors import UserError
from schemas.image_list import ImageReference, encode_name, image_table, references_of
from schemas.inside import check_inside, read_json
from schemas.layout import (
    ARCHIVES,
    ARCHIVES_NAME,
    IMAGES_NAME,
    LISTED,
    LISTED_NAME,
    ROWS_A_PART,
    SOURCE_NAME,
)
from schemas.manifest import canonical_json, sha256_text
from schemas.plan import ListedImages, ListedImagesAgain, Unit

PART_BYTES = 256_000_000
PARTS_WANTED = 16  # of small stores, so that workers share them and little is lost on a kill


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
    """What is to be described: record ids of listed images, archives, what lists say of these."""

    ids: Sequence[str]
    archives: tuple[Archive, ...]
    listed: str  # hash of the lists of what archives hold
    names: int = 0  # of these lists
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files that are no images here

    @property
    def images(self) -> int | None:
        """Images in all; None where archives without a list hold an unknown number."""
        known = all(archive.listed for archive in self.archives)
        return len(self.ids) + self.names if known else None

    @property
    def fingerprint(self) -> str:
        """Identity of the input: no places, no times."""
        ids = sha256_text("\n".join(self.ids))
        if not self.archives:
            return ids

        archives = [asdict(archive) for archive in self.archives]
        return sha256_text(canonical_json([ids, archives, self.listed]))


def read_planned(place: Place, specs: Sequence[SourceSpec]) -> Planned | None:
    """What the store's plan says; None where it has none of these sources, or it is damaged."""
    try:
        source = read_json(place.read_record(SOURCE_NAME))
        hashes = {IMAGES_NAME: source["images_sha256"], **source["files"]}
        files = {name: place.read(check_inside(name)) for name in hashes}
        archives = tuple(Archive(**archive) for archive in source["archives"])
        listed, names = source["listed"], int(source["names"])
        passed_over = {
            str(suffix): int(count) for suffix, count in source.get("passed_over", {}).items()
        }
        same = source["spec"] == _spec(specs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not same or any(sha256(files[name]).hexdigest() != hashes[name] for name in files):
        return None

    table = parse_table(files[IMAGES_NAME], IMAGES_NAME, ["record_id"])
    return Planned(table.column("record_id").to_pylist(), archives, listed, names, passed_over)


def changed_since(place: Place, specs: Sequence[SourceSpec], fingerprint: str) -> str:
    """How the sources differ now from the store's plan, whose fingerprint is given, in words.

    "" where they do not, or where they are remote or gone.
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
    differences = [
        f"{len(ids):,} image{'s' * (len(ids) > 1)} {how} (such as {min(ids)})"
        for ids, how in ((after - before, "more"), (before - after, "fewer"))
        if ids
    ]
    return " and ".join(differences) or "archives, lists or an order that are not those of before"


def list_sources(specs: Sequence[SourceSpec]) -> tuple[Planned, dict[str, bytes]]:
    """List all sources; gives what is planned and the plan's files. Raises UserError."""
    references: list[ImageReference] = []
    archives: list[tuple[str, Archive]] = []  # where each lies
    listed: list[tuple[str, str]] = []  # source, name
    passed_over = Counter[str]()
    for spec in specs:
        if spec.in_archives:
            archives += _archives_of(spec)
            if spec.list:
                listed += [(spec.name, encode_name(name)) for name in listed_names(spec)]
        else:
            references += list_images(spec, passed_over)

    files = {IMAGES_NAME: images_file(references)}
    if archives:
        urls = [url for url, _ in archives]
        files[ARCHIVES_NAME] = table_file(pa.table({"url": urls}, schema=ARCHIVES))
    hashed = ""
    if listed:
        sources, names = zip(*listed, strict=True)
        table = pa.table({"source": list(sources), "name": list(names)}, schema=LISTED)
        files[LISTED_NAME] = table_file(table)
        hashed = sha256_text("\n".join(f"{source}\0{name}" for source, name in listed))

    ids = [reference.record_id for reference in references]
    kinds = tuple(archive for _, archive in archives)
    planned = Planned(ids, kinds, hashed, len(listed), dict(passed_over))
    hashes = {name: sha256(data).hexdigest() for name, data in files.items()}
    source = {
        "spec": _spec(specs),
        "images_sha256": hashes.pop(IMAGES_NAME),
        "files": hashes,
        "archives": [asdict(archive) for archive in planned.archives],
        "listed": hashed,
        "names": len(listed),
        **({"passed_over": dict(passed_over)} if passed_over else {}),
    }
    return planned, {**files, SOURCE_NAME: json.dumps(source).encode()}


def _archives_of(spec: SourceSpec) -> Iterator[tuple[str, Archive]]:
    """Where each archive of a source lies. Raises UserError where two are called alike."""
    urls = find_archives(spec.images)
    names = [path_of(url).rpartition("/")[2] for url in urls]
    stems = [_stem(name) for name in names]
    if not spec.list and len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(
            f"{spec.images}: two archives are called {twice}; give them as sources of their own"
        )

    for url, name, stem in zip(urls, names, stems, strict=True):
        prefix = f"{stem}/" if len(urls) > 1 and not spec.list else ""
        where = url if "://" in url else os.path.abspath(os.path.expanduser(url))
        yield where, Archive(spec.name, name, archive_size(url), prefix, bool(spec.list))


def read_slice(place: Place, unit: Unit) -> Sequence[ImageReference]:
    """The unit's slice of the plan; reads only the row groups that hold it."""
    work = unit.of(ListedImages)
    name = work.again or IMAGES_NAME
    references = references_of(read_rows(place, name, work.start, unit.inputs))
    if sha256_text("\n".join(reference.record_id for reference in references)) != work.ids:
        raise UserError(f"{place.url}/{name} is not what the plan says; give --overwrite")
    return references


def read_ids(place: Place, name: str) -> frozenset[str]:
    """The record ids of a plan's table of images."""
    table = read_table(place, name, ["record_id"])
    return frozenset(table.column("record_id").to_pylist())


def read_rows(place: Place, name: str, start: int, rows: int) -> pa.Table:
    """Rows of a plan's table; reads only the row groups that hold them."""
    with open_table(place, name) as file:
        first, last = start // ROWS_A_PART, (start + rows - 1) // ROWS_A_PART
        table = file.read_row_groups(list(range(first, last + 1)))
    return table.slice(start - first * ROWS_A_PART, rows)


def rows_that_fit(bytes_an_image: int) -> int:
    """Images that a part may have: at most 4,096, and 256 MB."""
    return max(1, min(ROWS_A_PART, PART_BYTES // bytes_an_image))


def rows_per_part(bytes_an_image: int, images: int) -> int:
    """Images a part: as many as fit; a small listing is cut into about 16 parts of 32 or more."""
    return min(rows_that_fit(bytes_an_image), max(32, -(-images // PARTS_WANTED)))


def listed_units(
    names: Sequence[str], rows: int, part: int = 0, step: int = 1, again: str = ""
) -> Iterator[Unit]:
    """Units of the images of a table, so many rows each, for the parts `part`, `part + step` ...

    names  record ids of the table's rows
    again  the table's name, where it is one of failed images; "" for the plan's own
    """
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        first.setdefault(name, row)

    for number, start in enumerate(range(0, len(names), rows)):
        ids = names[start : start + rows]
        repeated = tuple(row for row, name in enumerate(ids) if first[name] != start + row)
        fields = (part + number * step, start, sha256_text("\n".join(ids)), repeated)
        work = ListedImagesAgain(*fields, again=again) if again else ListedImages(*fields)
        yield Unit(f"part-{work.part:05}", work, len(ids))


def table_file(table: pa.Table) -> bytes:
    """A plan's table as `read_rows` reads it."""
    return table_bytes(table, row_group_size=ROWS_A_PART)


def images_file(references: Sequence[ImageReference]) -> bytes:
    """A plan's table of images."""
    return table_file(image_table(references))


def _spec(specs: Sequence[SourceSpec]) -> str:
    return canonical_json([asdict(spec) for spec in specs])


def _stem(name: str) -> str:
    suffix = next(suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix))
    return name[: -len(suffix)]
