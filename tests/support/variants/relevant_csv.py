"""A form of ground truth: CSV with the head line ``query,relevant``, and a line a query.

``relevant`` holds names of images between blanks; a blank within a name is written ``%20``. The
gallery is all images that are relevant to some query. Others need not be named: what is searched
and is not in the gallery counts as wrong.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from schemas.errors import UserError

HEAD = ["query", "relevant"]


def read(data: bytes, where: str) -> dict[str, Any]:
    """The content in the words of `rrt-ground-truth/1`, without levels.

    data   the file's bytes
    where  what messages call the file

    Raises UserError where it is no such CSV; names are checked by the caller.
    """
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The ground truth {where} is no CSV in UTF-8: {error}.") from error

    if not lines or lines[0] != HEAD:
        raise UserError(f"The ground truth {where} must begin with the line {','.join(HEAD)}.")

    queries = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(HEAD):
            raise UserError(
                f"The ground truth {where}, row {number}: a query and its relevant images are "
                f"needed, with one comma between them, not {len(line)} values."
            )
        relevant = [name.replace("%20", " ") for name in line[1].split()]
        queries.append({"name": line[0], "positive": relevant})

    gallery = dict.fromkeys(name for query in queries for name in query["positive"])
    return {"gallery": list(gallery), "queries": queries}
