"""BatchEncoder: the logits of many pairs at once, for a GPU.

Tokens of all pairs lie one after another without padding, [total, d_model]: projections, norms and
feed-forward never see padding. Only attention is given a padded view, of pairs that are nearly of
one length, and not even that where they are of one length. An image that stands in several pairs of
a batch is copied, embedded and projected once a side. Source of the arithmetic: transformer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
from rrt_core.transformer.pair_encoder import ClsLayer

# A GPU's fused attention wants the length of its mask a multiple of this.
LENGTH_STEP = 8

# global descriptor, locals, scale rows: as scorer.TokenSet
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """The tensors of a batch; I distinct (image, side)s of N locals, B pairs of P tokens in all.

    global_descriptors: float32 [I, global_dim].
    local: float32 [N, d_model].
    scale_rows: int64 [N], + 7 for locals of gallery images.
    gallery: int64 [I], 1 for gallery images.
    to_tokens: int64 [I + I + N], where the openings, globals and locals go among the images'
        tokens.
    rows: int64 [P], which of the images' tokens each token of the pairs is.
    padded: int64 [B, L], which of the P tokens stands in each place; 0 at padding.
    visible: bool [B, L].
    unpadded: int64 [P], where in B * L each token stands.

    The last three are None where all pairs are of one length.
    """

    pairs: int
    global_descriptors: Tensor
    local: Tensor
    scale_rows: Tensor
    gallery: Tensor
    to_tokens: Tensor
    rows: Tensor
    padded: Tensor | None
    visible: Tensor | None
    unpadded: Tensor | None


def assemble(pairs: Sequence[tuple[Arrays, Arrays]], d_model: int, pin: bool) -> Batch:
    """The tensors of some pairs on the CPU, in pinned memory if `pin`.

    An image is known by its tuple: the same object is the same image.
    """
    numbers: dict[tuple[int, int], int] = {}
    images: list[Arrays] = []
    members = np.empty((len(pairs), 2), np.int64)

    for i, pair in enumerate(pairs):
        for side in (0, 1):
            key = (id(pair[side]), side)
            if key not in numbers:
                numbers[key] = len(images)
                images.append(pair[side])
            members[i, side] = numbers[key]

    gallery = np.array([side for _, side in numbers], np.int64)
    counts = np.array([len(local) for _, local, _ in images], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts + 2)])
    body = [
        np.arange(start + 2, start + 2 + count)
        for start, count in zip(starts[:-1], counts, strict=True)
    ]
    rows = [np.arange(starts[i], starts[i + 1]) for i in members.reshape(-1)]
    lengths = (counts[members] + 2).sum(axis=1)
    padded = visible = unpadded = None

    if len(set(lengths.tolist())) > 1:
        longest = -(-int(lengths.max()) // LENGTH_STEP) * LENGTH_STEP
        visible = np.arange(longest)[None] < lengths[:, None]
        unpadded = np.flatnonzero(visible)
        padded = np.zeros(visible.shape, np.int64)
        padded[visible] = np.arange(len(unpadded))

    def tensor(array: np.ndarray) -> Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.pin_memory() if pin else made

    return Batch(
        len(pairs),
        tensor(np.stack([descriptor for descriptor, _, _ in images])),
        tensor(np.concatenate([local.reshape(-1, d_model) for _, local, _ in images])),
        tensor(
            np.concatenate(
                [image[2] + 7 * side for image, side in zip(images, gallery, strict=True)]
            )
        ),
        tensor(gallery),
        tensor(np.concatenate([starts[:-1], starts[:-1] + 1, *body])),
        tensor(np.concatenate(rows)),
        *(None if array is None else tensor(array) for array in (padded, visible, unpadded)),
    )


class BatchEncoder:
    """Logits of batches by one model, which is on the device already.

    Call under torch.inference_mode.
    """

    def __init__(self, model: RerankingTransformer, dtype: torch.dtype = torch.float32) -> None:
        """dtype: as PairEncoder."""
        self.model, self.dtype = model, dtype
        self.device = model.classifier.weight.device
        *self.body, last = model.layers
        self.last = ClsLayer(last, model.classifier)
        segment, scale = model.seg_encoder.weight.detach(), model.scale_encoder.weight.detach()
        self.opening = segment[[SEGMENT_CLS, SEGMENT_SEP]]
        self.of_global = segment[[SEGMENT_GLOBAL_Q, SEGMENT_GLOBAL_G]]
        self.of_local = torch.cat(
            [scale + segment[SEGMENT_LOCAL_Q], scale + segment[SEGMENT_LOCAL_G]]
        )
        self.weights: dict[Tensor, Tensor] = {
            parameter: parameter.detach().to(dtype)
            for layer in self.body
            for parameter in layer.parameters()
        }
        self._copies: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device; on CUDA copied beside the kernels that are under way."""
        if self._copies is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        with torch.cuda.stream(self._copies):
            moved: dict[str, Any] = {
                name: value.to(self.device, non_blocking=True) for name, value in tensors.items()
            }
        current.wait_stream(self._copies)
        for value in moved.values():
            # or the copying stream's memory would be given out again too early
            value.record_stream(current)
        return dataclasses.replace(batch, **moved)

    def logits(self, batch: Batch) -> Tensor:
        """float32 [B] on the device, of a batch on the device."""
        images = self._embed(batch)
        tokens = images[batch.rows]
        for number, layer in enumerate(self.body):
            attention = layer.self_attn
            # The first layer's projections are those of the images.
            projected = self._linear(
                tokens if number else images, attention.in_proj_weight, attention.in_proj_bias
            )
            mixed = self._attend(projected if number else projected[batch.rows], batch)
            tokens = self._after_attention(layer, mixed, tokens)
        if batch.padded is None:
            return self.last.logits(tokens.view(batch.pairs, -1, tokens.shape[-1]))
        return self.last.logits(tokens[batch.padded], batch.visible)

    def _embed(self, batch: Batch) -> Tensor:
        head = (
            F.normalize(self.model.remap(batch.global_descriptors), dim=-1)
            + self.of_global[batch.gallery]
        )
        body = F.normalize(batch.local, dim=-1) + self.of_local[batch.scale_rows]
        parts = torch.cat([self.opening[batch.gallery], head, body])
        return torch.empty_like(parts).index_copy_(0, batch.to_tokens, parts)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weights[weight], self.weights[bias])

    def _attend(self, projected: Tensor, batch: Batch) -> Tensor:
        """[P, 3 d] -> [P, d]."""
        width, heads = projected.shape[-1] // 3, self.model.config.heads
        if batch.padded is not None:
            projected = projected[batch.padded]
        parts = projected.view(batch.pairs, -1, 3, heads, width // heads).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        visible = None
        if batch.visible is not None:
            # A whole mask, not one row of it: fused kernels differ in what they spread out
            # themselves.
            visible = batch.visible[:, None, None].expand(-1, heads, query.shape[2], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        mixed = mixed.transpose(1, 2).reshape(-1, width)
        return mixed if batch.unpadded is None else mixed[batch.unpadded]

    def _after_attention(self, layer: EncoderLayer, mixed: Tensor, tokens: Tensor) -> Tensor:
        out, first, second = layer.self_attn.out_proj, layer.linear1, layer.linear2
        kept: Tensor = layer.norm1(tokens + self._linear(mixed, out.weight, out.bias))
        hidden = self._linear(kept, first.weight, first.bias).relu_()
        return layer.norm2(kept + self._linear(hidden, second.weight, second.bias))
