"""The cascade: between its two rerankers exactly, one list of logits, deterministic, and much less
work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rrt_core.checkpoints import save_checkpoint
from rrt_core.rerankers import Locals, Reranker, create
from rrt_core.rerankers.cascade import CascadeReranker, best, combine
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import UserError


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_locals(rng: np.random.Generator, count: int = 24) -> Locals:
    return Locals(
        unit(rng.standard_normal(24)),
        unit(rng.standard_normal((count, 128)) + 0.5),
        rng.uniform(0, 300, (count, 2)).astype(np.float32),
        np.zeros(count, np.uint8),
        np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1].copy(),
        (1.0,),
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("weights") / "small.safetensors")
    save_checkpoint(
        path, RerankingTransformer(ModelConfig(global_dim=24, layers=2, scale_binning="fixed"))
    )
    return path


@pytest.fixture
def few(weights: str) -> dict[str, object]:
    return {"weights": weights, "query_tokens": 4, "gallery_tokens": 4}


@pytest.fixture
def query_and_candidates() -> tuple[Locals, list[Locals]]:
    rng = np.random.default_rng(0)
    return random_locals(rng), [random_locals(rng) for _ in range(40)]


def cascade(few: dict[str, object], keep: int, first: str = "rrt") -> Reranker:
    first_options = (
        few if first == "rrt" else {"query_tokens": 8, "gallery_tokens": 8, "min_similarity": 0.0}
    )
    return create(
        "cascade",
        keep=keep,
        first=first,
        first_options=first_options,
        second_options={"weights": few["weights"]},
    )


@pytest.mark.parametrize("keep", [40, 41, 1000])
def test_keeping_all_is_the_second_reranker_exactly(few, query_and_candidates, keep: int) -> None:
    query, candidates = query_and_candidates
    full = create("rrt", weights=few["weights"]).score([(query, item) for item in candidates])
    assert cascade(few, keep).score_query(query, candidates).logit.tobytes() == full.tobytes()


@pytest.mark.parametrize("first", ["rrt", "mutual_nn"])
def test_keeping_none_is_the_first_reranker_exactly(few, query_and_candidates, first: str) -> None:
    query, candidates = query_and_candidates
    made = cascade(few, 0, first)
    cheap = made.first.score([(query, item) for item in candidates])
    assert made.score_query(query, candidates).logit.tobytes() == cheap.tobytes()


@pytest.mark.parametrize("first", ["rrt", "mutual_nn"])
def test_the_best_by_the_first_are_ordered_by_the_second(
    few, query_and_candidates, first: str
) -> None:
    query, candidates = query_and_candidates
    scores = cascade(few, 10, first).score_query(query, candidates)
    pairs = [(query, item) for item in candidates]
    cheap = cascade(few, 10, first).first.score(pairs)
    full = create("rrt", weights=few["weights"]).score(pairs)
    by_cheap = sorted(range(40), key=lambda i: (-cheap[i], i))
    expected = sorted(by_cheap[:10], key=lambda i: (-full[i], i)) + by_cheap[10:]
    assert np.argsort(-scores.logit, kind="stable").tolist() == expected
    assert scores.logit[by_cheap[:10]].tobytes() == full[by_cheap[:10]].tobytes()  # raw
    assert scores.logit[by_cheap[10:]].max() <= full[by_cheap[:10]].min() - 1
    assert scores.first.tobytes() == cheap.tobytes() and scores.keep == 10
    assert scores.logit.dtype == np.float32 and np.isfinite(scores.logit).all()


def test_each_list_keeps_its_own_best(few, query_and_candidates) -> None:
    """As for the shortlists of protocols: combined again, each list is what it would be alone."""
    query, candidates = query_and_candidates
    made = cascade(few, 5)
    lists = [np.arange(25), np.flatnonzero(np.arange(40) % 3 > 0)[:25], np.arange(15, 40)]
    together = made.score_query(query, candidates, lists)
    for positions in lists:
        alone = made.score_query(query, [candidates[i] for i in positions])
        first = together.first[positions]
        again = combine(first, together.logit[positions], best(first, together.keep))
        assert again.tobytes() == alone.logit.tobytes()


def test_order_of_the_candidates_changes_no_logit(few, query_and_candidates) -> None:
    query, candidates = query_and_candidates
    made, order = cascade(few, 10), np.random.default_rng(1).permutation(40)
    scores = made.score_query(query, candidates).logit
    assert (
        made.score_query(query, [candidates[i] for i in order]).logit.tobytes()
        == scores[order].tobytes()
    )


def test_a_pair_by_itself_is_kept(few, query_and_candidates) -> None:
    query, candidates = query_and_candidates
    full = create("rrt", weights=few["weights"]).score([(query, candidates[3])])
    assert cascade(few, 10).score([(query, candidates[3])]).tobytes() == full.tobytes()
    assert cascade(few, 10).score_query(query, []).logit.shape == (0,)


class Counting(Reranker):
    """Remembers how many products of descriptors it was asked for: query tokens times gallery
    tokens of all pairs.
    """

    name, revision = "counting", 1

    def __init__(self, query_tokens: int = 500, gallery_tokens: int = 500) -> None:
        self.query_tokens, self.gallery_tokens, self.pairs, self.work = (
            query_tokens,
            gallery_tokens,
            0,
            0,
        )
        self.weights_sha256 = ""
        self.config = {"query_tokens": query_tokens, "gallery_tokens": gallery_tokens}

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        for query, gallery in pairs:
            tokens = (
                min(self.query_tokens, len(query.strength))
                + min(self.gallery_tokens, len(gallery.strength))
                + 4
            )
            self.pairs, self.work = self.pairs + 1, self.work + tokens * (tokens + 1500)
        return np.array([gallery.strength[0] for _, gallery in pairs], np.float32)


def test_it_is_several_times_less_work() -> None:
    """By the transformer's multiplications a pair, tokens * (tokens * 256 + 128 * 3072) a layer,
    not by the clock.
    """
    rng = np.random.default_rng(2)
    query, candidates = random_locals(rng, 500), [random_locals(rng, 500) for _ in range(100)]
    name = f"{Counting.__module__}:Counting"
    made = create("cascade", keep=20, first=name, second=name)
    assert isinstance(made, CascadeReranker)
    made.score_query(query, candidates)
    assert (made.first.pairs, made.second.pairs) == (100, 20)
    alone = create(name)
    alone.score_query(query, candidates)
    assert alone.work > 3.5 * (made.first.work + made.second.work)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e8])
def test_combine_keeps_order_and_ties_at_any_scale(scale: float) -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 50, 548).astype(np.float32)
    second = (scale * rng.standard_normal(548)).astype(np.float32)
    kept = best(first, 20)
    logits = combine(first, second, kept)
    assert kept.sum() == 20 and logits.dtype == np.float32
    assert logits[~kept].max() < logits[kept].min()
    differences = np.sign(np.subtract.outer(logits[~kept], logits[~kept]))
    np.testing.assert_array_equal(
        differences, np.sign(np.subtract.outer(first[~kept], first[~kept]))
    )


def test_config_names_both_and_what_must_be_read(few) -> None:
    made = cascade(few, 7, "mutual_nn")
    assert (
        made.config["keep"] == 7
        and made.config["query_tokens"] == made.config["gallery_tokens"] == 500
    )
    assert made.config["first"]["name"] == "mutual_nn" and made.config["second"]["name"] == "rrt"
    assert made.weights_sha256 == made.config["second"]["weights_sha256"] != ""


def test_options_are_refused_with_a_sentence(few) -> None:
    for keep in (-1, 2.5, True, "all"):
        with pytest.raises(UserError, match="keep must be a whole number"):
            create("cascade", keep=keep)
    with pytest.raises(UserError, match="first_options must be a mapping"):
        create("cascade", first_options=["query_tokens"])
    with pytest.raises(UserError, match="second must not be a cascade"):
        create("cascade", first="mutual_nn", second="cascade")
    with pytest.raises(UserError, match="'mutual_nn' has no option 'weights'"):
        create("cascade", first="mutual_nn", second="mutual_nn", second_options={"weights": "x"})


def test_weights_for_other_descriptors_are_refused(tmp_path) -> None:
    torch.manual_seed(0)
    model = RerankingTransformer(ModelConfig(global_dim=24, layers=1, scale_binning="fixed"))
    paths = []
    for name in ("one", "other"):
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save_checkpoint(paths[-1], model, {"extractor": {"name": name, "weights_sha256": "0"}})
    with pytest.raises(UserError, match="different extractors, one and other"):
        create("cascade", first_options={"weights": paths[0]}, second_options={"weights": paths[1]})
    made = create(
        "cascade", first_options={"weights": paths[1]}, second_options={"weights": paths[1]}
    )
    assert made.notes["extractor"]["name"] == "other"
    made = create("cascade", first_options={"weights": paths[0]}, second="geometric")
    assert made.notes["extractor"]["name"] == "one"
