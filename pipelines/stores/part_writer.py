"""Writing the local descriptors of a part, and the rotation of binary ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.storage.protocol import Place
from rrt_core.extractors import Description
from schemas import local_descriptors
from schemas.layout import ROTATION_NAME
from schemas.local_descriptors import LocalRow


def local_row(
    row: int, description: Description, options: dict[str, Any], rotation: np.ndarray | None
) -> LocalRow:
    """The strongest local descriptors of an image, as they are stored."""
    most = options["max_locals"] or len(description.descriptors)
    descriptors = local_descriptors.encoded(
        description.descriptors[:most], options["local_dtype"], rotation
    )
    return LocalRow(
        row,
        descriptors,
        description.xy[:most],
        description.scale[:most],
        description.strength[:most],
    )


def write_locals(
    path: str,
    rows: Sequence[LocalRow],
    dimension: int,
    options: dict[str, Any],
    rotation: np.ndarray | None,
) -> dict[str, Any]:
    """Write a part's locals; gives the file's layout."""
    return local_descriptors.write_part(path, rows, dimension, options["local_dtype"], rotation)


def read_rotation(store: Place, options: dict[str, Any], dimension: int) -> np.ndarray | None:
    """The rotation of a store's binary local descriptors, float32 [W, W]; None for other dtypes."""
    if options["local_dtype"] != "binary":
        return None
    return np.frombuffer(store.read(ROTATION_NAME), "<f4").reshape(dimension, dimension)
