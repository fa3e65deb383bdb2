"""Labels of records for training: which image shows which instance.

A text of `name,label` lines, or of `path,label,width,height` as the lists of the paper's repository
have them, with or without a head line that names the columns; or a Parquet file with a column
`record_id` or `path` and a column `label`. A name is a record id, or a path as the image source has
it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from schemas.errors import UserError
from schemas.image_list import encode_name, split_record_id
from schemas.openers.parquet import UNREADABLE, table_of

NAME_COLUMNS = ("record_id", "path")


@dataclass(frozen=True)
class LabelRow:
    """One entry. row: its line in a text (the first is 1), its row in Parquet (likewise)."""

    name: str
    label: str
    row: int


@dataclass(frozen=True)
class Labels:
    """label of each record that has one; unknown: entries that name no record."""

    of_record: dict[str, str]
    unknown: tuple[LabelRow, ...] = ()


def read_labels(data: bytes, where: str) -> list[LabelRow]:
    """The entries of a file's bytes; `where` names it in messages.

    Raises:
        UserError: not UTF-8, columns missing, an entry without name or label, no entry at all.
    """
    rows = _read_parquet(data, where) if data[:4] == b"PAR1" else _read_text(data, where)
    for entry in rows:
        if not entry.name or not entry.label:
            missing = "name" if not entry.name else "label"
            raise UserError(f"{where}, row {entry.row}: the {missing} is empty")
    if not rows:
        raise UserError(f"{where} holds no label; its lines must be `record id or path,label`")
    return rows


def _read_text(data: bytes, where: str) -> list[LabelRow]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{where}, row {line}: it is not UTF-8 text") from None

    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[LabelRow] = []
    name_at, label_at, width = 0, 1, 0

    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if not width:
                width = len(fields)
                if "label" in fields:
                    names = [name for name in NAME_COLUMNS if name in fields]
                    if not names:
                        raise UserError(
                            f"{where}, row {reader.line_num}: its head names no column record_id "
                            "or path"
                        )
                    name_at, label_at = fields.index(names[0]), fields.index("label")
                    continue
                if width not in (2, 4):
                    raise UserError(
                        f"{where}, row {reader.line_num}: {width} columns and no head; give "
                        "`name,label`, or `path,label,width,height`, or a head line that names "
                        "the columns"
                    )
            if len(fields) != width:
                raise UserError(
                    f"{where}, row {reader.line_num}: {len(fields)} columns, the rows before have "
                    f"{width}"
                )
            rows.append(LabelRow(fields[name_at], fields[label_at], reader.line_num))
    except csv.Error as error:
        raise UserError(f"{where}, row {reader.line_num}: it is no CSV: {error}") from None

    return rows


def _read_parquet(data: bytes, where: str) -> list[LabelRow]:
    try:
        table = table_of(data)
    except UNREADABLE as error:
        raise UserError(
            f"{where} cannot be read as Parquet: {' '.join(str(error).split())}"
        ) from None
    names = [name for name in NAME_COLUMNS if name in table.column_names]
    if not names or "label" not in table.column_names:
        raise UserError(
            f"{where} has the columns {', '.join(table.column_names)}; it needs record_id or path, "
            "and label"
        )
    pairs = zip(table.column(names[0]).to_pylist(), table.column("label").to_pylist(), strict=True)
    return [
        LabelRow("" if name is None else str(name), "" if label is None else str(label), row)
        for row, (name, label) in enumerate(pairs, 1)
    ]


def match_labels(rows: Iterable[LabelRow], record_ids: Sequence[str], where: str) -> Labels:
    """Which records the entries name: by record id, or by the path below the source.

    Raises:
        UserError: an entry fits two records; a record has two labels.
    """
    known = set(record_ids)
    below: dict[str, list[str]] = {}
    for record_id in record_ids:
        source, path, box = split_record_id(record_id)
        below.setdefault(path, []).append(record_id)
        if box is not None:
            below.setdefault(f"{source}/{path}", []).append(record_id)

    labelled: dict[str, tuple[str, int]] = {}
    unknown: list[LabelRow] = []
    for entry in rows:
        record = _record_of(entry, known, below, where)
        if record is None:
            unknown.append(entry)
            continue
        label, row = labelled.setdefault(record, (entry.label, entry.row))
        if label != entry.label:
            raise UserError(
                f"{where}, row {entry.row}: {entry.name!r} has the label {entry.label!r}, but "
                f"{label!r} in row {row}"
            )

    return Labels({record_id: label for record_id, (label, _) in labelled.items()}, tuple(unknown))


def _record_of(
    entry: LabelRow, known: set[str], below: dict[str, list[str]], where: str
) -> str | None:
    name = entry.name.removeprefix("./")
    for text in (name, encode_name(name)):
        if text in known:
            return text
        fitting = below.get(text, ())
        if len(fitting) > 1:
            raise UserError(
                f"{where}, row {entry.row}: {entry.name!r} fits both {fitting[0]} and "
                f"{fitting[1]}; name the record id"
            )
        if fitting:
            return fitting[0]
    return None


def folder_labels(record_ids: Iterable[str]) -> Labels:
    """The name of the folder that holds an image is its label.

    Raises:
        UserError: an image that lies in no folder below its source.
    """
    of_record = {}
    for record_id in record_ids:
        folder = PurePosixPath(split_record_id(record_id)[1]).parent.name
        if not folder:
            raise UserError(
                f"{record_id} lies in no folder below its source, so that it has no label; give "
                "--labels FILE"
            )
        of_record[record_id] = folder
    return Labels(of_record)
