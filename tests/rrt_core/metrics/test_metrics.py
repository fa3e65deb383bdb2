"""Metrics against their definition and, where it is at hand, against revisitop's own evaluate.py.

RRT_TEST_DATA names the folder with `ground_truth/gnd_*.pkl` (default: `shared` beside the project),
RRT_REVISITOP a checkout of revisitop (default: `revisitop` beside the project).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from rrt_core.metrics import revisited as metrics
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, load_ground_truth

BESIDE = Path(__file__).resolve().parents[4]
DATA = Path(os.environ.get("RRT_TEST_DATA", BESIDE / "shared")) / "ground_truth"
REVISITOP = Path(os.environ.get("RRT_REVISITOP", BESIDE / "revisitop")) / "python" / "evaluate.py"
SETS = ("roxford5k", "rparis6k")


def defined(ranking, positive, junk):
    """AP and precisions as the benchmark defines them, with lists and loops only."""
    junk, positives, positive = set(junk), len(positive), set(positive)
    cleaned = [position for position in ranking if position not in junk]
    hits, area, precisions = 0, 0.0, []
    for place, position in enumerate(cleaned):
        if position in positive:
            left = 1.0 if place == 0 else hits / place
            hits += 1
            area += (left + hits / (place + 1)) / 2 / positives
    last = max(
        (place for place, position in enumerate(cleaned) if position in positive), default=None
    )
    for kappa in metrics.KAPPAS:
        cut = kappa if last is None else min(kappa, last + 1)
        precisions.append(sum(position in positive for position in cleaned[:cut]) / cut)
    return area, precisions


@pytest.fixture(scope="module", params=SETS)
def truth(request):
    path = DATA / f"gnd_{request.param}.pkl"
    if not path.exists():
        pytest.skip(f"{path.name} is not here (RRT_TEST_DATA)")
    return load_ground_truth(str(path))


@pytest.fixture(scope="module")
def revisitop():
    if not REVISITOP.exists():
        pytest.skip("no checkout of revisitop (RRT_REVISITOP)")
    if not hasattr(np, "in1d"):  # gone since NumPy 2.4
        setattr(np, "in1d", np.isin)  # noqa: B010
    spec = importlib.util.spec_from_file_location("revisitop_evaluate", REVISITOP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rankings_of(kind, truth, protocol, rng):
    """One ranking a query, full unless the kind says otherwise."""
    n, rule, rankings = len(truth.gallery), metrics.PROTOCOLS[protocol], []
    for query in truth.queries:
        positive = metrics.positions_of(query, rule.positive)
        junk = metrics.positions_of(query, rule.junk)
        other = rng.permutation(np.setdiff1d(np.arange(n), np.concatenate([positive, junk])))
        parts = {
            "random": [rng.permutation(n)],
            "perfect": [positive, other, junk],
            "positives last": [other, junk, positive],
            "junk first": [junk, positive, other],
            "junk first, then others": [junk, other, positive],
            "reversed": [np.arange(n)[::-1]],
            "junk among positives": [rng.permutation(np.concatenate([positive, junk])), other],
            "first positive at 0": [positive[:1], junk, other, positive[1:]],
            "truncated": [positive[:1], rng.permutation(n)[: n // 3], positive[1:2]],
            "with distractors": [np.r_[rng.permutation(n), np.full(n, -1), np.arange(n, 2 * n)]],
        }[kind]
        ranking = np.concatenate(parts)
        if kind == "with distractors":
            ranking = rng.permutation(ranking)
        if kind == "truncated":
            ranking = ranking[np.sort(np.unique(ranking, return_index=True)[1])]
        rankings.append(ranking)
    return rankings


KINDS = (
    "random",
    "perfect",
    "positives last",
    "junk first",
    "junk first, then others",
    "reversed",
    "junk among positives",
    "first positive at 0",
    "truncated",
    "with distractors",
)


@pytest.mark.needs_shared
@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition_on_the_real_files(truth, protocol, kind):
    rule = metrics.PROTOCOLS[protocol]
    rankings = rankings_of(kind, truth, protocol, np.random.default_rng(0))
    result = metrics.evaluate(rankings, truth.queries, protocol)
    for row in range(0, len(truth.queries), 7):
        query = truth.queries[row]
        positive = metrics.positions_of(query, rule.positive).tolist()
        if not positive:
            assert np.isnan(result.average_precision[row])
            continue
        junk = metrics.positions_of(query, rule.junk).tolist()
        area, precisions = defined(rankings[row].tolist(), positive, junk)
        assert result.average_precision[row] == pytest.approx(area, abs=1e-12)
        assert result.precision[row] == pytest.approx(precisions, abs=1e-12)


@pytest.mark.needs_shared
@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_revisitop(revisitop, truth, protocol, kind):
    rule = metrics.PROTOCOLS[protocol]
    gnd = [
        {
            "ok": metrics.positions_of(query, rule.positive),
            "junk": metrics.positions_of(query, rule.junk),
        }
        for query in truth.queries
    ]
    rankings = rankings_of(kind, truth, protocol, np.random.default_rng(1))
    ranks = np.full(
        (max(map(len, rankings)), len(rankings)), -1
    )  # one column a query, as it wants them
    for column, ranking in enumerate(rankings):
        ranks[: len(ranking), column] = ranking
    mean, aps, precisions, each = revisitop.compute_map(ranks, gnd, list(metrics.KAPPAS))
    result = metrics.evaluate(rankings, truth.queries, protocol)
    assert result.means["mAP"] == pytest.approx(mean, abs=1e-9)
    assert [result.means[f"mP@{kappa}"] for kappa in metrics.KAPPAS] == pytest.approx(
        precisions, abs=1e-9
    )
    np.testing.assert_allclose(result.average_precision, aps, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.precision, each, rtol=0, atol=1e-9)


def test_equals_revisitop_on_any_input(revisitop):
    """Small galleries, lists that overlap, images ranked twice: what no real file has."""
    rng = np.random.default_rng(5)
    compared = 0
    for _ in range(3000):
        n = int(rng.integers(1, 12))
        ranking = rng.integers(-1, n + 2, size=int(rng.integers(1, 2 * n + 1)))
        positive = rng.integers(0, n, size=int(rng.integers(1, n + 1)))
        junk = rng.integers(0, n, size=int(rng.integers(0, n + 1)))
        if not np.isin(ranking, positive).any():
            continue
        compared += 1
        _, aps, _, each = revisitop.compute_map(
            ranking[:, None], [{"ok": positive, "junk": junk}], list(metrics.KAPPAS)
        )
        places = metrics.positive_places(ranking, positive, junk)
        assert metrics.average_precision(places, len(positive)) == pytest.approx(aps[0], abs=1e-9)
        assert metrics.precision_at(places) == pytest.approx(each[0], abs=1e-9)
    assert compared > 2000


def test_agrees_with_scikit_learn():
    """Of one relevant image below the first place theirs is 1 / rank, and the trapezoid half of
    it.
    """
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    for place in range(1, 30):
        relevant = np.zeros(30)
        relevant[place] = 1
        theirs = sklearn_metrics.average_precision_score(relevant, -np.arange(30))
        ours = metrics.average_precision(metrics.positive_places(np.arange(30), [place], []), 1)
        assert ours == pytest.approx(theirs / 2)


def query(easy=(), hard=(), junk=(), name="q"):
    return QueryTruth(name, None, tuple(easy), tuple(hard), tuple(junk))


def test_worked_by_hand():
    # Junk 9 is left out: positives at places 0 and 2. (1 + 1)/2/2 + (1/2 + 2/3)/2/2
    result = metrics.evaluate([[4, 9, 7, 5]], [query(easy=[4, 5], junk=[9])], "medium")
    assert result.means["mAP"] == pytest.approx(0.5 + 7 / 24)
    assert result.means["mP@1"] == 1
    assert result.means["mP@5"] == pytest.approx(2 / 3)  # at the last positive, not at 5


def test_a_ranking_without_any_positive_scores_zero():
    result = metrics.evaluate([[7, -1], []], [query(easy=[1]), query(hard=[2])], "medium")
    assert result.means == {"mAP": 0, "mP@1": 0, "mP@5": 0, "mP@10": 0}
    assert result.retrieved.tolist() == [0, 0]
    assert result.positives.tolist() == [1, 1]


def test_queries_without_positives_are_left_out_and_counted():
    queries = [query(easy=[1]), query(hard=[2])]
    result = metrics.evaluate([[1, 2], [2, 1]], queries, "easy")
    assert result.counted == 1
    assert np.isnan(result.average_precision[1])
    assert np.isnan(result.precision[1]).all()
    assert result.means["mAP"] == 1
    nothing = metrics.evaluate([[1]], [query(junk=[1])], "hard")
    assert nothing.counted == 0
    assert np.isnan(nothing.means["mAP"])


def test_positives_that_a_short_ranking_lacks_add_nothing():
    whole = metrics.evaluate([[1, 3, 2]], [query(easy=[1, 2])], "easy").means["mAP"]
    short = metrics.evaluate([[1, 3]], [query(easy=[1, 2])], "easy").means["mAP"]
    assert short == 0.5 < whole


def test_mistakes_of_the_caller_are_named():
    with pytest.raises(ValueError, match="extreme"):
        metrics.evaluate([[1]], [query(easy=[1])], "extreme")
    with pytest.raises(ValueError, match="0 rankings for 1"):
        metrics.evaluate([], [query(easy=[1])], "easy")


def test_shortlist_takes_the_first_that_are_not_junk():
    ranking = np.array([5, 2, -1, 8, 3, -1, 4])
    assert metrics.shortlist_positions(ranking, [2, 3], 3).tolist() == [0, 2, 3]
    assert metrics.shortlist_positions(ranking, [], 3).tolist() == [0, 1, 2]
    assert metrics.shortlist_positions(ranking, [2, 3], 100).tolist() == [0, 2, 3, 5, 6]
    assert metrics.shortlist_positions([], [2], 3).tolist() == []


def test_replay_reranks_the_shortlist_alone():
    ranking = np.array([5, 2, -1, 8, 3, -1, 4])
    logits = np.array([0.5, np.nan, 0.5, 2.0, np.nan, 9.0, 9.0])
    order = metrics.replay(ranking, [2, 3], 3, logits)
    # 8 first; the tie of 5 and the distractor stays; beyond the shortlist logits count for nothing;
    # junk last
    assert order.tolist() == [3, 0, 2, 5, 6, 1, 4]
    with pytest.raises(ValueError, match="1 of a shortlist of 3"):
        metrics.replay(ranking, [], 3, logits)
    with pytest.raises(ValueError, match="shape"):
        metrics.replay(ranking, [], 3, logits[:2])


def test_replay_against_a_plain_sort():
    rng = np.random.default_rng(2)
    for _ in range(300):
        n = int(rng.integers(1, 40))
        ranking, size = rng.permutation(n), int(rng.integers(0, 30))
        junk = rng.permutation(n)[: int(rng.integers(0, n + 1))].tolist()
        logits = rng.integers(-3, 3, n).astype(np.float32)
        kept = [place for place in range(n) if ranking[place] not in junk]
        expected = sorted(kept[:size], key=lambda place: -logits[place]) + kept[size:]
        expected += [place for place in range(n) if ranking[place] in junk]
        assert metrics.replay(ranking, junk, size, logits).tolist() == expected
        assert set(metrics.shortlist_positions(ranking, junk, size)) == set(
            expected[: len(kept[:size])]
        )


def test_required_depth():
    queries = (query(easy=[1, 2], hard=[3], junk=[4]), query(junk=[1, 2], name="r"))
    assert metrics.required_depth(GroundTruth("g", tuple("abcde"), queries), 100) == 103
    without = GroundTruth("g", tuple("abcde"), queries, levels=False)
    assert metrics.required_depth(without, 100) == 102
    assert metrics.protocols_of(without) == ("medium",)


@pytest.mark.needs_shared
def test_required_depth_of_the_real_files(truth):
    beyond = {"roxford5k": 305, "rparis6k": 448}[
        truth.name
    ]  # the most easy + junk that a query has
    assert metrics.required_depth(truth, 100) == 100 + beyond
    assert metrics.protocols_of(truth) == ("easy", "medium", "hard")
    # With junk first, that depth gives each query a full shortlist under Hard, and one less does
    # not.
    worst = max(truth.queries, key=lambda query: len(query.easy) + len(query.junk))
    junk = metrics.positions_of(worst, metrics.PROTOCOLS["hard"].junk)
    ranking = np.concatenate([junk, np.setdiff1d(np.arange(len(truth.gallery)), junk)])
    depth = metrics.required_depth(truth, 100)
    assert len(metrics.shortlist_positions(ranking[:depth], junk, 100)) == 100
    assert len(metrics.shortlist_positions(ranking[: depth - 1], junk, 100)) == 99


@pytest.mark.parametrize("seed", range(5))
def test_labelled_places_alone_equal_the_whole_ranking(seed):
    """A ranking that leaves distractors out, with the places of the rest, gives the same figures
    to the last bit; one that has no positive gives 0.
    """
    rng = np.random.default_rng(seed)
    labelled = rng.permutation(50)
    queries = [
        QueryTruth("q", None, *(tuple(part.tolist()) for part in np.split(labelled, cuts)))
        for cuts in ([10, 30], [0, 25], [1, 2], [20, 50])
    ]
    whole = [rng.permutation(1000) for _ in queries]
    kept = [np.flatnonzero(ranking < 50) for ranking in whole]
    sparse = [ranking[places] for ranking, places in zip(whole, kept, strict=True)]
    for protocol in metrics.PROTOCOLS:
        first = metrics.evaluate(whole, queries, protocol)
        second = metrics.evaluate(sparse, queries, protocol, places=kept)
        assert first.means == second.means or not first.counted
        for name in ("average_precision", "precision", "retrieved"):
            assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)

    with pytest.raises(ValueError, match="Places of 1 rankings for 4 queries"):
        metrics.evaluate(sparse, queries, "hard", places=kept[:1])
