"""The Reranking Transformer as a reranker: weights, token budgets, scale table and PairScorer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from rrt_core.checkpoints import load_checkpoint
from rrt_core.options import check_whole
from rrt_core.rerankers import Locals, Reranker
from rrt_core.transformer.model import bin_scales
from rrt_core.transformer.scorer import PairScorer, TokenSet

# Trained by benchmarks/making/train_weights.py for the embedded extractor `efficientnet`; what made
# them is in the JSON beside them.
EMBEDDED_WEIGHTS = str(files("rrt_core") / "weights" / "rrt_efficientnet.safetensors")


class RRTReranker(Reranker):
    """Logits of RerankingTransformer (source: transformer.py).

    device: what the pairs are scored on, in words.
    """

    name = "rrt"
    revision = 2

    def __init__(
        self,
        weights: str | None = None,
        query_tokens: int = 500,
        gallery_tokens: int = 500,
        scale_binning: str | None = None,
        precision: str = "float32",
        device: str = "auto",
    ) -> None:
        """Load the weights and prepare the scorer.

        Args:
            weights: file or URL, ours or a `.pt` of the paper's repository; None: the embedded
                ones.
            query_tokens, gallery_tokens: strongest locals used of each image (the paper: 500 and
                500).
            scale_binning: a key of transformer.model.SCALE_TABLES; None: what the weights name.
            precision: float32 (exact), bfloat16, or float16 on a GPU; see PairScorer.
            device: auto (a GPU where there is one), cpu, cuda or cuda:N. On a GPU pairs are scored
                in batches, and a logit differs by rounding with the company of its pair.

        Raises:
            UserError: weights that cannot be read (see load_checkpoint), another precision or
                device.
        """
        check_whole("Reranker option query_tokens", query_tokens, 1)
        check_whole("Reranker option gallery_tokens", gallery_tokens, 1)
        self.query_tokens, self.gallery_tokens = query_tokens, gallery_tokens
        checkpoint = load_checkpoint(weights or EMBEDDED_WEIGHTS, scale_binning)
        self.weights_sha256 = checkpoint.sha256
        self.notes = checkpoint.notes
        self.config = {
            "query_tokens": query_tokens,
            "gallery_tokens": gallery_tokens,
            "precision": precision,
            "model": dataclasses.asdict(checkpoint.model.config),
        }
        self._binning = checkpoint.model.config.scale_binning
        self._scorer = PairScorer(checkpoint.model, device, precision=precision)
        self.device = str(self._scorer)

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """As Reranker.score."""
        # An image stands in many pairs (a query in 100): prepare it once for each side.
        prepared: dict[tuple[int, int], TokenSet] = {}

        def prepare(image: Locals, budget: int) -> TokenSet:
            key = (id(image), budget)
            if key not in prepared:
                prepared[key] = self._tokens(image.first(budget))
            return prepared[key]

        return self._scorer.score(
            [
                (prepare(query, self.query_tokens), prepare(gallery, self.gallery_tokens))
                for query, gallery in pairs
            ]
        )

    def _tokens(self, image: Locals) -> TokenSet:
        rows = bin_scales(image.scales, self._binning)
        return TokenSet(
            np.ascontiguousarray(image.global_descriptor, np.float32),
            np.ascontiguousarray(image.descriptors, np.float32),
            rows[image.scale.astype(np.int64)],
        )
