"""Names in an image list: text, CSV of any common separator, or Parquet.

Which column holds the names is known by its header, else by its content: the one whose values are
files.
"""

from __future__ import annotations

import codecs
import csv
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipelines.storage.tables import parse_table
from rrt_core.image_formats import has_image_suffix
from schemas.errors import UserError
from schemas.image_list import relative_name

# of a header's, the likelier first
NAME_COLUMNS = (
    "path",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "image_name",
    "imagename",
    "name",
    "image",
    "file",
    "key",
    "img",
    "img_path",
)
LOOKED_AT = 1_000  # rows that decide
MOST_COLUMNS = 64  # that are looked at
SEPARATORS = (",", "\t", ";", "|", "")  # "": a line is a name

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class _Column:
    """A column that may hold the names, as `separator` cuts the rows."""

    separator: str
    number: int
    values: Sequence[str]  # the first ones, the header's first
    rank: int  # of the header among NAME_COLUMNS; behind these where it is none

    def hits(self, is_name: Callable[[str], bool]) -> int:
        """How many of the values are names."""
        return sum(map(is_name, self.values))


def names_in(data: bytes, where: str, folder: str | None) -> list[object]:
    """The names in an image list, in its order.

    folder  local folder that they are relative to; None where it cannot be looked at: then names
            are what ends like an image

    Raises UserError where it cannot be read.
    """
    is_parquet = data[:4] == b"PAR1" or where.endswith(".parquet")
    return (_parquet_names if is_parquet else _text_names)(data, where, folder)


def _text_names(data: bytes, where: str, folder: str | None) -> list[object]:
    text, is_name = _text(data, where), _looks(folder)
    columns = [
        _Column(separator, number, values, _rank(values[0]))
        for separator in SEPARATORS
        for number, values in enumerate(_first_columns(text, separator))
    ]
    chosen = _chosen(columns, is_name)
    # lines as they are, since quotes are not closed: as names only where each of them is one
    cut = any(one.separator == "," for one in columns)
    if chosen is None or not (chosen.separator or cut or all(map(is_name, chosen.values))):
        list(_rows(text, ",", where))  # raises what is wrong
        return []

    names: list[object] = []
    for row in _rows(text, chosen.separator, where):
        if chosen.number < len(row) and row[chosen.number].strip():
            names.append(row[chosen.number].strip())
        elif any(cell.strip() for cell in row) and (chosen.separator, chosen.number) != (",", 0):
            raise UserError(
                f"{where}: row {len(names) + 1} has no name in column {chosen.number + 1}, where "
                f"the others have theirs"
            )
    if _is_header(chosen, columns, is_name):
        names = names[1:]
    return names


def _parquet_names(data: bytes, where: str, folder: str | None) -> list[object]:
    table, is_name = parse_table(data, where), _looks(folder)
    columns = []
    for number, column in enumerate(table.itercolumns()):
        rank = _rank(table.column_names[number])
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if is_text or rank < len(NAME_COLUMNS):
            values = [str(value) for value in column[:LOOKED_AT].to_pylist()]
            name = table.column_names[number]
            columns.append(_Column("", number, [name, *values], rank))

    chosen = _chosen(columns, is_name)
    if chosen is None or not (chosen.rank < len(NAME_COLUMNS) or chosen.hits(is_name)):
        raise UserError(
            f"{where}: it has no column of names (one of {', '.join(NAME_COLUMNS[:8])})"
        )
    names: list[object] = table.column(chosen.number).to_pylist()
    return names


def _text(data: bytes, where: str) -> str:
    """The text of a list; bytes that are not UTF-8 stay what they are, as in names of files."""
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "")
    try:
        text = data.decode(encoding) if encoding else data.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: it is no {encoding.upper()}, as it begins: {error}") from None
    if "\0" in text:
        raise UserError(f"{where}: it holds zero bytes, so that it is no list; save it as UTF-8")
    return text if "\n" in text else text.replace("\r", "\n")


def _rows(text: str, separator: str, where: str) -> Iterator[list[str]]:
    """The rows of a list. Raises UserError."""
    if not separator:
        yield from ([line.rstrip("\r\n")] for line in _lines(text))
        return
    reader = csv.reader(
        _lines(text), delimiter=separator, strict=True
    )  # a quote that is not closed ...
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(
            f"{where}: it cannot be read as an image list: line {reader.line_num:,}: {error}"
        ) from None


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends; io.StringIO would take four bytes a character for itself."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _first_columns(text: str, separator: str) -> list[list[str]]:
    """The first values of each column; none where the rows cannot be read so."""
    try:
        rows = [row for row in islice(_rows(text, separator, ""), LOOKED_AT) if any(row)]
    except UserError:
        return []
    width = min(MOST_COLUMNS, max(map(len, rows), default=0))
    return [
        [row[number].strip() if number < len(row) else "" for row in rows]
        for number in range(width)
    ]


def _rank(header: str) -> int:
    name = header.strip().lower()
    return NAME_COLUMNS.index(name) if name in NAME_COLUMNS else len(NAME_COLUMNS)


def _looks(folder: str | None) -> Callable[[str], bool]:
    """Whether a value is a name of an image: it is a file, or it ends like one."""
    if folder is None:
        return has_image_suffix

    def is_file(value: str) -> bool:
        name = relative_name(value)
        try:
            about = os.lstat(os.path.join(folder, name)) if name else None
        except (OSError, ValueError):
            return False
        return about is not None and not stat.S_ISDIR(about.st_mode)

    return is_file


def _chosen(columns: Sequence[_Column], is_name: Callable[[str], bool]) -> _Column | None:
    """The column of the names: by its header, else by its content, else the first."""
    named = [one for one in columns if one.rank < len(NAME_COLUMNS) and not is_name(one.values[0])]
    if named:
        return min(named, key=lambda one: (not one.hits(is_name), one.rank, -one.hits(is_name)))
    return max(columns, key=lambda one: one.hits(is_name), default=None)


def _is_header(chosen: _Column, columns: Sequence[_Column], is_name: Callable[[str], bool]) -> bool:
    """Whether the first row names the columns: by a known word, or since it alone has no name."""
    first, rest = chosen.values[0], chosen.values[1:]
    if is_name(first) or chosen.rank < len(NAME_COLUMNS):
        return not is_name(first)
    no_image = not any(has_image_suffix(one.values[0]) for one in columns)
    return no_image and any(map(is_name, rest))
