"""What is right for each query: the gallery, its images that match, and those that do not count.

Ours is JSON::

    {"schema": "rrt-ground-truth/1", "name": "roxford5k", "gallery": ["all_souls_000013", ...],
     "queries": [{"name": ..., "box": [x, y, w, h] or null, "easy": [...], "hard": [...], "junk":
     [...]}]}

where a list holds 0-based positions in the gallery or names of it; a file whose queries all have
`positive` in the place of `easy` and `hard` knows no levels. The pickles of Revisited Oxford and
Paris (`imlist`, `qimlist`, `gnd[i]` with `bbx` [x0, y0, x1, y1], `easy`, `hard`, `junk`), and those
of the older Oxford5k and Paris6k (`ok` for the two), are read too, and so are MATLAB's files of the
former.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import fsspec

from schemas import inside
from schemas.errors import UserError
from schemas.ground_truth.matlab import load_matlab
from schemas.ground_truth.name_matching import match_names
from schemas.ground_truth.restricted_pickle import load_plain
from schemas.image_list import Box, encode_name
from schemas.registry import Registry

MOST_BYTES = 128_000_000  # the gallery of a million images has some 40 MB
SCHEMA = "rrt-ground-truth/1"

# How a file's name ends -> ``read(data: bytes, where: str) -> dict``, the content in the words of
# our JSON: "gallery" and "queries", as at the top. It is checked here, so that a reader need not,
# and its "name", where it has none, is the file's. A new form is one file and one line.
READERS = Registry(
    "ground truth",
    "rrt_pipelines.ground_truths",
    {
        ".json": "schemas.ground_truth.ground_truth:read_json",
        ".pkl": "schemas.ground_truth.ground_truth:read_revisitop_pickle",
        ".pickle": "schemas.ground_truth.ground_truth:read_revisitop_pickle",
        ".mat": "schemas.ground_truth.ground_truth:read_revisitop_matlab",
    },
)
LISTS = ("easy", "hard", "junk")


@dataclass(frozen=True)
class QueryTruth:
    """One query. Positions are 0-based in the gallery; the three lists are disjoint.

    Attributes:
        box: (x, y, w, h) in pixels of the upright original, or None for the whole image.
        easy: the positives, where the ground truth knows no levels.
        junk: neither right nor wrong: left out of every measure.
    """

    name: str
    box: Box | None
    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]


@dataclass(frozen=True)
class GroundTruth:
    """Gallery names, and per query the positions that match.

    Attributes:
        levels: whether easy and hard are distinguished.
    """

    name: str
    gallery: tuple[str, ...]
    queries: tuple[QueryTruth, ...]
    levels: bool = True

    def gallery_positions(self, record_ids: Iterable[str]) -> dict[str, int]:
        """The gallery position of each record id that the gallery lists.

        Others, the distractors, are absent.

        `schemas.ground_truth.name_matching` says what matches. `len(gallery) - len(result)` listed
        images have no record.

        Raises:
            UserError: two records match one name, or one record two.
        """
        return match_names(
            [(name, None) for name in self.gallery], record_ids, f"gallery of {self.name}"
        )

    def query_positions(self, record_ids: Iterable[str]) -> dict[str, int]:
        """The position in `queries` of each record id that is one.

        By name, and by box where both have one.
        """
        entries = [(query.name, query.box) for query in self.queries]
        return match_names(entries, record_ids, f"queries of {self.name}")


def load_ground_truth(url: str) -> GroundTruth:
    """Read and check a ground truth.

    It is `.json` of ours, `.pkl` or `.mat` of revisitop, or of a form that an installed package
    registers.

    Args:
        url: any fsspec URL or path.

    Raises:
        UserError: the file is missing, damaged, or a pickle that names code (nothing of it is run);
            a position out of range, an image twice in a query's lists, a box without area. The
            sentence names file and query.
    """
    data = _read(str(url))
    path = str(url).replace("\\", "/")
    # The longest, so that ".relevant.csv" can stand beside ".csv".
    suffix = max((one for one in READERS.names() if path.endswith(one)), key=len, default="")
    if not suffix:
        raise UserError(
            f"The ground truth {url} is of no form that is known here: its name must end in "
            f"{' or '.join(READERS.names())}."
        )

    content = READERS.load_function(suffix)(data, str(url))
    stem = posixpath.basename(path).removesuffix(suffix)
    return _Reader(str(url)).read(content, stem if suffix == ".json" else stem.removeprefix("gnd_"))


def _read(url: str) -> bytes:
    try:
        if "://" not in url and not stat.S_ISREG(os.stat(url).st_mode):
            raise OSError("it is no file")  # a pipe would be waited for
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(MOST_BYTES + 1)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The ground truth {url} cannot be read: {why}.") from error

    if len(data) > MOST_BYTES:
        raise UserError(f"The ground truth {url} is larger than {MOST_BYTES:,} bytes.")
    return data


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """The content of our JSON. Raises UserError."""
    try:
        content = inside.read_json(data)
    except ValueError as error:
        raise UserError(f"The ground truth {where} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f'The ground truth {where} has no "schema": "{SCHEMA}" at its top.')
    return content


def read_revisitop_pickle(data: bytes, where: str) -> dict[str, Any]:
    """revisitop's ``gnd_*.pkl`` in the words of our JSON; no code of it runs. Raises UserError."""
    return _Reader(where).from_revisitop(load_plain(data, where))


def read_revisitop_matlab(data: bytes, where: str) -> dict[str, Any]:
    """revisitop's ``gnd_*.mat`` in the words of our JSON. Raises UserError."""
    return _Reader(where).from_revisitop(load_matlab(data, where))


class _Reader:
    """Turns plain data into a GroundTruth; every complaint names the file, and the query."""

    def __init__(self, place: str) -> None:
        self.place = place

    def from_revisitop(self, content: Any) -> dict[str, Any]:
        """A revisitop pickle in the words of our JSON.

        Corners become x, y, w, h, and `ok` becomes `positive`.
        """
        if not isinstance(content, dict):
            raise self.error("is not a dictionary")
        names, gnd = self.sequence(content, "qimlist"), self.sequence(content, "gnd")
        if len(names) != len(gnd) or not all(isinstance(entry, dict) for entry in gnd):
            raise self.error(
                f"has {len(names)} names in qimlist, and not as many dictionaries in gnd"
            )
        queries = []
        for name, entry in zip(names, gnd, strict=True):
            query = {key: entry[key] for key in LISTS if key in entry}
            if "ok" in entry and "easy" not in entry:
                query["positive"] = entry["ok"]
            if entry.get("bbx") is not None and entry["bbx"] != []:
                x0, y0, x1, y1 = self.four(entry["bbx"], name)
                # Rounded so that 955.7 - 34.1 is 921.6 in record ids, not 921.6 and some noise.
                query["box"] = [x0, y0, round(x1 - x0, 6), round(y1 - y0, 6)]
            queries.append({"name": name, **query})
        return {"gallery": self.sequence(content, "imlist"), "queries": queries}

    def read(self, content: Any, name: str) -> GroundTruth:
        if not isinstance(content, dict):  # of a package's reader
            raise self.error(f"is read as {type(content).__name__}, not as a dictionary")

        gallery, queries = self.sequence(content, "gallery"), self.sequence(content, "queries")
        positions: dict[str, int] = {}
        for position, listed in enumerate(gallery):
            image = self.name(listed, f"gallery image {position}")
            if positions.setdefault(image, position) != position:
                raise self.error(
                    f"lists {image!r} twice in its gallery, at {positions[image]} and {position}"
                )

        without_levels = [isinstance(query, dict) and "positive" in query for query in queries]
        if any(without_levels) and not all(without_levels):
            raise self.error(
                f'has "positive" in some queries but not in query {without_levels.index(False)}'
            )

        truths = [self.query(query, row, positions) for row, query in enumerate(queries)]
        if not truths:
            raise self.error("has no query")
        if len({(truth.name, truth.box) for truth in truths}) != len(truths):
            raise self.error("has a query twice, with the same name and box")
        name = self.name(content.get("name", name), "the ground truth")

        return GroundTruth(name, tuple(positions), tuple(truths), levels=not any(without_levels))

    def query(self, entry: Any, row: int, gallery: dict[str, int]) -> QueryTruth:
        if not isinstance(entry, dict):
            raise self.error(f"has something else than a dictionary as query {row}")
        name = self.name(entry.get("name"), f"query {row}")
        box: Box | None = None

        if entry.get("box") is not None:
            box = self.four(entry["box"], name)
            if not (box[2] > 0 and box[3] > 0):
                raise self.error(f"gives a box without area, {list(box)}", name)

        given = ("positive", "junk") if "positive" in entry else LISTS
        lists = {key: self.positions(entry, key, name, gallery) for key in given}
        where: dict[int, str] = {}

        for key, listed in lists.items():
            for position in listed:
                if position in where:
                    places = (
                        f"{where[position]} and {key}" if where[position] != key else f"{key} twice"
                    )
                    raise self.error(f"lists gallery position {position} in {places}", name)
                where[position] = key

        positives = lists.get("positive", lists.get("easy", ()))
        return QueryTruth(name, box, positives, lists.get("hard", ()), lists["junk"])

    def positions(
        self, entry: dict[str, Any], key: str, name: str, gallery: dict[str, int]
    ) -> tuple[int, ...]:
        if key not in entry and key != "junk":
            raise self.error(f"has no list {key!r}", name)
        listed = []
        for item in self.sequence(entry, key, name) if key in entry else ():
            if isinstance(item, str):
                if item not in gallery:
                    raise self.error(f"names {item!r} in {key}, which is not in the gallery", name)
                item = gallery[item]
            if isinstance(item, float) and item.is_integer():  # MATLAB's and some arrays' integers
                item = int(item)
            if type(item) is not int or not 0 <= item < len(gallery):  # a bool is no position
                raise self.error(
                    f"has {item!r} in {key}, no position in a gallery of {len(gallery)}", name
                )
            listed.append(item)
        return tuple(listed)

    def sequence(self, content: dict[str, Any], key: str, query: str | None = None) -> list[Any]:
        value = content.get(key)
        if not isinstance(value, list | tuple):
            raise self.error(f"has no list {key!r}", query)
        return list(value)

    def four(self, value: Any, query: str) -> Box:
        numbers = value if isinstance(value, list | tuple) else ()
        if len(numbers) != 4 or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
            raise self.error(f"gives {value!r:.80} for a box: not four finite numbers", query)
        x, y, third, fourth = (float(number) for number in numbers)
        return x, y, third, fourth

    def name(self, name: Any, what: str) -> str:
        if isinstance(name, str) and name:
            try:
                encode_name(name)
                return name
            except UnicodeEncodeError:  # half of a surrogate pair
                pass
        raise self.error(f"has {name!r:.80} as the name of {what}: not a text")

    def error(self, complaint: str, query: str | None = None) -> UserError:
        return UserError(
            f"The ground truth {self.place} {complaint}{f' (query {query})' if query else ''}."
        )


def save_ground_truth(ground_truth: GroundTruth, url: str) -> None:
    """Writes the JSON that `load_ground_truth` reads; the same ground truth gives the same bytes.

    Raises:
        UserError: the place cannot be written.
    """
    lines = []
    for query in ground_truth.queries:
        lists = {key: list(getattr(query, key)) for key in LISTS}
        if not ground_truth.levels:
            lists = {"positive": sorted([*query.easy, *query.hard]), "junk": list(query.junk)}
        lines.append(json.dumps({"name": query.name, "box": query.box, **lists}))
    text = (
        f'{{"schema": "{SCHEMA}",\n "name": {json.dumps(ground_truth.name)},\n'
        f' "gallery": {json.dumps(ground_truth.gallery)},\n "queries": [\n  '
        + ",\n  ".join(lines)
        + "]}\n"
    )
    try:
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, text.encode())
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The ground truth cannot be written to {url}: {error}.") from error
