"""PairScorer: the logits of many pairs by the plain model's arithmetic, faster and in bounded memory.

What it saves against RerankingTransformer.forward on padded pairs: tokens that are only padding, the
last layer for all tokens but CLS, and the [tokens, tokens] attention matrix. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rrt_core.transformer import RerankingTransformer
from schemas.errors import UserError


@dataclass(frozen=True)
class TokenSet:
    """One image as the model takes it.

    global_descriptor: float32 [global_dim]. local: float32 [n, d_model], n >= 0.
    scale_rows: int64 [n], rows of the scale embedding, 0..6 (transformer.bin_scales).
    """

    global_descriptor: np.ndarray
    local: np.ndarray
    scale_rows: np.ndarray


class PairScorer:
    """Scores (query, gallery) pairs with one model on one device.

    Pairs are sorted by token counts and only pairs of equal counts share a batch, so no pair is ever
    padded. On the CPU a batch is one pair: sums inside a matrix product may run in another order when
    the batch has another size, and one pair fills the vector units already. A pair's logit then has
    the same bits whatever company it is scored in (at one thread setting); in batches it may
    differ by rounding (below 1e-5).
    """

    def __init__(self, model: RerankingTransformer, device: str = "cpu", batch_tokens: int | None = None) -> None:
        """batch_tokens: most tokens in a batch, which bounds the memory (about 20 kB a token in float32); at least
        one pair is taken. None: one pair on the CPU, 65,536 tokens elsewhere."""
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        if batch_tokens is None:
            batch_tokens = 1 if self.device.type == "cpu" else 65_536
        if batch_tokens < 1:
            raise UserError(f"batch_tokens must be at least 1, not {batch_tokens}.")
        self.batch_tokens = batch_tokens

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[TokenSet, TokenSet]]) -> np.ndarray:
        """Logits, float32 [len(pairs)], in the order of `pairs`.

        Raises:
            UserError: descriptors of another width than the model's.
        """
        for query, gallery in pairs:
            self._check(query)
            self._check(gallery)
        logits = np.empty(len(pairs), np.float32)
        for batch in self._batches(pairs):
            tokens = self._embed([pairs[i] for i in batch])
            logits[batch] = self.model.classify(tokens).cpu().numpy()
        return logits

    def _check(self, image: TokenSet) -> None:
        config = self.model.config
        if image.global_descriptor.shape[-1] != config.global_dim:
            raise UserError(
                f"The reranker's weights are made for global descriptors of {config.global_dim} dimensions,"
                f" but the store's have {image.global_descriptor.shape[-1]}: use weights that were trained on this"
                " extractor's descriptors."
            )
        if len(image.local) and image.local.shape[-1] != config.d_model:
            raise UserError(
                f"The reranker's weights are made for local descriptors of {config.d_model} dimensions,"
                f" but the store's have {image.local.shape[-1]}: use weights that were trained on this"
                " extractor's descriptors."
            )

    def _batches(self, pairs: Sequence[tuple[TokenSet, TokenSet]]) -> Iterator[list[int]]:
        """Positions of pairs in batches of equal token counts."""
        counts = [(len(query.local), len(gallery.local)) for query, gallery in pairs]
        batch: list[int] = []
        for i in sorted(range(len(pairs)), key=counts.__getitem__):
            full = (len(batch) + 1) * (4 + sum(counts[i])) > self.batch_tokens
            if batch and (full or counts[batch[0]] != counts[i]):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _embed(self, pairs: Sequence[tuple[TokenSet, TokenSet]]) -> Tensor:
        def stack(side: int) -> tuple[Tensor, Tensor, Tensor]:
            images = [pair[side] for pair in pairs]
            width = self.model.config.d_model
            return (
                torch.from_numpy(np.stack([image.global_descriptor for image in images])).to(self.device),
                torch.from_numpy(np.stack([image.local.reshape(-1, width) for image in images])).to(self.device),
                torch.from_numpy(np.stack([image.scale_rows for image in images])).to(self.device),
            )

        return self.model.embed(*stack(0), *stack(1))
