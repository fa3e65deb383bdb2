"""Whether a converted DELG network gives what its SavedModel gives, on one picture.

SavedModels of TF1 (the published ones) and of TF2 are run as delf/python/examples/extractor.py runs
them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rrt_core.extractors import Description
from rrt_core.extractors.delg.extractor import GLOBAL_SCALES, IMAGE_SCALES, Delg
from rrt_core.extractors.delg.network import Architecture
from rrt_core.images import Image
from schemas.errors import UserError

TOLERANCE = 1e-3
_MOST = 1000
_ALL = -1.0  # attention is softplus, so this threshold keeps every cell
_FEEDS = (
    "input_image",
    "input_scales",
    "input_abs_thres",
    "input_max_feature_num",
    "input_global_scales_ind",
)
_FETCHES = ("boxes", "features", "scales", "scores", "global_descriptors")


@dataclass(frozen=True)
class Agreement:
    """How far the two are from each other.

    places       share of the SavedModel's locals that the network finds too, at the same place and
                 scale
    attention    greatest difference, over the greatest attention
    descriptors  greatest L2 distance of descriptors of norm 1
    globals      L2 distance of the global descriptors of norm 1
    """

    places: float
    attention: float
    descriptors: float
    globals: float

    def worst(self) -> float:
        """The greatest of the differences; a missing place counts as one."""
        return max(1.0 - self.places, self.attention, self.descriptors, self.globals)

    def close(self) -> bool:
        """Equal but for rounding.

        Of 1,000 places a few may differ: those whose attention is all but equal.
        """
        return (
            self.places >= 0.99 and max(self.attention, self.descriptors, self.globals) <= TOLERANCE
        )

    def __str__(self) -> str:
        return (
            f"{100 * self.places:.1f}% of its places, attention within {self.attention:.1e}, "
            f"descriptors within {self.descriptors:.1e}, global within {self.globals:.1e}"
        )


class SavedDelg:
    """What a SavedModel says of the picture."""

    def __init__(
        self, outputs: dict[str, npt.NDArray[np.float32]], picture: npt.NDArray[np.uint8]
    ) -> None:
        boxes = outputs["boxes"]
        self._picture = picture
        self._yx = (boxes[:, :2] + boxes[:, 2:]) / 2
        self._ordinals = np.abs(
            outputs["scales"][:, None] * np.array(IMAGE_SCALES)[None] - 1
        ).argmin(1)
        self._scores = outputs["scores"].reshape(-1)
        self._descriptors = _rows(outputs["features"])
        self._global = _rows(_rows(outputs["global_descriptors"]).sum(0, keepdims=True))[0]

    def compare(self, weights: bytes, architecture: Architecture) -> Agreement:
        """Run the network of a weights file on the same picture."""
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(weights)
            file.flush()
            extractor = Delg(weights=file.name, threshold=_ALL, max_locals=_MOST, device="cpu")
        height, width = self._picture.shape[:2]
        ours = extractor.describe([Image("check", self._picture, width, height)])[0]
        assert isinstance(ours, Description)  # the picture is not too small
        dimensions = (ours.descriptors.shape[1], len(ours.global_descriptor))
        if dimensions != (self._descriptors.shape[1], len(self._global)):
            return Agreement(0.0, np.inf, np.inf, np.inf)
        known = {
            _key(scale, x, y): n
            for n, (scale, (x, y)) in enumerate(zip(ours.scale, ours.xy, strict=True))
        }
        theirs = [_key(scale, x, y) for scale, (y, x) in zip(self._ordinals, self._yx, strict=True)]
        both = [(n, known[key]) for n, key in enumerate(theirs) if key in known]
        if not both:
            return Agreement(0.0, np.inf, np.inf, np.inf)
        them, us = (list(side) for side in zip(*both, strict=True))
        return Agreement(
            places=len(both) / len(theirs),
            attention=float(
                np.abs(self._scores[them] - ours.strength[us]).max() / self._scores.max()
            ),
            descriptors=float(
                np.linalg.norm(self._descriptors[them] - ours.descriptors[us], axis=1).max()
            ),
            globals=float(np.linalg.norm(self._global - ours.global_descriptor)),
        )


def load_saved_model(tensorflow: Any, model: Path) -> SavedDelg:
    """Run it on the picture.

    Raises UserError where it cannot be loaded, or takes or gives other things than DELG.
    """
    tf, shown = tensorflow, picture()
    inputs = {
        "input_image": tf.constant(shown),
        "input_scales": tf.constant(IMAGE_SCALES, tf.float32),
        "input_abs_thres": tf.constant(_ALL, tf.float32),
        "input_max_feature_num": tf.constant(_MOST, tf.int32),
        "input_global_scales_ind": tf.constant(GLOBAL_SCALES, tf.int32),
    }
    try:
        loaded = tf.saved_model.load(str(model))
        signature = loaded.signatures.get("serving_default")
        if signature is not None and set(inputs) <= set(signature.structured_input_signature[1]):
            outputs = signature(**inputs)
        else:
            run = loaded.prune(
                feeds=[f"{name}:0" for name in _FEEDS], fetches=[f"{name}:0" for name in _FETCHES]
            )
            outputs = dict(zip(_FETCHES, run(*(inputs[feed] for feed in _FEEDS)), strict=True))
        arrays = {name: np.asarray(outputs[name].numpy(), np.float32) for name in _FETCHES}
    except Exception as error:  # TensorFlow raises many kinds for a model of other inputs
        why = str(error).split("\n")[0][:200]
        raise UserError(
            f"The SavedModel in {model} cannot be run as one of DELG's local and global features "
            f"({why}): export it with export_local_and_global_model.py, or convert it unchecked "
            f"with --no-check."
        ) from error
    return SavedDelg(arrays, shown)


def picture() -> npt.NDArray[np.uint8]:
    """Blurred noise of odd sides, so that paddings show: uint8 [233, 310, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (18, 24, 3)).astype(np.float64)
    fine = np.kron(coarse, np.ones((13, 13, 1)))[:233, :310] + rng.normal(0, 20, (233, 310, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


def _key(scale: Any, x: Any, y: Any) -> tuple[int, int, int]:
    return int(scale), round(float(x)), round(float(y))


def _rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.sqrt(np.maximum(np.square(rows, dtype=np.float64).sum(1, keepdims=True), 1e-12))
    return (rows / norms).astype(np.float32)
