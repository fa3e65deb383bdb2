"""faiss indexes of global descriptors: training, filling, merging, searching.

Descriptors are L2-normalised throughout; kinds.py has their kinds. Index scores only choose
candidates; the score that is stored is computed from the stored descriptors (`exact_scores`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import faiss
import numpy as np

from rrt_core.indexes.kinds import reason_of
from schemas.errors import UserError


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
        reason = reason_of(error)
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
