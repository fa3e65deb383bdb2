"""The reranker contract, the registry, and both rerankers by it."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rrt_core.checkpoints import save_checkpoint
from rrt_core.rerankers import Locals, Reranker, create
from rrt_core.rerankers.rrt import EMBEDDED_WEIGHTS
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import UserError

SCALES = (1.0, 0.70710677)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_locals(
    rng: np.random.Generator, count: int, global_dim: int = 24, local_dim: int = 128
) -> Locals:
    return Locals(
        unit(rng.standard_normal(global_dim)),
        unit(rng.standard_normal((count, local_dim))),
        rng.uniform(0, 100, (count, 2)).astype(np.float32),
        rng.integers(0, len(SCALES), count).astype(np.uint8),
        np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1].copy(),
        SCALES,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("weights") / "small.safetensors")
    save_checkpoint(
        path, RerankingTransformer(ModelConfig(global_dim=24, layers=2, scale_binning="fixed"))
    )
    return path


@pytest.fixture(params=["rrt", "mutual_nn", "geometric"])
def reranker(request: pytest.FixtureRequest, weights: str) -> Reranker:
    return (
        create("rrt", weights=weights, device="cpu")
        if request.param == "rrt"
        else create(request.param)
    )


def test_contract(reranker: Reranker) -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (random_locals(rng, n), random_locals(rng, m))
        for n, m in ((20, 30), (1, 5), (0, 8), (0, 0))
    ]
    scores = reranker.score(pairs)
    assert scores.dtype == np.float32 and scores.shape == (4,) and np.isfinite(scores).all()
    alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    assert scores.tobytes() == alone.tobytes()
    assert reranker.score([]).shape == (0,)
    assert isinstance(reranker.name, str) and reranker.revision >= 1
    assert len(reranker.weights_sha256) in (0, 64) and reranker.config["query_tokens"] == 500


def test_dimension_mismatch_names_both(reranker: Reranker) -> None:
    rng = np.random.default_rng(1)
    pair = (random_locals(rng, 4), random_locals(rng, 4, local_dim=32))
    with pytest.raises(UserError, match="128.*32"):
        reranker.score([pair])


@pytest.mark.parametrize("name", ["rrt", "mutual_nn"])
def test_token_budget_takes_the_first(name: str, weights: str) -> None:
    options = {"weights": weights} if name == "rrt" else {}
    rng = np.random.default_rng(2)
    query, gallery = random_locals(rng, 12), random_locals(rng, 9)
    cut = create(name, query_tokens=5, gallery_tokens=3, **options).score([(query, gallery)])
    by_hand = create(name, **options).score([(query.first(5), gallery.first(3))])
    assert cut.tobytes() == by_hand.tobytes()


def test_rrt_applies_the_scale_table(weights: str) -> None:
    rng = np.random.default_rng(3)
    query, gallery = random_locals(rng, 6), random_locals(rng, 6)
    fixed = create("rrt", weights=weights).score([(query, gallery)])
    legacy = create("rrt", weights=weights, scale_binning="rrt_legacy").score([(query, gallery)])
    assert fixed[0] != legacy[0]
    # 1.0 and .7071 share a row of the legacy table, so ordinals do not matter there.
    query.scale[:] = 1 - query.scale
    swapped = create("rrt", weights=weights, scale_binning="rrt_legacy").score([(query, gallery)])
    assert swapped.tobytes() == legacy.tobytes()


def test_rrt_precision_enters_its_identity(weights: str) -> None:
    rng = np.random.default_rng(3)
    pair = (random_locals(rng, 6), random_locals(rng, 6))
    exact = create("rrt", weights=weights, device="cpu")
    rounded = create("rrt", weights=weights, device="cpu", precision="bfloat16")
    assert (exact.config["precision"], rounded.config["precision"]) == ("float32", "bfloat16")
    assert 0 < abs(exact.score([pair])[0] - rounded.score([pair])[0]) < 0.03
    assert "device" not in exact.config and exact.device == "cpu, float32"
    with pytest.raises(UserError, match="precision is 'half'; it must be one of float32"):
        create("rrt", weights=weights, precision="half")


def test_rrt_global_mismatch_names_both(weights: str) -> None:
    rng = np.random.default_rng(4)
    pair = (random_locals(rng, 4, global_dim=1280), random_locals(rng, 4, global_dim=1280))
    with pytest.raises(UserError, match="24 dimensions.*1280"):
        create("rrt", weights=weights).score([pair])


def test_mutual_nn_counts_couples() -> None:
    axes = np.eye(128, dtype=np.float32)
    rng = np.random.default_rng(5)
    query, gallery = random_locals(rng, 4), random_locals(rng, 5)
    query.descriptors = axes[[0, 1, 2, 2]]
    gallery.descriptors = unit(
        np.stack([axes[0], axes[1] + 0.1 * axes[7], axes[2], axes[9], -axes[0]])
    )
    score = create("mutual_nn", min_similarity=0.1).score([(query, gallery)])[0]
    assert 3 + 0.99 < score < 4  # three couples of similarity near 1: 3 + 0.999 (1 + s) / 2
    query.descriptors = axes[[20, 21, 22, 23]]
    assert create("mutual_nn", min_similarity=0.1).score([(query, gallery)])[0] == 0


def test_mutual_nn_ranks_a_noisy_copy_first() -> None:
    rng = np.random.default_rng(6)
    query = random_locals(rng, 40)
    others = [random_locals(rng, 40) for _ in range(8)]
    others[3].descriptors = unit(query.descriptors + 0.05 * rng.standard_normal((40, 128)))
    scores = create("mutual_nn").score([(query, other) for other in others])
    assert int(scores.argmax()) == 3


@pytest.mark.parametrize("floor", [-1.0, 0.0, 0.3, 0.5, 0.8])
def test_mutual_nn_couples_are_those_of_opencvs_cross_check(floor: float) -> None:
    rng = np.random.default_rng(7)
    query, gallery = random_locals(rng, 300, local_dim=12), random_locals(rng, 200, local_dim=12)
    matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(
        query.descriptors, gallery.descriptors
    )
    similarities = [1 - match.distance**2 / 2 for match in matches]
    expected = sum(similarity >= floor for similarity in similarities)
    assert expected > 0 and min(abs(similarity - floor) for similarity in similarities) > 1e-5
    assert int(create("mutual_nn", min_similarity=floor).score([(query, gallery)])[0]) == expected


def test_registry_refuses_with_a_sentence(weights: str) -> None:
    with pytest.raises(UserError, match="no reranker .*: choose rrt or mutual_nn"):
        create("ames")
    with pytest.raises(UserError, match="cannot be imported"):
        create("no.such.module:Reranker")
    with pytest.raises(UserError, match="not a class derived"):
        create("pathlib:Path")
    with pytest.raises(UserError, match="no option 'tokens'; it has: query_tokens"):
        create("mutual_nn", tokens=3)
    for value in (0, -1, 2.5, True):
        with pytest.raises(UserError, match="gallery_tokens"):
            create("mutual_nn", gallery_tokens=value)
    for value in (2.0, -1.5, "0.5", True, None, float("nan")):
        with pytest.raises(UserError, match="min_similarity"):
            create("mutual_nn", min_similarity=value)
    with pytest.raises(UserError, match="no such file"):
        create("rrt", weights=weights + ".absent")


def test_own_class_by_its_path() -> None:
    assert create("rrt_core.rerankers.mutual_nn:MutualNNReranker").name == "mutual_nn"


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, rrt_core.rerankers as r; r.create('mutual_nn'); sys.exit('torch' in "
        "sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.skipif(
    not Path(EMBEDDED_WEIGHTS).exists(), reason="the embedded weights are not in this checkout"
)
def test_embedded_weights_load() -> None:
    reranker = create("rrt", query_tokens=64, gallery_tokens=64)
    model = reranker.config["model"]
    assert model["d_model"] == 128 and model["layers"] == 6
    assert Path(EMBEDDED_WEIGHTS).stat().st_size < 10_000_000
