"""Shortlist: for each query its candidates by global similarity, as Parquet parts.

The score is the float64 dot product of the stored descriptors rounded to float32; the order is
score falling, then record id by its UTF-8 bytes.
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
