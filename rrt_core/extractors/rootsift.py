"""RootSIFT locals over the EfficientNet global: the handcrafted peer of the learned ones.

SIFT: D. Lowe, IJCV 2004, as OpenCV has it. RootSIFT: R. Arandjelovic and A. Zisserman, CVPR 2012
(L1-normalise, take square roots: inner products then compare histograms by the Hellinger kernel).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from rrt_core.execution import TORCH
from rrt_core.extractors import Description, Extractor, Failure, without_locals
from rrt_core.extractors.copies import copy_of, largest_copy, places
from rrt_core.extractors.efficientnet.extractor import EfficientNet
from rrt_core.extractors.options import later_config
from rrt_core.extractors.spread import (
    SPREAD,
    STRENGTH,
    check_order,
    kept_locals,
    pool_of,
)
from rrt_core.images import Image
from rrt_core.options import check_whole

_OCTAVES = 10  # SIFT halves an image of 2 x 4096 pixels ten times until nothing is left to look at


class RootSift(Extractor):
    """See the module. Options:

    size               longest side at which keypoints are sought, pixels; smaller pictures are not
                       enlarged
    max_locals         at most this many keypoints an image, those of the highest response
    order              spread: any prefix of them covers the picture (spread.py); strength: the
                       highest response first, as in stores of earlier versions
    execution, weights, whitening  of the EfficientNet that makes the global descriptor

    scale of a local: its octave. The first is SIFT's doubled image: scales run 1, 1/2, 1/4 ... of
        that.
    strength: the keypoint's response (contrast). A picture without texture has no locals.
    """

    name = "rootsift"
    revision = 1

    def __init__(
        self,
        *,
        size: int = 480,
        max_locals: int = 500,
        order: str = SPREAD,
        execution: str = TORCH,
        weights: str | None = None,
        whitening: str | None = None,
    ) -> None:
        check_whole("The extractor's option size", size, 32, 4096)
        check_whole("The extractor's option max_locals", max_locals, 1, 65535)
        check_order(order)
        self._size, self._max_locals, self._order = size, max_locals, order
        self._globals = EfficientNet(
            max_locals=1,
            order=STRENGTH,
            execution=execution,
            weights=weights,
            whitening=whitening,
        )
        self._pool = pool_of(order, max_locals)
        self._sift = cv2.SIFT.create(nfeatures=self._pool)
        self.scales = tuple(2.0**-octave for octave in range(_OCTAVES))
        self.global_dim = self._globals.global_dim
        self.local_dim = 128
        self.largest_side = max(size, self._globals.largest_side or 0)
        self.weights_sha256 = self._globals.weights_sha256
        self.config = {
            "size": size,
            "max_locals": max_locals,
            **later_config(order=order),
            "global": self._globals.config,
        }

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe`. Never a Failure."""
        return [self._describe(image) for image in images]

    def describe_globals(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe_globals`. Seeks no keypoints."""
        return [
            without_locals(answer, self.local_dim)
            for answer in self._globals.describe_globals(images)
        ]

    def _describe(self, image: Image) -> Description:
        whole = self._globals.describe([image])[0]
        assert isinstance(whole, Description)
        pixels = copy_of(image, largest_copy(image, self._size, 1.0, 0))
        keypoints, histograms = self._sift.detectAndCompute(
            cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None
        )
        if len(keypoints) == 0:
            histograms = np.zeros((0, self.local_dim), np.float32)
        table = np.array(
            [(*k.pt, k.response, k.size, k.angle, k.octave) for k in keypoints], np.float64
        ).reshape(-1, 6)
        x, y, response, size, angle, octave = table.T

        # OpenCV keeps every keypoint of the last response it admits, so more than
        # `nfeatures`, in no promised order.
        order = np.lexsort((angle, size, y, x, -response))[: self._pool]
        # OpenCV counts from the centre of the first pixel; ours from its corner.
        across, down = places(image, pixels.shape, x[order] + 0.5, y[order] + 0.5)
        xy = np.stack([across, down], axis=1).astype(np.float32)
        scale, strength = _ordinals(octave[order]), response[order].astype(np.float32)
        kept = kept_locals(self._order, xy, scale, strength, self._max_locals)
        return Description(
            global_descriptor=whole.global_descriptor,
            descriptors=root(np.asarray(histograms, np.float32)[order][kept]),
            xy=xy[kept],
            scale=scale[kept],
            strength=strength[kept],
        )


def root(histograms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """SIFT histograms [n, 128], not negative -> roots of their L1-normalised values, L2 norm 1."""
    sums = np.maximum(histograms.sum(axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(np.sqrt(histograms / sums), np.float32)


def _ordinals(octave: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    # OpenCV packs octave (low byte, signed, -1 = the doubled image), layer and more into one
    # integer.
    low = octave.astype(np.int64) & 255
    signed = np.where(low >= 128, low - 256, low)
    return np.asarray(np.clip(signed + 1, 0, _OCTAVES - 1), np.uint8)
