"""PairScorer: the plain model's logits, whatever the company of a pair."""

import numpy as np
import pytest
import torch

from rrt_core.scorer import PairScorer, TokenSet
from rrt_core.transformer import ModelConfig, RerankingTransformer
from schemas.errors import UserError

CONFIG = ModelConfig(global_dim=40, layers=3, scale_binning="fixed")


@pytest.fixture(scope="module")
def model() -> RerankingTransformer:
    torch.manual_seed(1)
    return RerankingTransformer(CONFIG).eval()


def random_image(rng: np.random.Generator, tokens: int) -> TokenSet:
    return TokenSet(
        rng.standard_normal(CONFIG.global_dim, dtype=np.float32),
        rng.standard_normal((tokens, 128), dtype=np.float32),
        rng.integers(0, 7, tokens),
    )


def plain_logit(model: RerankingTransformer, query: TokenSet, gallery: TokenSet) -> float:
    def side(image: TokenSet) -> tuple[torch.Tensor, ...]:
        count = len(image.local)
        local = torch.zeros(1, 60, 128)
        local[0, :count] = torch.from_numpy(image.local)
        scales = torch.zeros(1, 60, dtype=torch.long)
        scales[0, :count] = torch.from_numpy(image.scale_rows)
        return torch.from_numpy(image.global_descriptor)[None], local, (torch.arange(60) >= count)[None], scales

    with torch.no_grad():
        return float(model(*side(query), *side(gallery)))


def random_pairs(seed: int, count: int) -> list[tuple[TokenSet, TokenSet]]:
    rng = np.random.default_rng(seed)
    sizes = [(60, 60), (1, 1), (0, 0), (0, 33), (33, 0), (1, 60)]
    sizes += [tuple(rng.integers(0, 61, 2)) for _ in range(count - len(sizes))]
    return [(random_image(rng, n), random_image(rng, m)) for n, m in sizes]


@pytest.mark.parametrize("batch_tokens", [None, 300, 100_000])
def test_equals_plain_model(model: RerankingTransformer, batch_tokens: int | None) -> None:
    pairs = random_pairs(2, 12) * 2
    found = PairScorer(model, batch_tokens=batch_tokens).score(pairs)
    expected = np.asarray([plain_logit(model, *pair) for pair in pairs])
    assert found.dtype == np.float32 and found.shape == (24,)
    assert np.abs(found - expected).max() <= 1e-5
    assert expected.std() > 0.01


def test_same_bits_in_any_company(model: RerankingTransformer) -> None:
    scorer = PairScorer(model)
    pairs = random_pairs(3, 10)
    together = scorer.score(pairs)
    alone = np.concatenate([scorer.score([pair]) for pair in pairs])
    backwards = scorer.score(pairs[::-1] + pairs)[:10][::-1]
    assert together.tobytes() == alone.tobytes() == backwards.tobytes()


def test_batches_hold_equal_counts_within_the_bound(model: RerankingTransformer) -> None:
    scorer = PairScorer(model, batch_tokens=200)
    rng = np.random.default_rng(4)
    pairs = [(random_image(rng, int(rng.integers(1, 4)) * 20), random_image(rng, 20)) for _ in range(40)]
    batches = list(scorer._batches(pairs))
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    for batch in batches:
        counts = {(len(pairs[i][0].local), len(pairs[i][1].local)) for i in batch}
        assert len(counts) == 1
        assert len(batch) * (4 + sum(counts.pop())) <= 200


def test_no_pairs(model: RerankingTransformer) -> None:
    assert PairScorer(model).score([]).shape == (0,)


def test_width_mismatch_names_both(model: RerankingTransformer) -> None:
    rng = np.random.default_rng(5)
    good = random_image(rng, 3)
    wide = TokenSet(np.zeros(64, np.float32), good.local, good.scale_rows)
    with pytest.raises(UserError, match="40 dimensions.*64"):
        PairScorer(model).score([(good, wide)])
    narrow = TokenSet(good.global_descriptor, np.zeros((3, 32), np.float32), good.scale_rows)
    with pytest.raises(UserError, match="128 dimensions.*32"):
        PairScorer(model).score([(narrow, good)])


def test_batch_tokens_must_be_positive(model: RerankingTransformer) -> None:
    with pytest.raises(UserError, match="batch_tokens"):
        PairScorer(model, batch_tokens=0)
