"""Rankings: the final order of each query under one protocol.

They are Parquet parts below ``protocol=NAME/``.
"""

from __future__ import annotations

import pyarrow as pa

RANKING = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # 0-based
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("global_score", pa.float32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),  # NaN where the pair was not reranked
        pa.field("reranked", pa.bool_(), nullable=False),
    ],
    metadata={"schema": "rrt-ranking/1"},
)

DEPLOY = "deploy"  # no label knowledge: the first of the shortlist are reranked as they are
