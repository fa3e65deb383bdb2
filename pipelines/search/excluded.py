"""The rows of a gallery that are a query's own image, which its list leaves out where asked.

row     the queries are one of the gallery's stores: each leaves out its own row (leave-one-out)
bytes   each row whose file has the same bytes as the query's: what is asked for is in the
        catalogue already
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.jobs.manifests import read_entries
from pipelines.search.options import Options
from pipelines.storage.place import open_place
from pipelines.storage.tables import read_table
from pipelines.stores.gallery import runs_of
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.plan import ExcludedRows, Job, Unit
from schemas.shortlist import EXCLUDED

NONE = np.zeros(0, np.int64)


def excluded_job(options: Options, queries: Store, gallery: Sequence[Store]) -> Job:
    """The job that finds them, by runs of the gallery's parts. Raises UserError where the stores
    cannot tell.
    """
    how = options.exclude_self
    if how == "row" and queries.manifest.content not in {one.manifest.content for one in gallery}:
        raise UserError(
            f"search: --exclude-self row leaves out the rows of the queries themselves, but "
            f"{queries.place.url} is no store of the gallery of {options.index}; give bytes, or "
            f"leave it out"
        )
    for store in (queries, *gallery) if how == "bytes" else ():
        if not any(any(store.read_digests(part)) for part in store.parts):
            raise UserError(
                f"search: --exclude-self bytes cannot be known: {store.place.url} has no SHA-256 "
                f"of its images' files, as descriptors that are imported; give row, or leave it out"
            )

    stores = [{**store.as_input, "base": store.base} for store in gallery]
    return Job(
        stage="search",
        output=f"{options.out}/excluded",
        worker="search/excluded",
        recipe={"exclude_self": how, "bases": [store.base for store in gallery]},
        inputs={
            **{f"store-{number}": store.as_input for number, store in enumerate(gallery)},
            "queries": queries.as_input,
        },
        units=tuple(
            Unit(f"run-{number:05}", ExcludedRows(parts), rows)
            for number, (parts, rows) in enumerate(runs_of(gallery))
        ),
        settings={
            "queries": options.queries,
            "out": options.out,
            "exclude_self": how,
            "stores": stores,
        },
        facts={"kind": "excluded", "stores": stores},
        noun="images",
    )


def read_excluded(job: Job) -> dict[str, np.ndarray]:
    """Query id -> row ids int64 that its list leaves out; queries without any are absent.

    Of the job that found them, as an input of `job`; empty where that has none.
    """
    if "excluded" not in job.inputs:
        return {}

    place = open_place(job.inputs["excluded"]["url"])
    tables = [read_table(place, entry.name, schema=EXCLUDED) for entry in read_entries(place.url)]
    table = pa.concat_tables(tables)
    names = table.column("query_id").to_numpy(zero_copy_only=False)
    row_ids, excluded = table.column("row_id").to_numpy(), dict[str, list[int]]()
    for name, row_id in zip(names, row_ids.tolist(), strict=True):
        excluded.setdefault(name, []).append(row_id)
    return {name: np.unique(rows) for name, rows in excluded.items()}
