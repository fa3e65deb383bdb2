"""DELG (Cao, Araujo, Sim, ECCV 2020) in torch, as tensorflow/models, research/delf, extracts it.

The steps are those of delg/extract_features.py, examples/extractor.py, utils.py,
feature_extractor.py and training/model/export_model_utils.py (ExtractLocalAndGlobalFeatures);
docs/delg.md lists them and what differs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import Tensor

from rrt_core.devices import choose_device
from rrt_core.extractors import Description, Extractor, Failure, without_locals
from rrt_core.extractors.delg.network import load_network
from rrt_core.images import Image
from rrt_core.options import check_whole
from rrt_core.weight_files import read_weights
from schemas.errors import UserError

IMAGE_SCALES = (0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0)
GLOBAL_SCALES = (3, 4, 5)  # ordinals in IMAGE_SCALES
# score_threshold of the four published configurations (delg/*_config.pbtxt).
THRESHOLDS = {
    "r50delg_gld": 175.0,
    "r101delg_gld": 166.1,
    "r50delg_gldv2clean": 454.6,
    "r101delg_gldv2clean": 357.48,
}
_MIN_SIDE = 10  # extractor.py, _MIN_HEIGHT
_HALF_FIELD = 145.0  # padding of the receptive field, which is 291 pixels wide
_SMALL = 1e-12  # epsilon of tf.nn.l2_normalize


class Locals(NamedTuple):
    """Cells of one image, of all scales, the strongest first."""

    descriptors: npt.NDArray[np.float32]  # [n, local_dim], L2 norm 1
    # [n, 2], centres of the receptive fields, pixels of the resized image
    yx: npt.NDArray[np.float32]
    scale: npt.NDArray[np.uint8]  # [n]
    strength: npt.NDArray[np.float32]  # [n]


class Delg(Extractor):
    """See the module. Options:

    weights         file or fsspec URL, made by `convert-delg`
    max_locals      at most this many locals, the strongest of all scales together; published: 1000,
                    of which the Reranking Transformer takes the first 500
    threshold       least attention of a local; None: that of the weights file
    max_image_size  a longer side is shrunk to it (times the image's resize_factor), never enlarged
    device          auto | cpu | cuda | cuda:N
    group           images of equal size that a GPU runs together

    On the CPU images are run one at a time: the same bytes alone and among others. On a GPU the
    bits of an image may change with the group it is run in (below 1e-5), so device and group are
    part of the configuration there.
    """

    name = "delg"
    revision = 1
    scales = IMAGE_SCALES
    # the original shrinks the whole picture by PIL; one decoded at a half would give other pixels
    largest_side = None

    def __init__(
        self,
        *,
        weights: str,
        max_locals: int = 500,
        threshold: float | None = None,
        max_image_size: int = 1024,
        device: str = "auto",
        group: int = 8,
    ) -> None:
        for option, value in (
            ("max_locals", max_locals),
            ("max_image_size", max_image_size),
            ("group", group),
        ):
            check_whole(f"The extractor's option {option}", value, 1)

        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if threshold is not None and not (number and math.isfinite(threshold)):
            raise UserError(
                f"The extractor's option threshold must be a number, not {threshold!r}."
            )

        data = read_weights(weights, "DELG weights", "; make it with convert-delg")
        loaded = load_network(data, f"the DELG weights {weights}")
        self._device = choose_device(device)
        self._network = loaded.network.to(self._device)
        architecture = loaded.network.architecture
        self._threshold = float(loaded.threshold if threshold is None else threshold)
        self._stride = float(architecture.local_stride)
        self._max_locals, self._max_image_size = max_locals, max_image_size
        on_gpu = self._device.type != "cpu"
        self.batch = group if on_gpu else 1
        self.global_dim, self.local_dim = architecture.global_dim, architecture.local_dim
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        self.config: dict[str, Any] = {
            "max_locals": max_locals,
            "threshold": self._threshold,
            "max_image_size": max_image_size,
            "image_scales": list(IMAGE_SCALES),
            "global_scales": [IMAGE_SCALES[ordinal] for ordinal in GLOBAL_SCALES],
            "device": "gpu" if on_gpu else "cpu",
        }
        if on_gpu:
            self.config["group"] = group

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe`.

        A Failure where the resized image has a side below 10 pixels.
        """
        return self._answers(images, with_locals=True)

    def describe_globals(self, images: Sequence[Image]) -> list[Description | Failure]:
        """As `describe`, of the three global scales alone."""
        return self._answers(images, with_locals=False)

    def _answers(self, images: Sequence[Image], with_locals: bool) -> list[Description | Failure]:
        answers: dict[int, Description | Failure] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        resized = [
            resize(image.pixels, self._max_image_size * image.resize_factor) for image in images
        ]

        for place, pixels in enumerate(resized):
            if min(pixels.shape[:2]) < _MIN_SIDE:
                answers[place] = Failure(
                    f"the picture is {pixels.shape[1]} x {pixels.shape[0]} pixels as DELG resizes "
                    f"it; at least {_MIN_SIDE} a side are needed",
                    "too_small",
                )
                continue
            groups.setdefault(pixels.shape, []).append(place)

        for places in groups.values():
            for start in range(0, len(places), self.batch):
                chosen = places[start : start + self.batch]
                with torch.inference_mode(), _exact_convolutions():
                    described = self._describe([resized[place] for place in chosen], with_locals)
                for place, (pooled, local) in zip(chosen, described, strict=True):
                    image = images[place]
                    shrunk = np.array(resized[place].shape[:2]) / np.array(image.span[::-1])
                    answers[place] = Description(
                        global_descriptor=pooled,
                        descriptors=local.descriptors,
                        xy=(local.yx / shrunk.astype(np.float32))[:, ::-1]
                        + np.array(image.origin, np.float32),
                        scale=local.scale,
                        strength=local.strength,
                    )

        ordered = [answers[place] for place in range(len(images))]
        return (
            ordered
            if with_locals
            else [without_locals(answer, self.local_dim) for answer in ordered]
        )

    def _describe(
        self, pictures: list[npt.NDArray[np.uint8]], with_locals: bool
    ) -> list[tuple[npt.NDArray[np.float32], Locals]]:
        """Global descriptor and locals of pictures of equal size.

        Locals are empty without `with_locals`.
        """
        pixels = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2)
        normalised = (pixels.to(torch.float32) - 128.0) / 128.0
        pooled: list[Tensor] = []
        cells = [[self._no_locals()] for _ in pictures]
        for ordinal, scale in enumerate(IMAGE_SCALES):
            if not with_locals and ordinal not in GLOBAL_SCALES:
                continue
            block3 = self._network.trunk(scaled(normalised, scale))
            if block3 is None:
                continue  # below the least side of a map; never at a global scale
            if ordinal in GLOBAL_SCALES:
                pooled.append(normalise(self._network.global_descriptors(block3)))
            if with_locals:
                attention, descriptors = self._network.local_maps(block3)
                for of_image, scores, raw in zip(cells, attention, descriptors, strict=True):
                    of_image.append(self._strong(scores, raw, ordinal))
        globals_ = normalise(torch.stack(pooled).sum(0)).cpu().numpy()
        return [(own, self._strongest(pieces)) for own, pieces in zip(globals_, cells, strict=True)]

    def _strong(self, scores: Tensor, raw: Tensor, ordinal: int) -> Locals:
        """Cells of one map [h, w] whose attention reaches the threshold, row by row."""
        strength = scores.flatten().cpu().numpy()
        kept = np.flatnonzero(strength >= np.float32(self._threshold))
        columns = scores.shape[1]
        places = np.stack([kept // columns, kept % columns], 1)
        descriptors = raw.flatten(1).T[torch.from_numpy(kept).to(raw.device)]
        return Locals(
            descriptors=normalise(descriptors).cpu().numpy(),
            yx=field_centres(places, self._stride, IMAGE_SCALES[ordinal]),
            scale=np.full(len(kept), ordinal, np.uint8),
            strength=strength[kept],
        )

    def _no_locals(self) -> Locals:
        return Locals(
            np.zeros((0, self.local_dim), np.float32),
            np.zeros((0, 2), np.float32),
            np.zeros(0, np.uint8),
            np.zeros(0, np.float32),
        )

    def _strongest(self, pieces: list[Locals]) -> Locals:
        joined = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        best = strongest(joined[3], self._max_locals)
        return Locals(*(column[best] for column in joined))


def strongest(strength: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.intp]:
    """Places of the `most` greatest values, falling; of equal ones the first comes first.

    That is the order of tf.image.non_max_suppression, which suppresses nothing here: its threshold
    is an overlap of 1.0, and even equal boxes do not exceed it.
    """
    return np.argsort(-strength, kind="stable")[:most]


def field_centres(
    places: npt.NDArray[np.intp], stride: float, scale: float
) -> npt.NDArray[np.float32]:
    """Centres of receptive fields, float32 [n, 2], pixels of the image before scaling.

    places: row and column of cells [n, 2]. As CalculateReceptiveBoxes and CalculateKeypointCenters
        compute them, in
    float32 with their order of rounding: corners at stride * place -+ 145, divided by the scale,
        then their mean.
    """
    corner = np.float32(stride) * places.astype(np.float32)
    near: npt.NDArray[np.float32] = (corner - np.float32(_HALF_FIELD)) / np.float32(scale)
    far: npt.NDArray[np.float32] = (corner + np.float32(_HALF_FIELD)) / np.float32(scale)
    return (near + far) / np.float32(2)


def resize(pixels: npt.NDArray[np.uint8], longest: float) -> npt.NDArray[np.uint8]:
    """utils.ResizeImage: shrunk by PIL, bilinear, where the longer side exceeds `longest`.

    Nothing is enlarged.
    """
    height, width = pixels.shape[:2]
    if max(width, height) <= longest:
        return pixels
    factor = longest / max(width, height)
    size = (round(width * factor), round(height * factor))
    if min(size) < 1:
        return np.zeros((size[1], size[0], 3), np.uint8)
    return np.array(
        PillowImage.fromarray(pixels).resize(size, resample=PillowImage.Resampling.BILINEAR)
    )


def scaled(images: Tensor, scale: float) -> Tensor:
    """tf.image.resize of [B, 3, H, W] to round(side * scale).

    Bilinear, with half-pixel centres, without antialiasing.
    """
    sides = np.round(np.array(images.shape[2:], np.float32) * np.float32(scale)).astype(int)
    size = (int(sides[0]), int(sides[1]))
    if size != tuple(images.shape[2:]):
        images = F.interpolate(
            images, size=size, mode="bilinear", align_corners=False, antialias=False
        )
    return images.contiguous(memory_format=torch.channels_last)


def normalise(rows: Tensor) -> Tensor:
    """tf.nn.l2_normalize along the last axis."""
    return rows * torch.rsqrt(rows.square().sum(-1, keepdim=True).clamp(min=_SMALL))


def _exact_convolutions() -> Any:
    """Float32 throughout on a GPU, by algorithms that give the same bits each time."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
