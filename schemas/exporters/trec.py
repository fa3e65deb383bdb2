"""TREC run files, which trec_eval, ranx and ir_measures read.

A line a result: query id, Q0, record id, rank from 1, score, tag; separated by blanks. Scores fall
by one a rank: these tools order by the score, and logits stand beside global scores in one list.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from schemas.exporters import RankedList

TAG = "rrt"


def write(lists: Iterable[RankedList], path: str) -> None:
    """Write the lists to a local file, UTF-8. Blanks in ids become ``%20``."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for ranked in lists:
            query, count = _word(ranked.query), len(ranked.records)

            for rank, record in enumerate(ranked.records, 1):
                file.write(f"{query} Q0 {_word(record)} {rank} {count - rank + 1} {TAG}\n")


def _word(record_id: str) -> str:
    """A record id without blanks, percent-encoded as the rest of it is."""
    return "".join(quote(letter) if letter.isspace() else letter for letter in record_id)
