"""The images of an archive as items, in the order of its stream, each with its record id."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b

import numpy as np
import pyarrow.compute as pc

from pipelines.sources.archives import ArchiveDamaged, entries
from pipelines.sources.item import MOST_BYTES, Item
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from rrt_core.images import DecodeError
from schemas.image_list import ImageReference, decode_name, encode_name, make_record_id
from schemas.layout import ARCHIVES_NAME, KEEP_DAMAGED, LISTED_NAME
from schemas.plan import ArchivedImages

DAMAGED = "damaged_archive"  # class of the failed row for what cannot be read of an archive
REPEATED = "the record id stands twice in the archive; only the first is described"


def short_hash(text: str) -> int:
    """64 bits that stand for a text, where a million of them must be held in memory."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes(texts: Iterable[str]) -> np.ndarray:
    """uint64 [n], sorted."""
    return np.sort(np.fromiter((short_hash(text) for text in texts), np.uint64))


def holds(sorted_hashes: np.ndarray, text: str) -> bool:
    """Whether the text's hash is among them."""
    place = int(np.searchsorted(sorted_hashes, np.uint64(short_hash(text))))
    return place < len(sorted_hashes) and int(sorted_hashes[place]) == short_hash(text)


class Listed:
    """The names (as id text) that a source's list holds, 8 bytes a name."""

    def __init__(self, place: Place, source: str) -> None:
        table = read_table(place, LISTED_NAME)
        names = table.filter(pc.equal(table.column("source"), source)).column("name")
        self.hashes = hashes(name.as_py() for name in names)

    def name(self, member: str) -> str | None:
        """The longest listed name that a member's path is or ends with; None where none is."""
        pieces = member.split("/")
        endings = ("/".join(pieces[first:]) for first in range(len(pieces)))
        return next((ending for ending in endings if holds(self.hashes, ending)), None)


def archive_url(place: Place, ordinal: int) -> str:
    """Where an archive of a store's plan lies."""
    url: str = read_table(place, ARCHIVES_NAME).column("url")[ordinal].as_py()
    return url


class ArchiveImages:
    """Iterates over an archive's images as items.

    prefix    a folder before the members' paths in record ids: the archive's name, where there are
              several
    listed    only images that the list names are inputs; they have its name in their record ids
    only      only these record ids are inputs
    keep      name of an item for what cannot be read of a damaged archive; "" raises instead
    position  share of the archive's bytes read so far
    unlisted  images so far that the list does not name
    passed_over  files so far of image formats that are not decoded here, by suffix
    damaged   whether an item stood for what cannot be read of the archive
    """

    def __init__(
        self,
        url: str,
        source: str,
        prefix: str,
        listed: Listed | None = None,
        only: Collection[str] | None = None,
        *,
        keep: str = "",
    ) -> None:
        self.url, self.source, self.prefix = url, source, prefix
        self.listed, self.only, self.keep = listed, only, keep
        self.position, self.unlisted, self.damaged = 0.0, 0, False
        self.passed_over = Counter[str]()
        self._stream = self._kept() if keep else self._items()

    def __iter__(self) -> Iterator[Item]:
        return self._stream

    def record_id(self, member: bytes) -> str | None:
        """The record id of a member; None where the list does not name it."""
        if self.listed is None:
            return make_record_id(self.source, os.fsencode(self.prefix) + member)
        name = self.listed.name(encode_name(member))
        return None if name is None else make_record_id(self.source, decode_name(name))

    def _wanted(self, member: bytes) -> bool:
        record_id = self.record_id(member)
        return record_id is not None and (self.only is None or record_id in self.only)

    def _kept(self) -> Iterator[Item]:
        try:
            yield from self._items()
        except ArchiveDamaged as error:
            if self.only is None:
                self.damaged = True
                record_id = make_record_id(self.source, self.keep)
                reference = ImageReference(record_id, self.source, os.fsencode(self.url))
                yield Item(reference, refusal=DecodeError(error.reason, DAMAGED))

    def _items(self) -> Iterator[Item]:
        location, seen = os.fsencode(self.url), set[int]()
        for entry in entries(
            self.url, self._wanted, most_bytes=MOST_BYTES, passed_over=self.passed_over
        ):
            self.position = entry.position
            record_id = self.record_id(entry.name)
            if record_id is None:
                self.unlisted += 1
                continue

            repeated = short_hash(record_id) in seen
            seen.add(short_hash(record_id))
            if self.only is not None and (record_id not in self.only or repeated):
                continue

            refusal = DecodeError(entry.reason, entry.error_class) if entry.reason else None
            if repeated:
                refusal = DecodeError(REPEATED, "duplicate")
            reference = ImageReference(record_id, self.source, location)
            yield Item(reference, None if refusal else entry.data, refusal)


def kept_name(place: Place, work: ArchivedImages) -> str:
    """The name of what cannot be read of an archive, where the store's plan says to keep the rest.

    "" where it does not.
    """
    if not place.exists(KEEP_DAMAGED):
        return ""
    # with a list archives of two folders may be called alike
    return f"archive-{work.archive:05}/{work.name}" if work.listed else work.name


def open_archive(
    place: Place,
    work: ArchivedImages,
    only: Collection[str] | None = None,
    lists: dict[str, Listed] | None = None,
    url: str = "",
) -> ArchiveImages:
    """The images of an archive of a store's plan; `lists` keeps the lists of sources for the next.

    only  record ids of the images that are wanted; None for all
    url   where it lies now; "": where the plan says
    """
    lists = {} if lists is None else lists
    if work.listed and work.source not in lists:
        lists[work.source] = Listed(place, work.source)

    url = url or archive_url(place, work.archive)
    listed, keep = lists[work.source] if work.listed else None, kept_name(place, work)
    return ArchiveImages(url, work.source, work.prefix, listed, only, keep=keep)
