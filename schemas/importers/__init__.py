"""Descriptors of other software in the form of our stores: one module a family of files.

    delg    a pair of protocol buffers an image: `.delg_global`, `.delg_local` (DELG, the paper's
            repository)
    ames    HDF5 of local descriptors, all images in one dataset (AMES, ELViS)
    arrays  matrices of global descriptors (.npy, .npz, .mat, clip-retrieval), and our own flat
            arrays of locals

None of them runs code that a file brings: no pickles, no object arrays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from schemas.errors import UserError

# A length this near to 1 is rounding (float16 stays well within): such a descriptor keeps its bits.
UNIT_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-3  # relative: float32 of sqrt(2) and its inverse, written with 7 digits


class Unusable(Exception):
    """Why one image's descriptors cannot be taken.

    A sentence without the file's name, and a word to count by.
    """

    def __init__(self, reason: str, error_class: str) -> None:
        super().__init__(reason)
        self.reason, self.error_class = reason, error_class


@contextmanager
def reading(path: str, form: str) -> Iterator[None]:
    """The gate of a local input file: raise UserError where it is absent or no `form`."""
    with parsing(path, form):
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise UserError(f"{path}: it is no file; give {form}")
        yield


@contextmanager
def parsing(path: str, form: str) -> Iterator[None]:
    """As `reading`, of a file or folder that is opened already."""
    try:
        yield
    except (UserError, Unusable):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except Exception as error:  # noqa: BLE001  a damaged file fails with almost any exception
        # NumPy advises to allow pickles, which run code
        reason = "it holds Python objects, or is none" if "pickle" in str(error) else str(error)
        why = " ".join((reason or repr(error)).split())[:300]
        raise UserError(f"{path}: it cannot be read as {form}: {why}") from None


@dataclass(frozen=True)
class ImportedLocals:
    """Local descriptors of one image, of which any prefix serves.

    descriptors  float32 [n, W], L2 = 1
    xy           float32 [n, 2], as the file counts them (pixels, where its maker used pixels)
    scale        uint8 [n], ordinal in the store's list of scales
    strength     float32 [n]
    """

    descriptors: np.ndarray
    xy: np.ndarray
    scale: np.ndarray
    strength: np.ndarray


def unit_global(values: np.ndarray, dimension: int) -> np.ndarray:
    """A global descriptor [D] of any real dtype as float32 [D] with L2 = 1.

    Raises Unusable: another dimension, a value that is not finite, or no length.
    """
    if values.shape != (dimension,):
        raise Unusable(
            f"the global descriptor has the shape {list(values.shape)}, the others have "
            f"[{dimension}]",
            "dimension",
        )
    length = float(np.linalg.norm(np.asarray(values, np.float64)))
    if not np.isfinite(length):
        raise Unusable("the global descriptor holds values that are not finite", "not_finite")
    if length == 0.0:
        raise Unusable("the global descriptor is all zeros", "zero")
    if abs(length - 1.0) <= UNIT_TOLERANCE:
        return np.asarray(values, np.float32)
    return np.asarray(np.asarray(values, np.float64) / length, np.float32)


def checked_locals(
    descriptors: np.ndarray,
    xy: np.ndarray,
    scale: np.ndarray,
    strength: np.ndarray,
    *,
    dimension: int,
    most: int,
    in_order: bool = False,
) -> ImportedLocals:
    """The `most` strongest local descriptors in the form of our stores.

    Equal strengths keep their order. With `in_order` the first ones instead, as they stand.
    Raises Unusable: another dimension than the others', a value that is not finite, or a
    descriptor without length.
    """
    if descriptors.ndim != 2 or (len(descriptors) and descriptors.shape[1] != dimension):
        raise Unusable(
            f"the local descriptors have the shape {list(descriptors.shape)}, the others have [n, "
            f"{dimension}]",
            "dimension",
        )

    if not in_order and bool(np.any(strength[:-1] < strength[1:])):
        order = np.argsort(-strength, kind="stable")[:most]
        descriptors, xy, scale, strength = (
            descriptors[order],
            xy[order],
            scale[order],
            strength[order],
        )

    kept = np.ascontiguousarray(descriptors[:most], np.float32).reshape(-1, dimension)
    squares = np.einsum("nd,nd->n", kept, kept)
    if not (np.isfinite(squares).all() and np.isfinite(xy).all() and np.isfinite(strength).all()):
        raise Unusable(
            "the local descriptors, their places or strengths hold values that are not finite",
            "not_finite",
        )

    lengths = np.sqrt(squares)
    if not lengths.all():
        raise Unusable("a local descriptor is all zeros", "zero")
    wrong = np.abs(lengths - 1.0) > UNIT_TOLERANCE
    if wrong.any():
        kept = np.asarray(kept / np.where(wrong, lengths, 1.0)[:, None], np.float32)

    return ImportedLocals(
        kept,
        np.ascontiguousarray(xy[:most], np.float32).reshape(-1, 2),
        np.ascontiguousarray(scale[:most], np.uint8),
        np.ascontiguousarray(strength[:most], np.float32),
    )


def ordinals_of(values: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """uint8 [n]: which of `scales` each image scale is.

    Raises Unusable for one that is none of them (to 0.1 %).
    """
    given = np.asarray(values, np.float64)
    known = np.asarray(scales, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        distance = np.abs(given[:, None] / known[None] - 1.0)
    nearest = distance.argmin(axis=1) if len(given) else np.zeros(0, np.int64)
    bad = (
        ~(distance.min(axis=1, initial=np.inf) <= SCALE_TOLERANCE)
        if len(given)
        else np.zeros(0, bool)
    )
    if bad.any():
        listed = ", ".join(f"{scale:g}" for scale in scales)
        raise Unusable(f"the image scale {given[bad][0]:g} is none of {listed}", "scale")
    return nearest.astype(np.uint8)
