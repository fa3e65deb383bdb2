"""Kinds of faiss indexes, by their factory keys: choosing one, and an empty index of it.

Descriptors are of length 1, so that inner product and L2 order them alike, and the metric is inner
product; but not behind a transformation of vectors (PCA, OPQ, a rotation ...). A centring takes the
mean away, and what is left of <q, y> lacks <mean, y>, which differs from row to row where the mean
is long, as that of real descriptors is; distances are not changed by it. So the metric is L2 there.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import faiss
import numpy as np

from schemas.errors import UserError

Metric = Literal["inner_product", "l2"]
METRICS: dict[Metric, int] = {
    "inner_product": faiss.METRIC_INNER_PRODUCT,
    "l2": faiss.METRIC_L2,
}
EXACT_UP_TO = 100_000  # a gallery of this many images is searched exactly in milliseconds a query
USABLE = (
    "keys that can be used are Flat, SQ8, PQ16x8, IVF1024,Flat, OPQ16,IVF1024,PQ16x8 and the like"
)
MOST_LISTS, MOST_NUMBER, MOST_BITS = 1 << 20, 65_536, 16  # of a key
CODES_OF_OPQ = 256  # its rotation is learnt with as many, whatever the index has
PQ_CODE_BYTES = (64, 48, 32, 24, 16, 8, 4)  # sizes that faiss's GPU index takes as well


def choose_key(rows: int, dimension: int) -> str:
    """The factory key for a gallery.

    Exact where it is small, else IVF-PQ with about 4 * sqrt(rows) lists.
    """
    if rows <= EXACT_UP_TO:
        return "Flat"
    lists = 1 << round(np.log2(4 * np.sqrt(rows)))
    return f"IVF{lists},PQ{next(size for size in (*PQ_CODE_BYTES, 1) if dimension % size == 0)}x8"


def metric_of(key: str, dimension: int) -> Metric:
    """The metric of a kind: L2 behind any transformation of vectors, else inner product.

    Raises UserError as `empty_index`.
    """
    index = _built(key, dimension, "inner_product", "l2")
    plain = not transforms_of(index) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    return "inner_product" if plain else "l2"


def empty_index(key: str, dimension: int, metric: Metric | None = None) -> faiss.Index:
    """An empty index that takes ids, of the kind's own metric where none is given.

    Raises UserError for a key that faiss does not know, that does not fit the dimension, or whose
    index cannot be merged from shards.
    """
    index = _built(key, dimension, metric or metric_of(key, dimension))
    whole = faiss.downcast_index(index)
    bare = bare_of(index)
    if not isinstance(bare, (faiss.IndexIVF, faiss.IndexFlatCodes, faiss.IndexFastScan)):
        raise UserError(
            f"index key {key!r}: an {type(bare).__name__} cannot be put together from shards; "
            f"{USABLE}"
        )
    if key.count("IDMap") > isinstance(whole, faiss.IndexIDMap):
        raise UserError(f"index key {key!r}: ids are mapped by themselves, leave IDMap out")
    for matrix in transforms_of(index):
        if isinstance(matrix, faiss.PCAMatrix) and matrix.d_out > matrix.d_in:
            raise UserError(
                f"index key {key!r}: principal components are {matrix.d_in} at most here, as many "
                f"as descriptors have dimensions; {USABLE}"
            )
    takes_ids = isinstance(bare, faiss.IndexIVF) or isinstance(whole, faiss.IndexIDMap)
    return index if takes_ids else faiss.IndexIDMap2(index)


def _built(key: str, dimension: int, *metrics: Metric) -> faiss.Index:
    """An index by faiss's factory, for the first of the metrics that the kind can have."""
    _refuse_by_text(key)
    reason = ""
    for metric in metrics:
        try:
            return faiss.index_factory(dimension, key, METRICS[metric])
        except (RuntimeError, AssertionError, MemoryError, OverflowError) as error:
            reason = reason_of(error)
    raise UserError(
        f"index key {key!r} does not fit descriptors of dimension {dimension}: {reason}; {USABLE}"
    )


def reason_of(error: BaseException) -> str:
    """What faiss says of an error, without the place in its own code."""
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return last.rpartition(" failed: ")[2].rpartition(".cpp:")[2]


def _refuse_by_text(key: str) -> None:
    """Raise UserError for what must not even be built: it takes memory by its numbers alone."""
    if "Refine" in key or "RFlat" in key:
        raise UserError(
            f"index key {key!r}: leave the refinement out; candidates are rescored exactly anyway"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"index key {key!r} is none of faiss's; {USABLE}")

    lists = [int(number) for number in re.findall(r"IVF([0-9]+)", key)]
    others = [int(number) for number in re.findall(r"(?<!IVF)(?<![0-9])[0-9]+", key)]
    bits = [int(number) for number in re.findall(r"x([0-9]+)", key)]
    if not all(0 < number <= MOST_LISTS for number in lists):
        raise UserError(
            f"index key {key!r}: an index has 1 to {MOST_LISTS:,} lists; "
            f"about 4 * sqrt(images) are usual"
        )
    if any(number > MOST_NUMBER for number in others) or any(one > MOST_BITS for one in bits):
        raise UserError(f"index key {key!r} holds a number that is too large; {USABLE}")


def transforms_of(index: faiss.Index) -> list[Any]:
    """The transformations of vectors in front of an index."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size())]


def bare_of(index: faiss.Index) -> faiss.Index:
    """What lies below maps of ids and transformations of vectors."""
    bare = faiss.downcast_index(index)
    while isinstance(bare, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        bare = faiss.downcast_index(bare.index)
    return bare


def code_bytes(index: faiss.Index) -> int:
    """Bytes that a row takes in the index, its id left out."""
    bare = bare_of(index)
    return int(bare.code_size if isinstance(bare, faiss.IndexIVF) else bare.sa_code_size())


def least_rows(key: str, dimension: int) -> int:
    """The rows that an index of this key must be trained on at least: one a list, one a code."""
    index = empty_index(key, dimension)
    bare = bare_of(index)
    lists = int(bare.nlist) if isinstance(bare, faiss.IndexIVF) else 0
    codes = int(bare.pq.ksub) if hasattr(bare, "pq") else 0
    rotated = any(isinstance(matrix, faiss.OPQMatrix) for matrix in transforms_of(index))
    return max(lists, codes, CODES_OF_OPQ if rotated else 0)


def needs_training(key: str, dimension: int) -> bool:
    """Whether an index of this key must be trained before it is filled."""
    return not empty_index(key, dimension).is_trained


def training_rows(key: str, dimension: int) -> int:
    """How many rows train this index well.

    64 a list for IVF (faiss wants 39 or more), else 65,536.
    """
    index = empty_index(key, dimension)
    inner = faiss.try_extract_index_ivf(index)
    return max(64 * inner.nlist, 16_384) if inner is not None else 65_536
