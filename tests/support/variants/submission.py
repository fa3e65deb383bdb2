"""A result format: the CSV file that evaluation servers take, a line a query.

The line holds the query and the records, the best first, between blanks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable

from schemas.exporters import RankedList

HEAD = ("query", "records")


def write(lists: Iterable[RankedList], path: str) -> None:
    """Write the lists to a local file, UTF-8. Blanks in records become ``%20``, as they part
    records.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(HEAD)

        for ranked in lists:
            records = " ".join(record.replace(" ", "%20") for record in ranked.records)
            lines.writerow([ranked.query, records])
