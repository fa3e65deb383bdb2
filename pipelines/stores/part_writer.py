"""The one writer of a part's files: globals, local descriptors, failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.jobs.attempt import Attempt
from pipelines.storage.protocol import Place
from rrt_core.extractors import Description
from schemas import failures, global_descriptors, local_descriptors
from schemas.failures import FailureRow
from schemas.global_descriptors import GlobalRow
from schemas.importers import ImportedLocals
from schemas.layout import LAYER, ROTATION_NAME
from schemas.local_descriptors import LocalRow
from schemas.manifest import Counts

OF_A_STORE = f"local/{LAYER}"  # folder of the local descriptors that a store is made with
OF_A_LAYER = "local"


@dataclass
class PartRows:
    """What a part holds: a row of globals an image, locals of those that have some, failures."""

    globals: list[GlobalRow] = field(default_factory=list)
    locals: list[LocalRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """inputs = succeeded + failed."""
        images, failed = len(self.globals), len(self.failures)
        return Counts(images, images - failed, failed)


@dataclass(frozen=True)
class PartWriter:
    """Writes parts alike, whoever describes their images.

    options     the stage's: global_dtype, local_dtype, max_locals (of an image; 0: all)
    global_dim  values of a global descriptor; 0 where a part has none, as in a layer
    local_dim   values of a local descriptor
    folder      of the files of local descriptors; "" where a part has none
    rotation    of binary local descriptors, float32 [W, W]
    """

    options: Mapping[str, Any]
    global_dim: int
    local_dim: int
    folder: str
    rotation: np.ndarray | None = None

    def local_row(self, row: int, described: Description | ImportedLocals) -> LocalRow:
        """The first local descriptors of an image, as they are stored."""
        most = self.options["max_locals"] or len(described.descriptors)
        descriptors = local_descriptors.encoded(
            described.descriptors[:most], self.options["local_dtype"], self.rotation
        )
        return LocalRow(
            row,
            descriptors,
            described.xy[:most],
            described.scale[:most],
            described.strength[:most],
        )

    def write(self, attempt: Attempt, number: int, part: PartRows) -> None:
        """Write the files of the part of a number and hand them over."""
        name, options = f"part-{number:05}", self.options

        if self.global_dim:
            path = attempt.path(f"{name}.parquet")
            layout = global_descriptors.write_part(
                path, part.globals, self.global_dim, options["global_dtype"]
            )
            attempt.add(path, f"global/{name}.parquet", len(part.globals), layout)

        if self.folder:
            path = attempt.path(f"{name}.h5")
            layout = local_descriptors.write_part(
                path, part.locals, self.local_dim, options["local_dtype"], self.rotation
            )
            attempt.add(path, f"{self.folder}/{name}.h5", len(part.locals), layout)

        path = attempt.path(f"{name}.failures.parquet")
        failures.write_part(path, part.failures)
        attempt.add(path, f"failures/{name}.parquet", len(part.failures))


def read_rotation(store: Place, options: Mapping[str, Any], dimension: int) -> np.ndarray | None:
    """The rotation of a store's binary local descriptors, float32 [W, W]; None for other dtypes."""
    if options["local_dtype"] != "binary":
        return None
    return np.frombuffer(store.read(ROTATION_NAME), "<f4").reshape(dimension, dimension)
