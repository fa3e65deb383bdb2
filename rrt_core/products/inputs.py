"""What the trained part of a network takes: crops, or the kept output of the other part.

The early part of a backbone is most of its cost at high resolution. Where it is not trained, its
output for the plain crop and a few augmented copies of each image is computed once and kept in one
file; training then runs the late part alone, or none of the backbone. The price: an image is seen
in so many copies only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrt_core.products.backbone import Backbone
from rrt_core.products.crops import CropReader
from rrt_core.training.state import write_whole
from schemas.errors import UserError

Rows = npt.NDArray[np.int64]
_BATCH = 16


class Inputs(Protocol):
    """Input tensors of images.

    copies: number of augmented copies (besides copy 0, the plain crop).
    """

    @property
    def copies(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Rows, copies: Rows) -> Tensor:
        """float32 or uint8 [B, ...], on the CPU; `copies` in 0..self.copies."""
        ...


class CropInputs:
    """Crops themselves: for a backbone that is trained as a whole. Every copy is another one."""

    copies = 2**31 - 1

    def __init__(self, reader: CropReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def batch(self, rows: Rows, copies: Rows) -> Tensor:
        """uint8 [B, 3, crop, crop]."""
        return torch.from_numpy(np.ascontiguousarray(self._reader.read(rows, copies)))


class KeptInputs:
    """Kept outputs: float16 [images, 1 + copies, ...], in memory or in a file that is mapped."""

    def __init__(self, values: npt.NDArray[np.float16]) -> None:
        self._values = values
        self.copies = values.shape[1] - 1

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: Rows, copies: Rows) -> Tensor:
        """float32 [B, ...]."""
        return torch.from_numpy(self._values[rows, copies].astype(np.float32))


def keep(
    run: Callable[[Tensor], Tensor],
    inputs: Inputs,
    copies: int,
    file: Path,
    identity: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KeptInputs:
    """Compute and keep `run` of every image's plain crop and `copies` augmented ones.

    Args:
        run: what is kept of a batch of inputs, float [B, ...], a function of each row alone (up to
            rounding).
        file: float16 .npy; a `.json` beside it records how far it is. A rerun continues there.
        identity: names what makes the bytes; a file of another identity is made again.
        progress: called with (images done, images in all).
    Raises:
        UserError: an image that cannot be decoded; values that float16 cannot hold.
    """
    copies = min(copies, inputs.copies)
    note = file.with_suffix(".json")
    done = 0
    if file.exists() and note.exists():
        recorded = json.loads(note.read_text())
        done = recorded["done"] if recorded["identity"] == identity else 0
    kept = np.load(file, mmap_mode="r+") if done else None
    total = len(inputs)
    which = np.arange(1 + copies)

    for first in range(done, total, _BATCH):
        rows = np.arange(first, min(total, first + _BATCH))
        with torch.no_grad():
            # Image by image: the bits of a network's output change with the size of its batch.
            values = [
                run(inputs.batch(np.full(len(which), row), which)).float().cpu().numpy()
                for row in rows
            ]
        if kept is None:
            temporary = file.with_name(file.name + ".tmp")
            shape = (total, len(which), *values[0].shape[1:])
            np.lib.format.open_memmap(temporary, "w+", np.float16, shape).flush()
            os.replace(temporary, file)
            kept = np.load(file, mmap_mode="r+")
        with np.errstate(over="ignore"):
            kept[rows] = np.stack(values)
        if not np.isfinite(kept[rows]).all():
            raise UserError(
                f"{file}: the network's values exceed what float16 holds (65,504): its weights are "
                "damaged."
            )
        if len(rows) + first == total or (first // _BATCH) % 16 == 15:
            kept.flush()
            write_whole(
                note, json.dumps({"identity": identity, "done": first + len(rows)}).encode()
            )
        progress(first + len(rows), total)

    assert kept is not None
    return KeptInputs(kept)


def frozen_part(
    backbone: Backbone, trained: str, precision: str = "float32"
) -> Callable[[Tensor], Tensor]:
    """What of the backbone need not be computed again where `trained` is "late" or "none".

    precision: bfloat16 takes half the time on a CPU with AVX-512 BF16.
    """
    part = backbone.early if trained == "late" else backbone

    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return part(x)

    return run
