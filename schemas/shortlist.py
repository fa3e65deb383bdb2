"""What `search` writes, as Parquet parts: shortlists, and places of labelled images.

Shortlist: for each query its candidates by global similarity. The score is the float64 dot product
of the stored descriptors rounded to float32; the order is score falling, then record id by its
UTF-8 bytes.

Labelled places: where each labelled image of a query stands in the whole gallery. A place counts
the described rows that come before by that order (of equal ids, by row id); it does not depend on
an index, nor on how long a list is.
"""

from __future__ import annotations

import pyarrow as pa

SHORTLIST = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # record id of the query
        pa.field("rank", pa.int32(), nullable=False),  # 0-based
        pa.field("record_id", pa.string(), nullable=False),  # of the gallery
        pa.field("row_id", pa.int64(), nullable=False),  # (base + part) * 4096 + row
        pa.field("score", pa.float32(), nullable=False),  # cosine similarity of the globals
    ],
    metadata={"schema": "rrt-shortlist/1"},
)

CANDIDATES = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),  # position in the query block
        pa.field("row_id", pa.int64(), nullable=False),
    ],
    metadata={"schema": "rrt-candidates/1"},
)

# excluded/, of a run of the gallery's parts: rows that are a query's own image.
EXCLUDED = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # record id of the query
        pa.field("record_id", pa.string(), nullable=False),  # of the gallery
        pa.field("row_id", pa.int64(), nullable=False),
    ],
    metadata={"schema": "rrt-excluded/1"},
)

# exact/, of a run of the gallery's parts: query by query in the order of a shortlist.
EXACT = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),  # position in the query block
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # as a shortlist's
    ],
    metadata={"schema": "rrt-exact-candidates/1"},
)

# labelled/places: query by query in the order of their store, then by place.
PLACES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # record id of the query
        pa.field("record_id", pa.string(), nullable=False),  # of the labelled image
        pa.field("row_id", pa.int64(), nullable=False),  # (base + part) * 4096 + row
        pa.field("position", pa.int32(), nullable=False),  # in the ground truth's gallery
        pa.field("label", pa.string(), nullable=False),  # easy, hard or junk
        pa.field("score", pa.float32(), nullable=False),  # cosine similarity of the globals
        pa.field("place", pa.int64(), nullable=False),  # 0-based, in the whole gallery
    ],
    metadata={"schema": "rrt-labelled-places/1"},
)

# labelled/scores, of a run of the gallery's parts: rows that a name of the ground truth may mean,
# and their scores for the queries that they may be labelled for. Which they are, is known from all
# runs together.
NAMED = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("row_id", pa.int64(), nullable=False),
    ],
    metadata={"schema": "rrt-labelled-named/1"},
)
SCORED = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),  # place among the queries of the truth
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ],
    metadata={"schema": "rrt-labelled-scored/1"},
)

# labelled/counts: how many rows of a run of parts come before each labelled image.
COUNTED = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),
        pa.field("row_id", pa.int64(), nullable=False),  # of the labelled image
        pa.field("before", pa.int64(), nullable=False),
    ],
    metadata={"schema": "rrt-labelled-counted/1"},
)
