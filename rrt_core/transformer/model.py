"""The Reranking Transformer for landmarks: the pairwise model and its scale table.

Source: Tan, Yuan, Ordonez, "Instance-level Image Retrieval using Reranking Transformers" (ICCV
2021), the landmark variant (uvavision/RerankingTransformer, RRT_GLD/models/matcher.py). Parameter
names and shapes are those of the paper's repository, so that its published checkpoints load
unchanged.

One pair of images is one sequence of tokens of width `d_model`, at most 1 + 1 + 500 + 1 + 1 + 500:

    [CLS | global q | local q ... | SEP | global g | local g ...]

CLS and SEP are nothing but their segment embedding; a global is mapped to `d_model` and then L2
normalised; a local is L2 normalised and gets the embedding of its scale; all get the embedding of
their segment. There is no position embedding, and the model is not symmetric in (query, gallery).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.options import check_choice, check_whole
from schemas.errors import UserError

CONFIGURATION = "Reranker configuration:"

# Image scales of DELG (its published configurations), smallest image first.
DELG_SCALES = (0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0)

# Row of the scale embedding for each of DELG_SCALES. The paper's repository looks up the feature
# scale (1 / image scale) with a rounding slip that merges seven scales into four; its released
# weights were trained so and need `rrt_legacy`. `fixed` is what was meant.
SCALE_TABLES: dict[str, tuple[int, ...]] = {
    "rrt_legacy": (6, 4, 4, 2, 2, 0, 0),
    "fixed": (6, 5, 4, 3, 2, 1, 0),
}

# Rows of the segment embedding.
SEGMENT_LOCAL_Q, SEGMENT_LOCAL_G, SEGMENT_CLS, SEGMENT_SEP, SEGMENT_GLOBAL_Q, SEGMENT_GLOBAL_G = (
    range(6)
)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model and its scale table: all that is needed beside the weights.

    Locals enter without a projection, so their dimension is `d_model`.
    """

    global_dim: int = 2048
    d_model: int = 128
    heads: int = 4
    feedforward: int = 1024
    layers: int = 6
    scale_binning: str = "rrt_legacy"

    def __post_init__(self) -> None:
        check_whole(f"{CONFIGURATION} global_dim", self.global_dim, 1)
        check_shape(self)
        check_choice(f"{CONFIGURATION} scale_binning", self.scale_binning, SCALE_TABLES)


def bin_scales(scales: Sequence[float], binning: str) -> np.ndarray:
    """Rows of the scale embedding for a store's list of image scales.

    Args:
        scales: image scale of each ordinal, > 0 (1.0 = the image as the extractor takes it in).
        binning: a key of SCALE_TABLES.
    Returns:
        int64 [len(scales)], each 0..6: the table's entry for the DELG scale nearest in the
        logarithm (of two equally near ones, the smaller).
    Raises:
        UserError: unknown table, or a scale that is not a positive finite number.
    """
    check_choice("scale_binning", binning, SCALE_TABLES)
    for scale in scales:
        if not (math.isfinite(scale) and scale > 0):
            raise UserError(
                f"Image scale {scale!r} in the list {tuple(scales)} is not a positive number."
            )
    distance = np.abs(
        np.log(np.asarray(scales, np.float64))[:, None] - np.log(np.asarray(DELG_SCALES))[None]
    )
    return np.asarray(SCALE_TABLES[binning], np.int64)[distance.argmin(axis=1)]


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of [B, heads, T, d] tensors; `visible` as in SelfAttention.forward.

    The fused kernel, except in bfloat16 training on a CPU: there its backward pass takes 2 to 4
    times as long as that of the plain formula (132 to 604 tokens).
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    likeness = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if visible is not None:
        likeness = likeness.masked_fill(~visible, float("-inf"))
    return likeness.softmax(dim=-1, dtype=torch.bfloat16) @ value


class SelfAttention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Parameter names are those of torch.nn.MultiheadAttention; the arithmetic is
    scaled_dot_product_attention, which never holds the [tokens, tokens] matrix.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, visible: Tensor | None, first_only: bool = False) -> Tensor:
        """[B, T, d] -> [B, T, d], or [B, 1, d] (the first token's output) if `first_only`.

        visible: bool [B, 1, 1, T], False at padding; None where there is none.
        """
        batch, _, width = tokens.shape
        if first_only:
            weight, bias = self.in_proj_weight, self.in_proj_bias
            query = F.linear(tokens[:, :1], weight[:width], bias[:width])
            key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = F.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(
                3, dim=-1
            )

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        mixed = _attend(split(query), split(key), split(value), visible)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, -1, width))


class EncoderShape(Protocol):
    """What a configuration gives the encoder, whichever variant it is of."""

    @property
    def d_model(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def feedforward(self) -> int: ...
    @property
    def layers(self) -> int: ...


def check_shape(shape: EncoderShape) -> None:
    """Raise UserError unless the numbers are whole, at least 1, and the heads divide d_model."""
    for name in ("d_model", "heads", "feedforward", "layers"):
        check_whole(f"{CONFIGURATION} {name}", getattr(shape, name), 1)
    if shape.d_model % shape.heads:
        raise UserError(
            f"Reranker configuration: d_model {shape.d_model} cannot be shared out among "
            f"{shape.heads} heads."
        )


class EncoderLayer(nn.Module):
    """Post-norm encoder layer with ReLU and without dropout (the paper trains with dropout 0)."""

    def __init__(self, config: EncoderShape) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.d_model, config.heads)
        self.linear1 = nn.Linear(config.d_model, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor, visible: Tensor | None, first_only: bool = False) -> Tensor:
        """Shapes as in SelfAttention.forward."""
        kept = tokens[:, :1] if first_only else tokens
        kept = self.norm1(kept + self.self_attn(tokens, visible, first_only))
        return self.norm2(kept + self.linear2(F.relu(self.linear1(kept))))


class Encoder(nn.Module):
    """A stack of layers; holds them under the paper's name `layers`."""

    def __init__(self, config: EncoderShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def first_token(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """[B, T, d] -> [B, d], the first token behind the last layer.

        Of that layer nothing else is computed.
        """
        *body, last = self.layers
        for layer in body:
            tokens = layer(tokens, visible)
        return last(tokens, visible, first_only=True)[:, 0]


class TokenScorer(nn.Module):
    """What both variants are: an encoder, and a classifier of its first token."""

    encoder: Encoder
    classifier: nn.Linear

    @property
    def layers(self) -> list[EncoderLayer]:
        """The encoder's layers, first to last."""
        return [layer for layer in self.encoder.layers if isinstance(layer, EncoderLayer)]

    def initialise(self) -> None:
        """Fill all matrices after Xavier, as the paper's repository does."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def classify(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Logits with less work: of the last layer only the first row, CLS, is computed.

        Args:
            tokens: float [B, T, d_model] from `embed`.
            visible: bool [B, T], False at padding; None if no pair is padded.
        Returns: float [B], raw, unbounded.
        """
        first = self.encoder.first_token(
            tokens, None if visible is None else visible[:, None, None]
        )
        return self.classifier(first)[:, 0]


class RerankingTransformer(TokenScorer):
    """Scores pairs of images from their global and local descriptors (paper, section 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.remap = nn.Linear(config.global_dim, config.d_model)
        self.scale_encoder = nn.Embedding(len(DELG_SCALES), config.d_model)
        self.seg_encoder = nn.Embedding(6, config.d_model)
        self.classifier = nn.Linear(config.d_model, 1)
        self.initialise()

    def embed(
        self,
        query_global: Tensor,
        query_local: Tensor,
        query_scales: Tensor,
        gallery_global: Tensor,
        gallery_local: Tensor,
        gallery_scales: Tensor,
    ) -> Tensor:
        """Tokens of each pair, before the encoder.

        Args:
            query_global, gallery_global: float [B, global_dim].
            query_local [B, n, d_model], gallery_local [B, m, d_model]: float, strongest first;
                n, m >= 0.
            query_scales [B, n], gallery_scales [B, m]: int64 rows of the scale embedding (see
                bin_scales).

        Returns:
            float [B, 4 + n + m, d_model].
        """
        batch = query_local.shape[0]
        segment = self.seg_encoder.weight

        def image(
            descriptor: Tensor, local: Tensor, scales: Tensor, of_global: int, of_local: int
        ) -> list[Tensor]:
            head = F.normalize(self.remap(descriptor), dim=-1) + segment[of_global]
            body = F.normalize(local, dim=-1) + self.scale_encoder(scales) + segment[of_local]
            return [head[:, None], body]

        return torch.cat(
            [
                segment[SEGMENT_CLS].expand(batch, 1, -1),
                *image(query_global, query_local, query_scales, SEGMENT_GLOBAL_Q, SEGMENT_LOCAL_Q),
                segment[SEGMENT_SEP].expand(batch, 1, -1),
                *image(
                    gallery_global, gallery_local, gallery_scales, SEGMENT_GLOBAL_G, SEGMENT_LOCAL_G
                ),
            ],
            dim=1,
        )

    def forward(
        self,
        query_global: Tensor,
        query_local: Tensor,
        query_mask: Tensor,
        query_scales: Tensor,
        gallery_global: Tensor,
        gallery_local: Tensor,
        gallery_mask: Tensor,
        gallery_scales: Tensor,
    ) -> Tensor:
        """The plain model: every layer on every token.

        Args: as in `embed`, and query_mask bool [B, n], gallery_mask bool [B, m]: True at padding.
        Returns: float [B], logits (raw, unbounded; positive = the same instance).
        """
        tokens = self.embed(
            query_global, query_local, query_scales, gallery_global, gallery_local, gallery_scales
        )
        always = query_mask.new_ones(len(tokens), 2)
        visible = torch.cat([always, ~query_mask, always, ~gallery_mask], dim=1)[:, None, None]
        for layer in self.layers:
            tokens = layer(tokens, visible)
        return self.classifier(tokens[:, 0])[:, 0]
