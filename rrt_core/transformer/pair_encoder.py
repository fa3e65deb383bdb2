"""PairEncoder: the logit of one pair on a CPU core, with nothing computed twice and nothing padded.

The plain model's arithmetic (transformer.py), arranged otherwise:

* Side. Embedding, first projections and the attention of an image's tokens among themselves in the
  first layer depend on the image and the side it stands on only: they are done once an image and
  used for all of its pairs. The first layer's attention to the other image is merged with it by the
  two log-sum-exps.
* Rows. All that follows attention goes row by row, so it is done in blocks that stay in cache, with
  bias, ReLU and residual fused into the matrix products (fused_operators.py).
* The last layer is computed for CLS alone. With one row of queries, W_k is multiplied to the query
  and W_v to the weighted mean of the tokens, so keys and values are never made.

A pair's logit depends on the pair and the number of torch threads only: the blocks are cut by its
own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrt_core.transformer.fused_operators import FusedLinear, attend
from rrt_core.transformer.model import (
    SEGMENT_CLS,
    SEGMENT_GLOBAL_G,
    SEGMENT_GLOBAL_Q,
    SEGMENT_LOCAL_G,
    SEGMENT_LOCAL_Q,
    SEGMENT_SEP,
    EncoderLayer,
    RerankingTransformer,
)

# Rows of a block: its hidden layer of 1,024 float32 is 1.5 MB, and the matrix products are no
# slower than on more.
BLOCK_ROWS = 384

# oneDNN makes a kernel for each number of rows (about a millisecond) and keeps 1,024 of them: rows
# of zeros fill up to a multiple of this, and nothing attends to them.
ROW_STEP = 8


@dataclass(frozen=True)
class Side:
    """What of a pair depends on one image and its side only; n = 2 + its locals.

    tokens: float32 [n, d_model], CLS or SEP, global, locals, as RerankingTransformer.embed makes
        them.
    query, key, value: [1, heads, n, d_model / heads] of the first layer, in the encoder's
        precision.
    mixed: the same shape, attention of these tokens among themselves.
    log_sum: float32 [1, heads, n], its log-sum-exp.

    All but tokens are None where the model has one layer.
    """

    tokens: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mixed: Tensor | None = None
    log_sum: Tensor | None = None


class FusedLayer:
    """An encoder layer's prepared weights."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        attention = layer.self_attn

        def fused(weight: Tensor, bias: Tensor) -> FusedLinear:
            return FusedLinear(weight, bias, dtype, BLOCK_ROWS)

        self.project = fused(attention.in_proj_weight, attention.in_proj_bias)
        self.out = fused(attention.out_proj.weight, attention.out_proj.bias)
        self.linear1 = fused(layer.linear1.weight, layer.linear1.bias)
        self.linear2 = fused(layer.linear2.weight, layer.linear2.bias)
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def after_attention(self, mixed: Tensor, tokens: Tensor) -> Tensor:
        """All of the layer that goes row by row: [T, d] of attention -> float32 [T, d].

        tokens: float32 [T, d].
        """
        rows = _filled(-(-len(tokens) // -(-len(tokens) // BLOCK_ROWS)))
        done = []
        for start in range(0, len(tokens), rows):
            some, kept = mixed[start : start + rows], tokens[start : start + rows]
            kept = self.norm1(self.out.add(some, kept))
            done.append(self.norm2(self.linear2.add(self.linear1.relu(kept), kept)))
        return torch.cat(done) if len(done) > 1 else done[0]


class ClsLayer:
    """The last layer for the CLS row alone, and the classifier.

    float32 in any precision, since it is so little.
    """

    def __init__(self, layer: EncoderLayer, classifier: nn.Linear) -> None:
        attention = layer.self_attn
        width, heads = attention.in_proj_weight.shape[1], attention.heads
        size = width // heads
        w_query, w_key, w_value = attention.in_proj_weight.detach().chunk(3)
        b_query, _, b_value = attention.in_proj_bias.detach().chunk(3)
        # The bias of the keys adds the same to every score of a head, which softmax takes away
        # again.
        self.w_query, self.b_query = w_query * size**-0.5, b_query * size**-0.5
        self.w_key, self.w_value = w_key.view(heads, size, width), w_value.view(heads, size, width)
        self.b_value = b_value
        self.layer, self.classifier, self.heads = layer, classifier, heads

    def logits(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """float32 [B, T, d], bool [B, T] (False at padding; None: no padding) -> float32 [B]."""
        batch = len(tokens)
        first = tokens[:, 0]
        query = F.linear(first, self.w_query, self.b_query).view(batch, self.heads, -1)
        projected = torch.einsum("bhe,hed->bhd", query, self.w_key)
        scores = projected @ tokens.transpose(1, 2)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], float("-inf"))
        mean = scores.softmax(-1) @ tokens
        mixed = torch.einsum("bhd,hed->bhe", mean, self.w_value).reshape(batch, -1) + self.b_value
        kept = self.layer.norm1(first + self.layer.self_attn.out_proj(mixed))
        kept = self.layer.norm2(kept + self.layer.linear2(F.relu(self.layer.linear1(kept))))
        return self.classifier(kept)[:, 0]


class PairEncoder:
    """Logits of single pairs by one model on the CPU.

    Weights are taken when it is made. Safe to use from several threads at once. Call under
    torch.inference_mode.
    """

    def __init__(self, model: RerankingTransformer, dtype: torch.dtype = torch.float32) -> None:
        """Prepare the weights.

        dtype: of the matrix products and attention of all layers but the last; norms, sums and
        softmax are float32.
        """
        self.model, self.heads = model, model.config.heads
        *body, last = model.layers
        self.body = [FusedLayer(layer, dtype) for layer in body]
        self.last = ClsLayer(last, model.classifier)
        segment, scale = model.seg_encoder.weight.detach(), model.scale_encoder.weight.detach()
        # By side (query, gallery): the token that opens it, the segment of its global, scale +
        # segment of its locals.
        self.opening = (segment[SEGMENT_CLS, None], segment[SEGMENT_SEP, None])
        self.of_global = (segment[SEGMENT_GLOBAL_Q], segment[SEGMENT_GLOBAL_G])
        self.of_local = (scale + segment[SEGMENT_LOCAL_Q], scale + segment[SEGMENT_LOCAL_G])

    def side(
        self,
        global_descriptor: np.ndarray,
        local: np.ndarray,
        scale_rows: np.ndarray,
        gallery: bool,
    ) -> Side:
        """Arrays as in scorer.TokenSet."""
        head = F.normalize(self.model.remap(torch.from_numpy(global_descriptor)[None]), dim=-1)
        body = F.normalize(torch.from_numpy(local).view(-1, head.shape[-1]), dim=-1)
        body += F.embedding(torch.from_numpy(scale_rows), self.of_local[gallery])
        tokens = torch.cat([self.opening[gallery], head + self.of_global[gallery], body])
        if not self.body:
            return Side(tokens)
        query, key, value = self._project(self.body[0], _fill(tokens), len(tokens))
        mixed, log_sum = attend(query, key, value)
        return Side(tokens, query, key, value, mixed, log_sum)

    def logit(self, query: Side, gallery: Side) -> float:
        """The pair's logit."""
        tokens = _fill(torch.cat([query.tokens, gallery.tokens]))
        count = len(query.tokens) + len(gallery.tokens)
        for number, layer in enumerate(self.body):
            if number:
                mixed = F.scaled_dot_product_attention(
                    *self._project(layer, tokens, count)
                ).transpose(1, 2)
            else:
                mixed = torch.cat(
                    [_attend_across(query, gallery), _attend_across(gallery, query)], dim=1
                )
            tokens = layer.after_attention(_fill(mixed.reshape(count, -1)), tokens)
        return float(self.last.logits(tokens[None, :count])[0])

    def _project(
        self, layer: FusedLayer, tokens: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [1, heads, count, d / heads] each, of the first of [T, d]."""
        width = tokens.shape[-1]
        parts = (
            layer.project.plain(tokens)[:count]
            .view(1, count, 3, self.heads, width // self.heads)
            .unbind(2)
        )
        query, key, value = (part.transpose(1, 2) for part in parts)
        return query, key, value


def _filled(rows: int) -> int:
    return -(-rows // ROW_STEP) * ROW_STEP


def _fill(x: Tensor) -> Tensor:
    """[T, d] with rows of zeros behind, up to a multiple of ROW_STEP."""
    missing = _filled(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _attend_across(own: Side, other: Side) -> Tensor:
    """First layer: [1, n, heads, d / heads], the tokens of `own` attending to both images."""
    assert own.query is not None and other.key is not None and other.value is not None
    assert own.mixed is not None and own.log_sum is not None
    across, log_sum = attend(own.query, other.key, other.value)
    # softmax over both = the two softmaxes weighted by their shares of the sum of exponentials
    share = torch.sigmoid(log_sum - own.log_sum)[..., None].to(across.dtype)
    return torch.lerp(own.mixed, across, share).transpose(1, 2)
