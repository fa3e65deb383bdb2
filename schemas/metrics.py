"""Metrics: one JSON for people and programs, and a Parquet table a query.

    metrics.json   {"schema", "ground_truth", "queries", "rankings": {ranking: {protocol: {"mAP",
                   "mP@1", ..., "counted"}}}, "facts": {...}}; measures in [0, 1]. With an
                   ensemble's rows also "ensemble": {"lambda", "gamma", "k"}
    per_query.parquet   PER_QUERY below

Rankings: global (the shortlist's own order), reranked (each protocol by its own replay; easy is
evaluated on medium's), deploy (reranked without label knowledge); likewise, with the options of an
ensemble, ensemble and ensemble_deploy.
"""

from __future__ import annotations

import pyarrow as pa

METRICS_SCHEMA = "rrt-metrics/1"
GLOBAL, RERANKED = "global", "reranked"
ENSEMBLE, ENSEMBLE_DEPLOY = "ensemble", "ensemble_deploy"

PER_QUERY = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),  # position in the ground truth
        # record id; "" where it was not described
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("ranking", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        # NaN: the query has no positives
        pa.field("average_precision", pa.float64(), nullable=False),
        pa.field("precision_at_1", pa.float64(), nullable=False),
        pa.field("precision_at_5", pa.float64(), nullable=False),
        pa.field("precision_at_10", pa.float64(), nullable=False),
        pa.field("positives", pa.int32(), nullable=False),
        pa.field("found", pa.int32(), nullable=False),  # positives within the ranking
    ],
    metadata={"schema": "rrt-per-query/1"},
)
