"""Which record is meant by a name of a ground truth.

Ground truths name images loosely (`all_souls_000013`, `gallery/0001.jpg`); record ids are exact
(`source/relative/path.jpg#x,y,w,h`). Names are compared in four steps, each only among the names
and records that an earlier step left over, so that a loose rule never takes an image from an exact
one:

1. the name is the image id; 2. it is the path below the source; 3. the same, both without
extension; 4. both without extension, one is the end of the other: `jpg/0001.jpg` and `0001`, or
`0001.jpg` and `gallery/0001`, but never `distractors/0001.jpg` and `gallery/0001.jpg`.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence

from schemas.errors import UserError
from schemas.image_list import Box, encode_name, split_record_id

# Names in revisitop's files have no extension; any other dot ("photo.2019") belongs to the name.
_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"}
)
_BOX_TOLERANCE = 0.01  # pixels
STEPS = (1, 2, 3, 4)


class Names:
    """Names as the four steps see them, found by record."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact, self._bare, self._endings = (defaultdict[str, list[int]](list) for _ in "123")
        self._last: set[str] = set()  # pieces of names, without extension
        for position, name in enumerate(names):
            encoded = encode_name(name)
            for key in {name, encoded}:
                self._exact[key].append(position)
                self._last.add(_last(key))
            self._bare[_bare(encoded)].append(position)
            for ending in _proper_endings(_bare(encoded)):
                self._endings[ending].append(position)

    def candidates(self, step: int, source: str, path: str) -> Iterable[int]:
        """Positions of the names that a step (1 to 4) finds for an image."""
        if step == 1:
            return self._exact.get(f"{source}/{path}", ())
        if step == 2:
            return self._exact.get(path, ())
        if step == 3:
            return self._bare.get(_bare(path), ())
        below = (
            position
            for ending in _proper_endings(_bare(path))
            for position in self._bare.get(ending, ())
        )
        return {*below, *self._endings.get(_bare(path), ())}

    def possible(self, record_id: str) -> set[int]:
        """Positions of all names that any step finds for a record.

        What `match_names` makes of a gallery depends on records that have some alone.
        """
        if "#" not in record_id and _last(record_id) not in self._last:  # nearly all of millions
            return set()

        source, path, _ = split_record_id(record_id)
        return {one for step in STEPS for one in self.candidates(step, source, path)}


def match_names(
    entries: Sequence[tuple[str, Box | None]], record_ids: Iterable[str], what: str
) -> dict[str, int]:
    """The position in `entries` of each record that one of them names; other records are absent.

    Args:
        entries: name, percent-encoded like record ids or not, and box (x, y, w, h). Where both the
            entry and the record have a box, the two agree to 0.01 pixels.
        what: what messages call the entries.

    Raises:
        UserError: in one step two records match one name, or one record two names.
    """
    known = Names([name for name, _ in entries])
    records = {record_id: split_record_id(record_id) for record_id in record_ids}
    matched: dict[str, int] = {}
    taken: dict[int, str] = {}

    for step in STEPS:
        matches: dict[int, str] = {}
        for record_id, (source, path, box) in records.items():
            if record_id in matched:
                continue
            fitting = [
                position
                for position in known.candidates(step, source, path)
                if position not in taken and _agree(box, entries[position][1])
            ]
            if len(fitting) > 1:
                names = " and ".join(repr(entries[position][0]) for position in sorted(fitting)[:2])
                raise UserError(
                    f"The record {record_id} matches both {names} in {what}; name it there by its "
                    "image id."
                )
            if fitting and matches.setdefault(fitting[0], record_id) != record_id:
                raise UserError(
                    f"{entries[fitting[0]][0]!r} in {what} matches both {matches[fitting[0]]} and "
                    f"{record_id}; name the right one there by its image id."
                )
        taken |= matches
        matched |= {record_id: position for position, record_id in matches.items()}

    return matched


def _bare(name: str) -> str:
    """The name without a known image extension."""
    stem, extension = posixpath.splitext(name)
    return stem if extension.lower() in _EXTENSIONS else name


def _last(name: str) -> str:
    """The last piece of a name, without a known image extension: all steps keep it."""
    return _bare(name.rpartition("/")[2])


def _proper_endings(name: str) -> list[str]:
    """`a/b/c` -> `b/c`, `c`."""
    pieces = name.split("/")
    return ["/".join(pieces[first:]) for first in range(1, len(pieces))]


def _agree(first: Box | None, second: Box | None) -> bool:
    if first is None or second is None:
        return True
    return all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(first, second, strict=True))
