"""PairScorer: the plain model's logits, whatever the company of a pair."""

import copy
import dataclasses
from threading import Thread

import numpy as np
import pytest
import torch

from rrt_core.devices import choose_device
from rrt_core.transformer import pair_encoder
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.transformer.scorer import PairScorer, TokenSet
from schemas.errors import UserError

CONFIG = ModelConfig(global_dim=40, layers=3, scale_binning="fixed")


def make_model() -> RerankingTransformer:
    torch.manual_seed(1)
    return RerankingTransformer(CONFIG).eval()


@pytest.fixture(scope="module")
def model() -> RerankingTransformer:
    return make_model()


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
        return (
            torch.from_numpy(image.global_descriptor)[None],
            local,
            (torch.arange(60) >= count)[None],
            scales,
        )

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
    result = PairScorer(model, "cpu", batch_tokens).score(pairs)
    expected = np.asarray([plain_logit(model, *pair) for pair in pairs])
    assert result.dtype == np.float32 and result.shape == (24,)
    assert np.abs(result - expected).max() <= 1e-5
    assert expected.std() > 0.01


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_tokens", [None, 1000])
def test_equals_plain_model_of_few_layers(layers: int, batch_tokens: int | None) -> None:
    torch.manual_seed(4)
    model = RerankingTransformer(dataclasses.replace(CONFIG, layers=layers, heads=8)).eval()
    pairs = random_pairs(5, 8)
    result = PairScorer(model, "cpu", batch_tokens).score(pairs)
    assert np.abs(result - [plain_logit(model, *pair) for pair in pairs]).max() <= 1e-5


def test_blocks_of_rows_change_nothing_but_rounding(
    model: RerankingTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_encoder, "BLOCK_ROWS", 7)
    pairs = random_pairs(6, 8)
    result = PairScorer(model, "cpu").score(pairs)
    assert np.abs(result - [plain_logit(model, *pair) for pair in pairs]).max() <= 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_bits_in_any_company(model: RerankingTransformer, precision: str) -> None:
    scorer = PairScorer(model, "cpu", precision=precision, workers=1)
    pairs = random_pairs(3, 10)
    # One query with many images, and one image with many queries: what is kept of an image changes
    # no bit either.
    pairs += [(pairs[0][0], gallery) for _, gallery in pairs] + [
        (query, pairs[1][1]) for query, _ in pairs
    ]
    together = scorer.score(pairs)
    alone = np.concatenate([scorer.score([pair]) for pair in pairs])
    backwards = scorer.score(pairs[::-1] + pairs)[: len(pairs)][::-1]
    assert together.tobytes() == alone.tobytes() == backwards.tobytes()


def test_same_bits_with_any_number_of_workers(model: RerankingTransformer) -> None:
    pairs = random_pairs(3, 14)
    result = [
        PairScorer(model, "cpu", workers=workers).score(pairs).tobytes() for workers in (2, 3, 20)
    ]
    assert len(set(result)) == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert PairScorer(model, "cpu", workers=1).score(pairs).tobytes() == result[0]
        assert PairScorer(model, "cpu").score(pairs).tobytes() == result[0]
    finally:
        torch.set_num_threads(threads)


def test_thread_settings_stay(model: RerankingTransformer) -> None:
    threads = torch.get_num_threads()
    try:
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            PairScorer(model, "cpu", workers=3).score(random_pairs(3, 8))
            seen = [torch.get_num_threads()]
            thread = Thread(target=lambda seen=seen: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert seen == [wanted, wanted]
    finally:
        torch.set_num_threads(threads)


def test_a_mistake_in_a_worker_is_raised(model: RerankingTransformer) -> None:
    pairs = random_pairs(3, 8)
    query, gallery = pairs[0]
    broken = TokenSet(gallery.global_descriptor, gallery.local, np.full(len(gallery.local), 99))
    with pytest.raises(IndexError):
        PairScorer(model, "cpu", workers=2).score([*pairs, (query, broken)])


@pytest.mark.parametrize("batch_tokens", [None, 1000])
def test_bfloat16_is_near(model: RerankingTransformer, batch_tokens: int | None) -> None:
    pairs = random_pairs(7, 20)
    exact = PairScorer(model, "cpu", batch_tokens).score(pairs)
    rounded = PairScorer(model, "cpu", batch_tokens, "bfloat16").score(pairs)
    # Logits of this model are of order 1; a product rounded to 8 bits of mantissa is off by up to
    # 1/256.
    assert 0 < np.abs(rounded - exact).max() <= 0.03


def test_weights_are_taken_when_the_scorer_is_made(model: RerankingTransformer) -> None:
    pairs = random_pairs(8, 8)
    own = copy.deepcopy(model).train()
    scorer = PairScorer(own, "cpu")
    before = scorer.score(pairs)
    with torch.no_grad():
        own.classifier.weight.mul_(2)
    assert scorer.score(pairs).tobytes() == before.tobytes()
    assert own.training and own.classifier.weight.requires_grad


def test_batches_are_within_the_bound(model: RerankingTransformer) -> None:
    scorer = PairScorer(model, "cpu", batch_tokens=300)
    rng = np.random.default_rng(4)
    counts = [tuple(int(n) for n in rng.integers(0, 60, 2)) for _ in range(40)] + [(60, 300)]
    pairs = [(random_image(rng, n), random_image(rng, m)) for n, m in counts]
    batches = list(scorer._batches(pairs))
    assert sorted(i for batch in batches for i in batch) == list(range(41))
    for batch in batches:
        lengths = [4 + sum(counts[i]) for i in batch]
        assert len(batch) == 1 or len(batch) * max(lengths) <= 300
    assert len(batches) < 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize(
    "precision, bound", [("float32", 1e-4), ("bfloat16", 0.03), ("float16", 0.01)]
)
def test_cuda_equals_cpu(model: RerankingTransformer, precision: str, bound: float) -> None:
    pairs = random_pairs(9, 60)
    exact = PairScorer(model, "cpu").score(pairs)
    for batch_tokens in (None, 1000):
        scorer = PairScorer(model, "auto", batch_tokens, precision)
        assert scorer.device.type == "cuda" and "cuda" in str(scorer)
        assert np.abs(scorer.score(pairs) - exact).max() <= bound


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_without_a_gpu(model: RerankingTransformer) -> None:
    assert str(PairScorer(model)) == "cpu, float32"
    with pytest.raises(UserError, match="no such GPU"):
        choose_device("cuda")
    with pytest.raises(UserError, match="float16 needs a GPU"):
        PairScorer(model, precision="float16")


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


@pytest.mark.parametrize(
    "option, value",
    [
        ("batch_tokens", 0),
        ("workers", 0),
        ("precision", "int8"),
        ("device", "tpu"),
        ("device", "cpu:x"),
    ],
)
def test_options_are_checked(model: RerankingTransformer, option: str, value: object) -> None:
    with pytest.raises(UserError, match=option):
        PairScorer(model, **{option: value})
