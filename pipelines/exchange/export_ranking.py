"""export --format NAME: a ranking of a run -> the file of a result format (schemas/exporters).

A part of the ranking is in memory at a time; the file gets its name when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.exchange.export_options import ARRAYS, Options
from pipelines.jobs.manifests import require_manifest
from pipelines.results.scores import read_ranking
from pipelines.storage.local import LocalPlace
from pipelines.storage.place import open_place
from schemas.errors import UserError
from schemas.exporters import FORMATS, RankedList


def export_ranking(options: Options, overwrite: bool) -> dict[str, Any]:
    """Write the ranking under a protocol; gives how many queries it has. Raises UserError."""
    if FORMATS.target(options.format) is None:
        known = ", ".join([ARRAYS, *FORMATS.names()])
        raise UserError(f"export: --format is {options.format!r}; it must be one of {known}")
    if options.locals:
        raise UserError("export: --locals goes with the arrays of a store, not with a ranking")

    ranking = require_manifest(f"{options.store}/ranking", "ranking", "rerank")
    if options.protocol not in ranking.facts["protocols"]:
        raise UserError(
            f"{options.store} holds no ranking under {options.protocol!r}, but under "
            f"{', '.join(ranking.facts['protocols'])}; rerank with a --ground-truth that has it"
        )

    place = open_place(options.out)
    if not isinstance(place, LocalPlace):
        raise UserError(f"{options.out}: a ranking is written to a local disk; copy it from there")
    if place.is_folder():
        raise UserError(f"{place.url} is a folder; --out names a file, such as {place.url}/run.txt")
    if place.exists() and not overwrite:
        raise UserError(f"{place.url} exists; give another file, or --overwrite")

    write = FORMATS.load_function(options.format)
    with place.temporary("") as temporary:
        write(_lists(options.store, options.protocol), temporary)
        place.put(temporary, "")
    return {"queries": ranking.counts.succeeded // len(ranking.facts["protocols"])}


def _lists(url: str, protocol: str) -> Iterator[RankedList]:
    for query, rows in read_ranking(url, protocol):
        yield RankedList(
            query,
            rows.column("record_id").to_pylist(),
            rows.column("global_score").to_numpy(),
            rows.column("logit").to_numpy(),
        )
