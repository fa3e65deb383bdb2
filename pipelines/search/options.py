"""Options of `search`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option

NPROBE, OVERSAMPLE = 32, 2.0


@dataclass(frozen=True)
class Options(Checked, command="search"):
    """Options of `search`."""

    queries: str = option("store of the queries")
    index: str = option("index of the gallery")
    out: str = option("run folder; the shortlist is made below it")
    k: int = option(
        "candidates kept a query; 0: all of a gallery of up to 10,000, else 1,000 or what is "
        "needed",
        0,
        least=0,
    )
    shortlist: int = option("how many will be reranked", 100, least=0)
    ground_truth: str = option(
        "ground-truth file, where known: k is then held to what its protocols need", ""
    )
    nprobe: int | None = option(
        f"lists of an IVF index that are visited (default: {NPROBE})", None, least=1
    )
    oversample: float | None = option(
        "candidates fetched from an approximate index, as a multiple of k (default: "
        f"{OVERSAMPLE:g})",
        None,
        least=1,
        most=10_000,
    )
    exact: bool | None = option(
        "score all globals instead of asking the index, or never; left out: for few queries beside "
        "an approximate index",
        None,
        excludes=("nprobe", "oversample"),
    )
    exclude_self: str = option(
        "leave a query's own image out of its list: row, that row of the gallery where the queries "
        "are one of its stores; bytes, each image of the gallery whose file has the same bytes",
        "",
        choices=("row", "bytes"),
    )
    stores: tuple[str, ...] = option(
        "where the stores of the gallery lie now, where they were moved apart from the index", ()
    )
    queries_per_block: int = option("queries a unit", 1_024, least=1)
