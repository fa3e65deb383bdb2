"""The order in which an image's local descriptors are kept: any prefix covers the picture.

The strongest locals crowd together on what has most contrast. Taken cell by cell and scale by scale
instead, few of them say as much of the picture as many (benchmarks/quality/real_sets.py compares).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.errors import UserError

SPREAD, STRENGTH = "spread", "strength"  # values of extractors' option `order`
CELLS = 8  # a side, of the grid that is laid over the picture
POOL = 500  # the weakest say little, wherever they lie


def check_order(order: object) -> None:
    """Raise UserError unless it is a value of the option `order`."""
    if order not in (SPREAD, STRENGTH):
        raise UserError(
            f"The extractor's option order must be {SPREAD} or {STRENGTH}, not {order!r}."
        )


def kept_locals(
    order: str,
    xy: npt.NDArray[np.float32],
    scale: npt.NDArray[np.uint8],
    strength: npt.NDArray[np.float32],
    most: int,
) -> npt.NDArray[np.intp]:
    """Which of an image's locals are kept, in their order: intp [at most `most`].

    order: STRENGTH, the strongest first, equal ones as they stand; or SPREAD, the strongest
        POOL or more in the order of `spread`, so that a store of fewer locals holds the first
        of those of one with more.
    """
    pool = np.argsort(-strength, kind="stable")[: pool_of(order, most)]
    if order == STRENGTH:
        return pool
    return pool[spread(xy[pool], scale[pool], strength[pool])[:most]]


def pool_of(order: str, most: int) -> int:
    """Of how many of the strongest locals `most` are kept."""
    return most if order == STRENGTH else max(most, POOL)


def spread(
    xy: npt.NDArray[np.float32],
    scale: npt.NDArray[np.uint8],
    strength: npt.NDArray[np.float32],
    cells: int = CELLS,
) -> npt.NDArray[np.intp]:
    """An order of local descriptors of which every prefix covers the picture.

    A grid is laid over the rectangle that holds all of them. First comes the strongest of each
    cell and scale, then the second of each, and so on; within a round the strongest come first,
    and equal ones keep their order.

    Args:
        xy: float32 [n, 2], places in pixels.
        scale: uint8 [n], ordinals of scales.
        strength: float32 [n], finite.
        cells: of the grid, a side; at least 1.

    Returns:
        intp [n], a permutation.
    """
    falling = np.argsort(-strength, kind="stable")
    if not len(falling):
        return falling
    places = xy[falling].astype(np.float64)
    low = places.min(axis=0)
    extent = np.maximum(places.max(axis=0) - low, 1e-6)
    column, row = np.minimum((places - low) / extent * cells, cells - 1).astype(np.int64).T
    bucket = (scale[falling].astype(np.int64) * cells + row) * cells + column
    by_bucket = np.argsort(bucket, kind="stable")
    ordered = bucket[by_bucket]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.concatenate([begins, [len(ordered)]]))
    turn = np.empty(len(falling), np.int64)
    turn[by_bucket] = np.arange(len(falling)) - np.repeat(begins, counts)
    return falling[np.argsort(turn, kind="stable")]
