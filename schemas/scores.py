"""Scores: each (query, record) pair once, with the reranker's raw logit, as Parquet parts.

Every ensemble, cut-off, protocol and metric is replayed from these without a model.
"""

from __future__ import annotations

import pyarrow as pa

SCORES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("global_score", pa.float32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),  # raw, before any sigmoid
    ],
    metadata={"schema": "rrt-scores/1"},
)

# A cascade's: `first_logit` is the first reranker's; `logit` is the second's for those that a
# protocol's list kept, and stands below these for the others. How many of a list are kept is in the
# schema's metadata.
CASCADE_SCORES = SCORES.append(pa.field("first_logit", pa.float32(), nullable=False))
KEEP_KEY = "keep"
