"""AMES's HDF5 of local descriptors: all images of a set in one dataset `features`.

They are read a block of images at a time.

    float   [N, k, 5 + W]   x, y, scale, mask, weight, then the descriptor
    or      [N, k] of a structure {metadata: 5 numbers as above, descriptor: float [W] or uint8 [W /
            8]}

mask 1 is padding. `scale` is an ordinal in the list of image scales that the images were described
at (one for DINOv2, three for CVNet); the weight is the detector's. A uint8 descriptor is packed
signs, the first in the highest bit (numpy.packbits). The extractors (extract/extract_dino.py,
extract_cvnet.py) number a picture's cells row by row and write the row's coordinate first, though
the column is called x: so do we read it. DINOv2's places are fractions of the picture, CVNet's
pixels. Global descriptors lie in a file of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.importers import ImportedLocals, Unusable, checked_locals, reading
from schemas.openers.hdf5 import dataset, open_hdf5

DATASET = "features"
LEADING = 5
CVNET_SCALES = (0.7071, 1.0, 1.4142)
CVNET_DIMENSION = 1024


class AmesFile:
    """One file, open for reading.

    rows: images, N.
    dimension: W.

    Raises UserError where it is no such file.
    """

    def __init__(self, path: str) -> None:
        with reading(path, f"HDF5 with a dataset {DATASET!r}"):
            self._file = open_hdf5(path)
            features = dataset(self._file, DATASET)
        self.path, self._features = path, features
        self.rows = int(features.shape[0]) if features.shape else 0
        self.signs = False
        names = features.dtype.names

        if (
            names is None
            and features.ndim == 3
            and features.shape[2] > LEADING
            and features.dtype.kind == "f"
        ):
            self.dimension = int(features.shape[2]) - LEADING
        elif names is not None and features.ndim == 2 and {"metadata", "descriptor"} <= set(names):
            described = features.dtype["descriptor"]
            self.signs = described.base.kind == "u"
            self.dimension = int(np.prod(described.shape)) * (8 if self.signs else 1)
            if features.dtype["metadata"].shape != (LEADING,):
                raise UserError(f"{path}: 'metadata' must hold {LEADING} numbers a descriptor")
        else:
            raise UserError(
                f"{path}: {DATASET!r} is {features.dtype} {list(features.shape)}; it must be "
                f"[images, descriptors, {LEADING} + dimension], or a structure of 'metadata' and "
                "'descriptor'"
            )

    def default_scales(self) -> tuple[float, ...]:
        """The image scales that the published extractors use for descriptors of this dimension."""
        return CVNET_SCALES if self.dimension == CVNET_DIMENSION else (1.0,)

    def row_bytes(self) -> int:
        """Bytes of one image in memory."""
        return (
            int(self._features.shape[1])
            * int(self._features.dtype.itemsize)
            * int(self._features.shape[2] if self._features.ndim == 3 else 1)
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """The images start .. stop as they stand in the file.

        Raises UserError where a block cannot be read.
        """
        with reading(self.path, f"HDF5: images {start} to {stop - 1}"):
            return self._features[start:stop]

    def locals_of(self, image: np.ndarray, most: int, scales: tuple[float, ...]) -> ImportedLocals:
        """One image of `read` as our stores have it. Raises Unusable (schemas.importers)."""
        if image.dtype.names is None:
            leading, descriptors = image[:, :LEADING], image[:, LEADING:]
        else:
            leading, descriptors = image["metadata"], image["descriptor"].reshape(len(image), -1)

        kept = leading[:, 3] == 0
        if not (kept | (leading[:, 3] == 1)).all():
            raise Unusable("its masks are not all 0 or 1", "mask")
        leading, descriptors = np.asarray(leading[kept], np.float32), descriptors[kept]
        ordinals = leading[:, 2]

        if not np.isin(ordinals, np.arange(len(scales))).all():
            raise Unusable(
                f"it holds scale numbers that are none of 0 .. {len(scales) - 1} (--scales)",
                "scale",
            )

        return checked_locals(
            self._signs(descriptors) if self.signs else descriptors,
            leading[:, 1::-1],
            ordinals.astype(np.uint8),
            leading[:, 4],
            dimension=self.dimension,
            most=most,
        )

    def _signs(self, packed: np.ndarray) -> np.ndarray:
        signs: Any = np.unpackbits(packed, axis=1).astype(np.float32)
        return np.asarray((2 * signs - 1) / np.sqrt(np.float32(self.dimension)), np.float32)
