"""The rows of a gallery that are a query's own image, which its list leaves out where asked.

row     the queries are one of the gallery's stores: each leaves out its own row (leave-one-out)
bytes   each row whose file has the same bytes as the query's: what is asked for is in the
        catalogue already
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.search.options import Options
from pipelines.stores.gallery import entries_of, runs_of, store_inputs
from pipelines.stores.store import Store
from schemas.errors import UserError
from schemas.plan import ExcludedRows, Job, Unit


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

    stores = entries_of(gallery)
    return Job(
        stage="search",
        output=f"{options.out}/excluded",
        worker="search/excluded",
        recipe={"exclude_self": how, "bases": [store.base for store in gallery]},
        inputs={
            **store_inputs(gallery),
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
