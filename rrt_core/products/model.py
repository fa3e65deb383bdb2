"""The Reranking Transformer for products: pairs of feature maps of one network.

Source: Tan, Yuan, Ordonez, "Instance-level Image Retrieval using Reranking Transformers" (ICCV
2021), the variant for Stanford Online Products (uvavision/RerankingTransformer,
RRT_SOP/models/{matcher,base_model}.py). Parameter names and shapes are those of the paper's
repository, so that its published checkpoints load.

An image is the last feature map of a backbone, usually 7 x 7. Its cells, brought to `d_model` by a
1x1 convolution, are its local descriptors; its mean over the map, through a linear layer and L2
normalised, is the global one. A pair is one sequence:

    [CLS | cells of q | SEP | cells of g]      1 + 49 + 1 + 49 = 100 tokens for maps of 7 x 7

(The repository counts 102: with two global tokens that its final model does without.) All
tokens get the embedding of their segment, the cells a sine embedding of their place. Cells are not
normalised, there is no padding, and the model is not symmetric in (query, gallery).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.options import check_whole
from rrt_core.transformer.model import CONFIGURATION, Encoder, TokenScorer, check_shape
from schemas.errors import UserError

# Rows of the segment embedding.
SEGMENT_CLS, SEGMENT_SEP, SEGMENT_Q, SEGMENT_G = range(4)

# RRT_SOP/models/matcher.py and position_encoding.py, which takes it from DETR.
POSITION_SCALE = 2.0
_POSITION_TEMPERATURE = 10000.0
_POSITION_EPSILON = 1e-6


@dataclass(frozen=True)
class ProductsConfig:
    """Shape of a products model.

    map_channels: of the backbone's map (2048 for ResNet-50).
    global_dim: of the global descriptor.
    backbone: the name that backbone.create_backbone takes, "" where a file names none.
    """

    map_channels: int = 2048
    global_dim: int = 128
    d_model: int = 128
    heads: int = 4
    feedforward: int = 1024
    layers: int = 6
    backbone: str = ""

    def __post_init__(self) -> None:
        check_whole(f"{CONFIGURATION} map_channels", self.map_channels, 1)
        check_whole(f"{CONFIGURATION} global_dim", self.global_dim, 1)
        check_shape(self)
        if self.d_model % 4:
            raise UserError(
                f"Reranker configuration: d_model {self.d_model} must be a multiple of 4, for "
                "sines and cosines of two coordinates."
            )


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Embedding of the places of a map, float32 [rows * columns, width], row by row.

    The first half of `width` encodes the row, the second the column: sines and cosines in turn of
    2 * (i + 1) / side divided by powers of 10,000. width: a multiple of 4.
    Source: PositionEmbeddingSine(width / 2, normalize=True, scale=2.0) of the paper's repository.
    """
    half = width // 2
    exponent = 2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half
    divisor = _POSITION_TEMPERATURE**exponent

    def along(side: int) -> Tensor:
        place = torch.arange(1, side + 1, dtype=torch.float32)
        angle = (place / (side + _POSITION_EPSILON) * POSITION_SCALE)[:, None] / divisor
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    row = along(rows)[:, None].expand(rows, columns, half)
    column = along(columns)[None].expand(rows, columns, half)
    return torch.cat([row, column], dim=2).reshape(rows * columns, width)


class MapMatcher(TokenScorer):
    """Scores pairs of local maps: the repository's MatchERT for products."""

    def __init__(self, config: ProductsConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.seg_encoder = nn.Embedding(4, config.d_model)
        self.classifier = nn.Linear(config.d_model, 1)
        self.initialise()

    def embed(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Tokens of each pair, before the encoder.

        Args: query, gallery: float [B, d_model, h, w]; the two may have other sides.
        Returns: float [B, 2 + cells of q + cells of g, d_model].
        """
        batch = len(query)
        segment = self.seg_encoder.weight

        def cells(local: Tensor, row: int) -> Tensor:
            width, height, breadth = local.shape[1:]
            place = sine_positions(height, breadth, width).to(local)
            return local.flatten(2).transpose(1, 2) + place + segment[row]

        return torch.cat(
            [
                segment[SEGMENT_CLS].expand(batch, 1, -1),
                cells(query, SEGMENT_Q),
                segment[SEGMENT_SEP].expand(batch, 1, -1),
                cells(gallery, SEGMENT_G),
            ],
            dim=1,
        )

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Args as in `embed`.

        Returns float [B], logits (raw, unbounded; positive = the same product).
        """
        return self.classify(self.embed(query, gallery))


class ProductsTransformer(nn.Module):
    """What stands behind a backbone: descriptors of a map, logits of pairs of images."""

    def __init__(self, config: ProductsConfig) -> None:
        super().__init__()
        self.config = config
        self.remap = nn.Linear(config.map_channels, config.global_dim)
        self.remap_local = nn.Conv2d(config.map_channels, config.d_model, kernel_size=1)
        nn.init.zeros_(self.remap.bias)
        if self.remap_local.bias is not None:
            nn.init.zeros_(self.remap_local.bias)
        self.matcher = MapMatcher(config)

    def describe_global(self, maps: Tensor) -> Tensor:
        """float [B, map_channels, h, w] -> float [B, global_dim], L2 = 1."""
        return F.normalize(self.remap(maps.mean((2, 3))), dim=-1)

    def describe_local(self, maps: Tensor) -> Tensor:
        """Maps float [B, map_channels, h, w] -> float [B, d_model, h, w], not normalised.

        This is what the matcher takes.
        """
        return self.remap_local(maps)

    def forward(self, query_maps: Tensor, gallery_maps: Tensor) -> Tensor:
        """float [B, map_channels, h, w] of either side -> float [B], logits."""
        return self.matcher(self.describe_local(query_maps), self.describe_local(gallery_maps))
