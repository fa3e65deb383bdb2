"""Options of `index`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import MOST_SEED, Checked, option


@dataclass(frozen=True)
class Options(Checked, command="index"):
    """Options of `index`."""

    stores: tuple[str, ...] = option(
        "stores of 'extract' that make the gallery, comma-separated", unique=True
    )
    out: str = option("the index to make: a folder (path or URL)")
    key: str = option(
        "faiss factory key (Flat, IVF4096,PQ64x8 ...); auto: exact up to 100,000 images", "auto"
    )
    seed: int = option("seed of the training sample", 0, least=0, most=MOST_SEED)
    training_rows: int = option("images to train on; 0 chooses by the key", 0, least=0)
    rows_per_shard: int = option("images a unit of adding", 131_072, least=1)
    max_memory: int = option(
        "bytes that one search file may take in memory", 8_000_000_000, least=1, most=2**50
    )
