"""Any backbone of the package timm as an extractor, such as `timm:resnet50`.

The shape is that of the default extractor: a global descriptor summed over the image's copies,
locals from a map of stride 16 of all copies, their strength the norm. Weights are a local
file, or timm's own download with the option pretrained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rrt_core.devices import choose_device
from rrt_core.extractors import Description, Extractor, Failure, global_only
from rrt_core.extractors.copies import CopiesExtractor, cell_places
from rrt_core.extractors.options import read_option
from rrt_core.extractors.projection import Kept, Projection, read_projection
from rrt_core.extractors.spread import SPREAD, kept_locals
from rrt_core.extractors.timm.network import TimmNetwork
from rrt_core.images import Image
from schemas.errors import UserError

_BATCH_ON_CUDA = 32
_NOT_FINITE = Failure("the network gives values that are not finite for this picture", "not_finite")


class Timm(CopiesExtractor):
    """See the module. Options:

    model       timm's name of it, part of the extractor's name: timm:NAME
    weights     a local state dict, .safetensors or .pth (tensors alone), with timm's names, or of
                an origin that timm converts; "random" for random ones (tests)
    pretrained  true: timm's own weights of that name, downloaded unless they are in its cache
    sizes       longest sides of the image's copies, pixels, falling; locals come from all of them,
                the global descriptor is the sum over them
    pooling     gem (p = 3, over the last map, or the patch tokens of the last block), cls (class
                token) or model (as the model does ahead of its classifier); default: cls where
                there is a class token, else gem
    feature     number of the map that the locals come from, as `forward_intermediates` counts:
                stages of a convolutional network, blocks of a transformer, whose tokens go through
                its last norm; default: the last one of stride 16, or the next finer
    max_locals, order  see EfficientNet
    projection  a file of benchmarks/making/make_projection.py; without one the locals are the
                map's own, L2-normalised
    enlarge, min_size  see EfficientNet
    device      auto (a GPU where there is one), cpu, cuda or cuda:N

    On a CPU images are run one at a time and give the same bytes in any company. On a GPU those of
    equal size are run together, and the last bits may differ with the company, so that device and
    group are part of the configuration there. Sides of copies are whole multiples of a
    transformer's patches, and of the stride of networks that cut patches (ConvNeXt, Swin), which
    changes the aspect by half a patch at most; others see the picture as it is.
    """

    revision = 1

    def __init__(
        self,
        *,
        model: str,
        weights: str | None = None,
        pretrained: bool = False,
        sizes: Sequence[int] | int = (512, 360, 256),
        pooling: str | None = None,
        feature: int | None = None,
        max_locals: int = 500,
        projection: str | None = None,
        enlarge: float = 2.0,
        min_size: int = 256,
        order: str = SPREAD,
        device: str = "auto",
    ) -> None:
        self._take_copies(sizes, max_locals, enlarge, min_size, order)
        if not isinstance(pretrained, bool):
            raise UserError(
                f"The extractor's option pretrained must be true or false, not {pretrained!r}."
            )

        self.name = f"timm:{model}"
        chosen = choose_device(device)
        self.network = TimmNetwork(
            model,
            weights=weights,
            pretrained=pretrained,
            pooling=pooling,
            feature=feature,
            device=chosen,
        )
        self._projection: Projection | None = None
        self.weights_sha256 = self.network.weights_sha256
        self.local_dim = self.network.channels

        if projection is not None:
            data = read_option(Path(projection), "projection")
            self._projection = read_projection(data, self.network.channels, projection).to(chosen)
            self.weights_sha256 = hashlib.sha256(
                bytes.fromhex(self.weights_sha256) + data
            ).hexdigest()
            self.local_dim = self._projection.dimension

        self._batched = chosen.type == "cuda"
        self.batch = _BATCH_ON_CUDA if self._batched else Extractor.batch
        self.global_dim, self.multiple = self.network.global_dim, self.network.multiple
        self.config |= {
            "pooling": self.network.pooling,
            "feature": self.network.feature,
            "mean": list(self.network.mean),
            "deviation": list(self.network.deviation),
            "projection": projection is not None,
        }

        # the last bits depend on them; the CPU, which runs one at a time, has neither
        if self._batched:
            self.config.update({"device": "gpu", "group": _BATCH_ON_CUDA})

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe`.

        A Failure where the network gives values that are not finite.
        """
        with torch.inference_mode():
            return [self._description(kept) for kept in self.kept(images)]

    def describe_globals(self, images: Sequence[Image]) -> list[Description | Failure]:
        """See `Extractor.describe_globals`.

        Leaves out norms, sorting and projection of the cells.
        """
        answers: list[Description | Failure] = []
        with torch.inference_mode():
            for seen in self._seen(images):
                pooled = torch.stack([pooled for _, pooled, _ in seen]).sum(0)
                whole = F.normalize(pooled, dim=0).cpu().numpy()
                answers.append(
                    global_only(whole, self.local_dim) if np.isfinite(whole).all() else _NOT_FINITE
                )
        return answers

    def kept(self, images: Sequence[Image]) -> Iterator[Kept]:
        """The descriptions before projection and normalising.

        Call it under torch.inference_mode().
        """
        for image, seen in zip(images, self._seen(images), strict=True):
            cells = torch.cat([cells.flatten(1).T for _, _, cells in seen])
            strength = torch.linalg.vector_norm(cells, dim=1).cpu().numpy()
            xy = np.concatenate([self._places(image, shape, cells) for shape, _, cells in seen])
            scale = np.concatenate(
                [
                    np.full(cells.shape[1] * cells.shape[2], ordinal, np.uint8)
                    for ordinal, (_, _, cells) in enumerate(seen)
                ]
            )
            # A cell of zeros has no direction.
            some = np.flatnonzero(strength)
            kept = some[
                kept_locals(self._order, xy[some], scale[some], strength[some], self._max_locals)
            ]
            yield Kept(
                pooled=torch.stack([pooled for _, pooled, _ in seen]).sum(0),
                cells=cells[torch.from_numpy(kept).to(cells.device)],
                xy=xy[kept],
                scale=scale[kept],
                strength=strength[kept],
            )

    def _description(self, kept: Kept) -> Description | Failure:
        whole = F.normalize(kept.pooled, dim=0).cpu().numpy()
        descriptors = (
            self._projection(kept.cells) if self._projection else F.normalize(kept.cells, dim=1)
        )
        local = descriptors.cpu().numpy()
        if not (
            np.isfinite(whole).all()
            and np.isfinite(local).all()
            and np.isfinite(kept.strength).all()
        ):
            return _NOT_FINITE
        return Description(whole, local, kept.xy, kept.scale, kept.strength)

    def _seen(
        self, images: Sequence[Image]
    ) -> Iterator[list[tuple[tuple[int, ...], Tensor, Tensor]]]:
        """Of each image and each of its copies: shape, pooled [D], cells [C, rows, columns]."""
        if not self._batched:
            for image in images:
                yield [(copy.shape, *self._alone(copy)) for copy in self._copies(image)]
            return

        copies = [self._copies(image) for image in images]
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for number, one in enumerate(copies):
            for ordinal, copy in enumerate(one):
                alike.setdefault(copy.shape, []).append((number, ordinal))
        results: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

        for members in alike.values():
            for start in range(0, len(members), _BATCH_ON_CUDA):
                some = members[start : start + _BATCH_ON_CUDA]
                stacked = np.stack([copies[number][ordinal] for number, ordinal in some])
                pooled, cells = self.network(torch.from_numpy(stacked))
                results.update(
                    (member, (pooled[row], cells[row])) for row, member in enumerate(some)
                )

        for number, one in enumerate(copies):
            yield [(copy.shape, *results[number, ordinal]) for ordinal, copy in enumerate(one)]

    def _alone(self, copy: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        pooled, cells = self.network(torch.from_numpy(copy)[None])
        return pooled[0], cells[0]

    def _places(
        self, image: Image, shape: tuple[int, ...], cells: Tensor
    ) -> npt.NDArray[np.float32]:
        """Centres of the cells, x, y in pixels of the upright original, float32 [cells, 2]."""
        rows, columns = cells.shape[1:]
        grid = self.network.grid
        return cell_places(
            image, shape, grid.centres(shape[1], columns), grid.centres(shape[0], rows)
        )
