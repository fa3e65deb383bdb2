"""The pictures of a report: read where the images lie, drawn small, embedded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

from PIL import Image as PillowImage

from pipelines.report.page import ReportImage
from pipelines.sources.item import read_location
from rrt_core.images import DecodeError, decode
from schemas.errors import UserError
from schemas.image_list import Box, ImageReference


class Pictures:
    """Thumbnails, made once each."""

    def __init__(self, side: int, references: Mapping[str, ImageReference]) -> None:
        self.side, self.references = side, references
        self._made: dict[str, ReportImage] = {}

    def picture(self, record_id: str) -> ReportImage:
        """The thumbnail of a record with its box; grey where the image cannot be read any more."""
        if record_id not in self._made:
            self._made[record_id] = self._make(record_id)
        return self._made[record_id]

    def _make(self, record_id: str) -> ReportImage:
        reference, data = self.references.get(record_id), b""
        with contextlib.suppress(OSError, UserError):  # UserError: a place that does not answer
            data = read_location(reference.location) if reference else b""
        return self._thumbnail(record_id, data, reference.box if reference else None)

    def add(self, record_id: str, data: bytes) -> None:
        """Make the thumbnail of a record from its file's bytes."""
        self._made[record_id] = self._thumbnail(record_id, data, None)

    def _thumbnail(self, record_id: str, data: bytes, part: Box | None) -> ReportImage:
        box = None
        try:
            image = decode(data, record_id)
            picture = PillowImage.fromarray(image.pixels)
            factor = self.side / max(picture.size)
            if part:
                x, y, w, h = (value * factor for value in part)
                box = (x, y, w, h)
            picture.thumbnail(
                (self.side, self.side), PillowImage.Resampling.LANCZOS, reducing_gap=2.0
            )
        except DecodeError:
            picture = PillowImage.new("RGB", (self.side, self.side * 3 // 4), (128, 128, 128))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=78, optimize=True)
        return ReportImage(record_id, buffer.getvalue(), box)
