"""faiss indexes of global descriptors: choosing, training, filling, merging, searching.

Inner product of L2-normalised descriptors throughout. Index scores only choose candidates; the
score that is stored is computed from the stored descriptors (`exact_scores`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from schemas.errors import UserError

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


def empty_index(key: str, dimension: int) -> faiss.Index:
    """An empty index for inner product that takes ids.

    Raises UserError for a key that faiss does not know, that does not fit the dimension, or whose
    index cannot be merged from shards.
    """
    _refuse_by_text(key)
    try:
        index = faiss.index_factory(dimension, key, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, AssertionError, MemoryError, OverflowError) as error:
        raise UserError(
            f"index key {key!r} does not fit descriptors of dimension {dimension}: "
            f"{_reason(error)}; {USABLE}"
        ) from None

    whole = faiss.downcast_index(index)
    bare = _bare(index)
    if not isinstance(bare, (faiss.IndexIVF, faiss.IndexFlatCodes, faiss.IndexFastScan)):
        raise UserError(
            f"index key {key!r}: an {type(bare).__name__} cannot be put together from shards; "
            f"{USABLE}"
        )
    if key.count("IDMap") > isinstance(whole, faiss.IndexIDMap):
        raise UserError(f"index key {key!r}: ids are mapped by themselves, leave IDMap out")
    for matrix in _transforms(index):
        if isinstance(matrix, faiss.PCAMatrix) and matrix.d_out > matrix.d_in:
            raise UserError(
                f"index key {key!r}: principal components are {matrix.d_in} at most here, as many "
                f"as descriptors have dimensions; {USABLE}"
            )
    takes_ids = isinstance(bare, faiss.IndexIVF) or isinstance(whole, faiss.IndexIDMap)
    return index if takes_ids else faiss.IndexIDMap2(index)


def _reason(error: BaseException) -> str:
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


def _transforms(index: faiss.Index) -> list[Any]:
    """The transformations of vectors in front of an index."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        index = faiss.downcast_index(index.index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size())]


def _bare(index: faiss.Index) -> faiss.Index:
    """What lies below maps of ids and transformations of vectors."""
    bare = faiss.downcast_index(index)
    while isinstance(bare, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        bare = faiss.downcast_index(bare.index)
    return bare


def code_bytes(index: faiss.Index) -> int:
    """Bytes that a row takes in the index, its id left out."""
    bare = _bare(index)
    return int(bare.code_size if isinstance(bare, faiss.IndexIVF) else bare.sa_code_size())


def least_rows(key: str, dimension: int) -> int:
    """The rows that an index of this key must be trained on at least: one a list, one a code."""
    index = empty_index(key, dimension)
    bare = _bare(index)
    lists = int(bare.nlist) if isinstance(bare, faiss.IndexIVF) else 0
    codes = int(bare.pq.ksub) if hasattr(bare, "pq") else 0
    rotated = any(isinstance(matrix, faiss.OPQMatrix) for matrix in _transforms(index))
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


def sample_order(record_ids: Sequence[str], seed: int) -> np.ndarray:
    """uint64 [n], one a record: the sample is those of the smallest.

    It is independent of parts and of their order.
    """
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big"
            )
            for name in record_ids
        ],
        np.uint64,
    )


def train(index: faiss.Index, sample: np.ndarray) -> None:
    """Train on float32 [n, D]. Raises UserError where the sample is too small for the key."""
    try:
        index.train(np.ascontiguousarray(sample, np.float32))
    except RuntimeError as error:
        reason = _reason(error)
        raise UserError(
            f"the index cannot be trained on {len(sample):,} images: {reason}; choose Flat"
        ) from None


def add(index: faiss.Index, descriptors: np.ndarray, row_ids: np.ndarray) -> None:
    """Add float32 or float16 [n, D] under int64 ids."""
    index.add_with_ids(
        np.ascontiguousarray(descriptors, np.float32), np.ascontiguousarray(row_ids, np.int64)
    )


def merge(into: faiss.Index, other: faiss.Index) -> None:
    """Move all of `other` (filled from the same trained index) into `into`, ids kept."""
    into.merge_from(other, 0)


def search(index: faiss.Index, queries: np.ndarray, k: int, nprobe: int) -> np.ndarray:
    """Row ids int64 [queries, k] of the best by index score; -1 where there are fewer."""
    inner = faiss.try_extract_index_ivf(index)
    if inner is not None:
        inner.nprobe = nprobe
    _, ids = index.search(
        np.ascontiguousarray(queries, np.float32), int(min(k, max(index.ntotal, 1)))
    )
    return np.asarray(ids)


def exact_scores(query: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
    """float32 [n]: float64 dot products of one query [D] with [n, D], rounded.

    Summed row by row in one fixed order, so that a score does not depend on which rows stand beside
    it.
    """
    products = descriptors.astype(np.float64) * query.astype(np.float64)
    return products.sum(axis=1).astype(np.float32)


def order(scores: np.ndarray, record_ids: Sequence[str]) -> np.ndarray:
    """int64 [n]: score falling, then record id by its UTF-8 bytes."""
    names = np.array([name.encode() for name in record_ids], dtype=object)
    return np.array(
        sorted(range(len(scores)), key=lambda i: (-float(scores[i]), names[i])), np.int64
    )
