"""Ensembling against torch's sigmoid, plain loops and the whole rankings' metrics; a planted
optimum is found.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rrt_core.ensemble import (
    Ensemble,
    Grid,
    best,
    default_grid,
    ensemble,
    judge,
    orders,
    replay_ensemble,
    search,
    sigmoid,
)
from rrt_core.metrics import revisited as metrics
from schemas.ground_truth.ground_truth import QueryTruth


def candidates(
    rng: np.random.Generator, size: int, spread: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.sort(rng.uniform(0.2, 0.9, size).astype(np.float32))[::-1]
    return scores, rng.normal(0, spread, size).astype(np.float32)


def naive_order(scores: np.ndarray, logits: np.ndarray, lambda_: float, gamma: float) -> list[int]:
    """By the formula, one candidate at a time."""
    pairs = zip(scores.tolist(), logits.tolist(), strict=True)
    finals = [
        lambda_ * score + (1 - lambda_) / (1 + np.exp(-gamma * logit)) for score, logit in pairs
    ]
    return sorted(range(len(finals)), key=lambda i: (-finals[i], -logits[i], i))


def test_sigmoid_equals_torch_and_never_overflows() -> None:
    x = np.concatenate([np.linspace(-60, 60, 4001), [-1e308, -800.0, 800.0, 1e308]])
    with np.errstate(all="raise", under="ignore"):
        ours = sigmoid(x)
    np.testing.assert_allclose(
        ours, torch.sigmoid(torch.from_numpy(x)).numpy(), rtol=1e-14, atol=1e-300
    )
    assert ours[-1] == 1 and ours[-4] == 0


def test_formula_is_torchs_in_float64() -> None:
    scores, logits = candidates(np.random.default_rng(0), 500)
    expected = 0.35 * torch.from_numpy(scores.copy()).double()
    expected += 0.65 * torch.sigmoid(0.3 * torch.from_numpy(logits).double())
    ours = ensemble(scores, logits, 0.35, 0.3)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-14)


def test_orders_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    lambdas, gammas = rng.uniform(0.01, 0.99, 40), 10 ** rng.uniform(-1.3, 1, 40)
    for size in (1, 2, 57):
        scores, logits = candidates(rng, size)
        result = orders(scores, logits, lambdas, gammas)
        for row, (lambda_, gamma) in enumerate(zip(lambdas, gammas, strict=True)):
            assert result[row].tolist() == naive_order(scores, logits, lambda_, gamma)


def test_the_ends_are_the_reranked_and_the_global_order_exactly() -> None:
    rng = np.random.default_rng(2)
    scores, logits = candidates(rng, 400, spread=300.0)  # most are 0 or 1 after the sigmoid
    logits[::7] = logits[3]  # and some are equal
    scores[10:20] = scores[10]
    nobody = np.zeros(0, np.int64)
    ranking = np.arange(400)
    by_logit = metrics.replay(ranking, nobody, 400, logits)
    assert len(np.unique(sigmoid(10 * logits))) < 200
    for gamma in (0.05, 1.0, 10.0):
        result = orders(scores, logits, [0.0, 1.0], [gamma, gamma])
        assert result[0].tolist() == by_logit.tolist()
        assert result[1].tolist() == list(range(400))
        assert (
            replay_ensemble(ranking, nobody, scores, logits, Ensemble(0, gamma, 400)).tolist()
            == by_logit.tolist()
        )


def test_equal_finals_go_by_logit_then_by_place() -> None:
    scores, logits = (
        np.full(5, 0.5),
        np.array([40.0, 800.0, 90.0, 800.0, -1.0]),
    )  # four are exactly 1
    assert orders(scores, logits, [0.5], [1.0]).tolist() == [[1, 3, 2, 0, 4]]


def test_replay_is_that_of_the_metrics_by_the_final_score() -> None:
    rng = np.random.default_rng(3)
    scores, logits = candidates(rng, 60)
    ranking = rng.permutation(60) - 10  # ten are distractors below zero, as -1 is
    junk = ranking[[2, 5, 30, 59]]
    logits[40:] = np.nan
    finals = np.full(60, np.nan)
    finals[:40] = ensemble(scores[:40], logits[:40], 0.4, 0.7)
    for k in (1, 10, 37):
        ours = replay_ensemble(ranking, junk, scores, logits, Ensemble(0.4, 0.7, k))
        assert ours.tolist() == metrics.replay(ranking, junk, k, finals).tolist()
    with pytest.raises(ValueError, match="1 of a shortlist of 38 have no logit"):
        replay_ensemble(ranking, junk, scores, logits, Ensemble(0.4, 0.7, 38))


@pytest.mark.parametrize("protocol", ["easy", "medium", "hard"])
def test_average_precisions_are_those_of_whole_rankings(protocol: str) -> None:
    rng = np.random.default_rng(4)
    rule = metrics.PROTOCOLS[protocol]
    for trial in range(30):
        gallery = rng.permutation(120)
        lists = (gallery[: trial % 7], gallery[10 : 10 + trial % 9], gallery[30:35])
        query = QueryTruth("q", None, *(tuple(map(int, kind)) for kind in lists))
        positive, junk = (
            metrics.positions_of(query, rule.positive),
            metrics.positions_of(query, rule.junk),
        )
        ranking = rng.permutation(120)[: 120 - trial]  # some positives are never found
        result = np.stack([rng.permutation(25) for _ in range(6)])
        ours = judge(ranking, 25, positive, junk).average_precisions(result)
        whole = [np.concatenate([ranking[:25][order], ranking[25:]]) for order in result]
        theirs = [metrics.evaluate([one], [query], protocol).average_precision[0] for one in whole]
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


@pytest.mark.parametrize(
    "chosen", [Ensemble(0.35, 0.3, 20), Ensemble(0.7, 1.5, 40), Ensemble(0.6, 0.7, 10)], ids=str
)
def test_a_planted_ensemble_is_the_one_optimum_of_the_grid(chosen: Ensemble) -> None:
    grid = Grid(default_grid(40).lambdas, default_grid(40).gammas, (10, 20, 40))
    rng = np.random.default_rng(5)
    pairs = [candidates(rng, 40, spread=6.0) for _ in range(100)]
    # the first of the planted order are the positives: as many as differ from query to query
    judged = []
    for number, (scores, logits) in enumerate(pairs):
        order = replay_ensemble(np.arange(40), [], scores, logits, chosen)
        judged.append(judge(np.arange(40), 40, order[: 1 + number % (chosen.k - 1)], []))
    values = search(pairs, lambda number, result: judged[number].average_precisions(result), grid)
    assert best(values, grid) == chosen
    assert values.max() == pytest.approx(1.0, abs=1e-12)
    assert (values > 1 - 1e-9).sum() == 1


def test_search_equals_a_plain_loop_and_leaves_out_queries_without_a_value() -> None:
    rng = np.random.default_rng(6)
    grid = Grid((0.0, 0.3, 1.0), (0.1, 2.0), (3, 8, 50))
    pairs = [candidates(rng, size) for size in (12, 5, 20)]
    worth = [rng.uniform(size=len(scores)) for scores, _ in pairs]

    def metric(number: int, result: np.ndarray) -> np.ndarray:
        return (
            np.full(len(result), np.nan)
            if number == 1
            else worth[number][result[:, :4]] @ [4.0, 3.0, 2.0, 1.0]
        )

    values = search(pairs, metric, grid)
    assert values.shape == (3, 3, 2)
    for a, k in enumerate(grid.ks):
        for b, lambda_ in enumerate(grid.lambdas):
            for c, gamma in enumerate(grid.gammas):
                expected = []
                for number in (0, 2):
                    scores, logits = pairs[number]
                    order = replay_ensemble(
                        np.arange(len(scores)), [], scores, logits, Ensemble(lambda_, gamma, k)
                    )
                    expected.append(metric(number, order[None])[0])
                assert values[a, b, c] == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_query_without_candidates_counts_as_nothing_found() -> None:
    judged = [judge([], 0, [3, 4], [5]), judge([3, 1, 2], 2, [3], []), judge([0], 1, [], [])]
    grid = Grid((0.0, 1.0), (1.0,), (1, 2))
    pairs = [
        ([], []),
        ([0.9, 0.1], [-1.0, 1.0]),
        ([0.5], [0.0]),
    ]  # the last one has no positive: it is left out
    values = search(pairs, lambda number, result: judged[number].average_precisions(result), grid)
    assert values[:, :, 0].tolist() == [[0.5, 0.5], [0.125, 0.5]]


def test_ties_go_to_the_smallest_k_then_lambda_then_gamma() -> None:
    grid = Grid((0.0, 0.5, 1.0), (0.1, 1.0), (10, 20))
    values = np.zeros(grid.shape)
    assert best(values, grid) == Ensemble(0.0, 0.1, 10)
    values[1, 1, 0] = values[1, 2, 1] = 0.5
    values[1, 2, 1] += 1e-15  # rounding
    assert best(values, grid) == Ensemble(0.5, 0.1, 20)
    with pytest.raises(ValueError, match="no query"):
        best(np.full(grid.shape, np.nan), grid)


def test_the_default_grid() -> None:
    grid = default_grid(100)
    assert (
        grid.lambdas[:3] == (0.0, 0.05, 0.1) and grid.lambdas[-1] == 1.0 and len(grid.lambdas) == 21
    )
    assert (grid.gammas[0], grid.gammas[-1]) == (0.05, 10.0)
    assert grid.ks == (10, 20, 50, 100)
    assert default_grid(5).ks == (5,) and default_grid(400).ks == (10, 20, 50, 100, 200, 400)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-0.1, 1.0, 5), "between 0 and 1"),
        ((np.nan, 1.0, 5), "between 0 and 1"),
        ((0.5, 0.0, 5), "above 0"),
        ((0.5, np.inf, 5), "finite"),
        ((0.5, 1.0, 0), "at least 1"),
    ],
)
def test_values_out_of_range_are_refused(values: tuple[float, float, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ensemble(*values)


def test_wrong_arrays_and_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        ensemble([0.1, 0.2], [1.0], 0.5, 1.0)
    with pytest.raises(ValueError, match="no logit"):
        orders([0.1, 0.2], [1.0, np.nan], [0.5], [1.0])
    for lambdas in ((), (0.5, 0.5), (0.5, 0.1)):
        with pytest.raises(ValueError, match="lambda"):
            Grid(lambdas, (1.0,), (10,))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Grid((0.5, 1.5), (1.0,), (10,))
