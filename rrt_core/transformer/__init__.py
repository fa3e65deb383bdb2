"""The Reranking Transformer for landmarks: the model, its scorer, its starts."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.transformer.initialisation import initialise_identity, initialise_matching
    from rrt_core.transformer.model import (
        SCALE_TABLES,
        ModelConfig,
        RerankingTransformer,
        bin_scales,
    )
    from rrt_core.transformer.scorer import PairScorer, TokenSet

__all__ = [
    "ModelConfig",
    "PairScorer",
    "RerankingTransformer",
    "SCALE_TABLES",
    "TokenSet",
    "bin_scales",
    "initialise_identity",
    "initialise_matching",
]
__getattr__ = lazily(
    __name__,
    {
        "model": ["ModelConfig", "RerankingTransformer", "SCALE_TABLES", "bin_scales"],
        "scorer": ["PairScorer", "TokenSet"],
        "initialisation": ["initialise_identity", "initialise_matching"],
    },
)
