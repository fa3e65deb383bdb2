"""The pictures of a report: read where the images lie now, drawn small, embedded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from PIL import Image as PillowImage

from pipelines.report.archived import archived_pictures
from pipelines.report.page import ReportImage
from pipelines.report.whereabouts import Whereabouts, why_unreadable
from pipelines.sources.item import read_location
from pipelines.stores.store import Store
from rrt_core.images import DecodeError, decode
from schemas.errors import UserError
from schemas.image_list import Box, ImageReference, decode_name, split_record_id

NOT_AT_HAND = "it is in no file that its store names, or in an archive that is not at hand"


class Pictures:
    """Thumbnails, made once each.

    missing: record id -> why its picture cannot be shown.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.missing: dict[str, str] = {}
        self._made: dict[str, ReportImage] = {}

    def add(self, store: Store, record_ids: Iterable[str], given: Sequence[str]) -> None:
        """Make the thumbnails of some records of a store.

        given: folders that stand for those of the images. A picture whose SHA-256 is not that of
        the image that was described is another one, and is not shown.
        """
        wanted = set(record_ids) - self._made.keys()
        references, described = store.references(wanted), store.digests(wanted)
        whereabouts = Whereabouts(given, store.place.url)
        for record_id, reference in references.items():
            digest = described.get(record_id, "")
            data, why = _read(reference, digest, whereabouts)
            self._add(record_id, data, why, reference.box)

        archived = (wanted & described.keys()) - references.keys()
        for record_id, data in archived_pictures(store, archived, whereabouts):
            if described[record_id] in ("", sha256(data).hexdigest()):
                self._add(record_id, data, "", None)

    def picture(self, record_id: str) -> ReportImage:
        """The thumbnail of a record with its box; grey, and marked, where there is none."""
        if record_id not in self._made:
            self._add(record_id, b"", NOT_AT_HAND, None)
        return self._made[record_id]

    def notes(self, kind: str, record_ids: Iterable[str]) -> Mapping[str, int | str]:
        """How many of these records' pictures there are, how many are missing, and why the first
        is.
        """
        shown = set(record_ids)
        missing = sorted(shown & self.missing.keys())
        if not missing:
            return {}
        return {
            f"{kind}_pictures": len(shown),
            f"{kind}_pictures_missing": len(missing),
            f"{kind}_pictures_why": self.missing[missing[0]],
        }

    def _add(self, record_id: str, data: bytes, why: str, part: Box | None) -> None:
        try:
            image = decode(data, record_id) if not why else None
        except DecodeError as error:
            image, why = None, f"{record_id}: {error}"

        box = None
        if image is None:
            self.missing[record_id] = why
            picture = PillowImage.new("RGB", (self.side, self.side * 3 // 4), (128, 128, 128))
        else:
            picture = PillowImage.fromarray(image.pixels)
            if part:
                factor = self.side / max(picture.size)
                x, y, w, h = (value * factor for value in part)
                box = (x, y, w, h)
            size = (self.side, self.side)
            picture.thumbnail(size, PillowImage.Resampling.LANCZOS, reducing_gap=2.0)

        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=78, optimize=True)
        self._made[record_id] = ReportImage(record_id, buffer.getvalue(), box, image is None)


def _read(reference: ImageReference, digest: str, places: Whereabouts) -> tuple[bytes, str]:
    """The bytes of an image's file, or why there are none."""
    below = decode_name(split_record_id(reference.record_id)[1])
    whys: dict[bytes, str] = {}
    for location in places.of(reference.location, below):
        try:
            data = read_location(location)
        except OSError as error:
            whys[location] = why_unreadable(location, below, error)
            continue
        except UserError as error:  # a place that does not answer
            whys[location] = str(error)
            continue
        if digest in ("", sha256(data).hexdigest()):
            return data, ""
        whys[location] = f"{os.fsdecode(location)}: it is not the image that was described"

    other = (why for why in whys.values() if why.endswith("that was described"))
    return b"", next(other, whys.get(reference.location) or NOT_AT_HAND)
