"""Losses, initialisation, resuming and learning of the products variant, on networks that take
milliseconds.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rrt_core.products.backbone import Backbone
from rrt_core.products.initialisation import (
    logistic_regression,
    principal_components,
    start_from_triplets,
)
from rrt_core.products.model import (
    SEGMENT_G,
    SEGMENT_Q,
    ProductsConfig,
    ProductsTransformer,
    sine_positions,
)
from rrt_core.products.sampling import Sampler, neighbours
from rrt_core.products.training import (
    ProductsNetwork,
    ProductsOptions,
    contrastive_loss,
    describe,
    parameter_groups,
    train,
    triplet_loss,
)
from schemas.errors import UserError

CONFIG = ProductsConfig(map_channels=6, global_dim=4, d_model=16, heads=2, feedforward=16, layers=2)


class TinyBackbone(Backbone):
    """Two convolutions: 3 x 8 x 8 crops -> 6 x 2 x 2 maps."""

    name, map_channels, parted = "tiny", 6, True

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleList([nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 6, 2, 2)])

    def early(self, crops: Tensor) -> Tensor:
        result: Tensor = self.network[0](crops.float() / 255).relu()
        return result

    def late(self, x: Tensor) -> Tensor:
        result: Tensor = self.network[1](x)
        return result

    def late_parameters(self) -> list[nn.Parameter]:
        return list(self.network[1].parameters())


class Pictures:
    """Two products, three pictures each: product p has colour p in a corner, noise elsewhere."""

    copies = 4
    labels = np.array([0, 0, 0, 1, 1, 1])

    def __len__(self) -> int:
        return 6

    def batch(self, rows: np.ndarray, copies: np.ndarray) -> Tensor:
        crops = []
        for row, copy in zip(rows.tolist(), copies.tolist(), strict=True):
            crop = np.random.default_rng([row, copy]).integers(0, 60, (3, 8, 8), dtype=np.uint8)
            crop[int(self.labels[row]), :4, :4] += 190
            crops.append(crop)
        return torch.from_numpy(np.stack(crops))


class EarlyPictures(Pictures):
    """The same behind the early part."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def batch(self, rows: np.ndarray, copies: np.ndarray) -> Tensor:
        with torch.no_grad():
            return self.backbone.early(super().batch(rows, copies))


def network_of(trained: str, seed: int = 0) -> ProductsNetwork:
    torch.manual_seed(seed)
    return ProductsNetwork(TinyBackbone(), ProductsTransformer(CONFIG), trained)


def test_contrastive_loss_by_the_formula() -> None:
    torch.manual_seed(0)
    x = nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    losses = []
    for i in range(7):
        weight = {j: math.exp(float(x[i] @ x[j]) / 0.05) for j in range(7) if j != i}
        alike = sum(value for j, value in weight.items() if labels[j] == labels[i])
        if alike:
            losses.append(-math.log(alike / sum(weight.values())))
    assert len(losses) == 6
    assert float(contrastive_loss(x, labels, 0.05)) == pytest.approx(sum(losses) / 6, rel=1e-9)


def test_triplet_loss_by_the_formula() -> None:
    network = network_of("none")
    maps = torch.randn(9, 6, 2, 2)
    loss, accuracy = triplet_loss(network, maps, "float32")
    with torch.no_grad():
        positive = network.model(maps[0::3], maps[1::3]).double()
        negative = network.model(maps[0::3], maps[2::3]).double()
    expected = (
        torch.log1p(torch.exp(-positive)).sum() + torch.log1p(torch.exp(negative)).sum()
    ) / 6
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert accuracy == pytest.approx(float(((positive > 0).sum() + (negative <= 0).sum()) / 6))


@pytest.mark.parametrize(
    ("mode", "trained"),
    [("global", "all"), ("frozen", "none"), ("joint", "late"), ("joint", "all")],
)
def test_each_mode_trains_its_part(tmp_path: Path, mode: str, trained: str) -> None:
    network = network_of(trained)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = EarlyPictures(network.backbone) if trained == "late" else Pictures()
    if trained == "none":
        inputs = MapsOf(network.backbone)
    options = ProductsOptions(
        mode,
        steps=2,
        trained="all" if trained == "none" else trained,
        batch=6,
        lr=1e-2,
        warmup=0,
        weight_decay=0.0,
    )
    near = neighbours(np.eye(6, dtype=np.float32), 5)
    train(network, inputs, Sampler(Pictures.labels, 4, 0), options, tmp_path, near)
    changed = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert any(key.startswith("model.matcher.") for key in changed) == (mode != "global")
    assert any(key.startswith("model.remap_local.") for key in changed) == (mode != "global")
    assert any(key.startswith("model.remap.") for key in changed) == (mode == "global")
    assert any(key.startswith("backbone.network.0.") for key in changed) == (trained == "all")
    assert any(key.startswith("backbone.network.1.") for key in changed) == (
        trained in ("all", "late")
    )


class MapsOf(Pictures):
    """The same behind the whole backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def batch(self, rows: np.ndarray, copies: np.ndarray) -> Tensor:
        with torch.no_grad():
            return self.backbone(super().batch(rows, copies))


def test_joint_learns_what_tells_the_products_apart(tmp_path: Path) -> None:
    network = network_of("all")
    options = ProductsOptions(
        "joint", steps=200, batch=18, lr=1e-2, warmup=5, global_share=0.5, checkpoint_every=40
    )
    rows: list[dict[str, float]] = []
    near = neighbours(np.eye(6, dtype=np.float32), 5)
    sampler = Sampler(Pictures.labels, 4, 0)
    train(
        network, Pictures(), sampler, options, tmp_path, near, lambda: {"val_x": 1.0}, rows.append
    )
    assert rows[-1]["step"] == 200 and rows[-1]["val_x"] == 1.0 and "val_x" not in rows[0]
    assert rows[0]["accuracy"] < 0.7 and rows[-1]["accuracy"] > 0.9
    result = describe(network, Pictures(), np.arange(6), batch=4)
    assert result.descriptors.shape == (6, 4) and result.local.shape == (6, 16, 2, 2)
    similarity = result.descriptors @ result.descriptors.T
    assert similarity[0, 1] > similarity[0, 3] and similarity[3, 4] > similarity[3, 0]


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, optimiser: str) -> None:
    options = ProductsOptions(
        "joint", steps=9, batch=6, optimiser=optimiser, lr=1e-2, warmup=2, checkpoint_every=2
    )
    near = neighbours(np.eye(6, dtype=np.float32), 5)

    def go(folder: Path, inputs: Pictures, identity: str = "run") -> ProductsNetwork:
        network = network_of("all")
        train(
            network,
            inputs,
            Sampler(Pictures.labels, 4, 3),
            options,
            folder,
            near,
            identity=identity,
        )
        return network

    class Dying(Pictures):
        left = 5

        def batch(self, rows: np.ndarray, copies: np.ndarray) -> Tensor:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return super().batch(rows, copies)

    whole = go(tmp_path / "whole", Pictures())
    with pytest.raises(Killed):
        go(tmp_path / "killed", Dying())
    again = go(tmp_path / "killed", Pictures())
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key

    def lines(folder: str) -> list[str]:
        text = (tmp_path / folder / "log.csv").read_text().splitlines()
        return [
            line
            for line in text
            if ",seconds," not in line and ",loss," not in line and ",accuracy," not in line
        ]

    assert lines("whole") == lines("killed")
    with pytest.raises(UserError, match="other data or with other options"):
        go(tmp_path / "killed", Pictures(), "another")
    (tmp_path / "killed" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        go(tmp_path / "killed", Pictures())


def test_learning_rates_of_the_parts() -> None:
    network = network_of("late")
    groups = parameter_groups(
        network, ProductsOptions("joint", 1, trained="late", lr=0.5, backbone_lr=0.1)
    )
    assert [group["lr"] for group in groups] == [0.05, 0.5]
    assert sum(p.numel() for p in groups[0]["params"]) == sum(
        p.numel() for p in network.backbone.late_parameters()
    )


@pytest.mark.parametrize(
    "bad",
    [{"mode": "both"}, {"steps": 0}, {"batch": 2}, {"optimiser": "lars"}, {"precision": "float8"}],
)
def test_bad_options(bad: dict) -> None:
    with pytest.raises(UserError, match="must be"):
        ProductsOptions(**({"mode": "joint", "steps": 1} | bad))


def test_principal_components_are_numpys() -> None:
    torch.manual_seed(0)
    cells = torch.randn(500, 6) @ torch.randn(6, 6) + 3
    weight, bias = principal_components(cells, 4, 1.0)
    result = (cells @ weight.T + bias).numpy()
    _, singular, rows = np.linalg.svd((cells - cells.mean(0)).double().numpy(), full_matrices=False)
    expected = (cells - cells.mean(0)).double().numpy() @ rows[:4].T / singular[:4]
    cosine = (
        (result * expected).sum(0)
        / np.linalg.norm(result, axis=0)
        / np.linalg.norm(expected, axis=0)
    )
    assert np.allclose(np.abs(cosine), 1, atol=1e-4)
    assert np.square(result).sum(1).mean() == pytest.approx(1, rel=0.01)
    assert np.allclose(result.var(0), 0.25, rtol=0.01)
    with pytest.raises(UserError, match="no 7 principal components"):
        principal_components(cells, 7, 1.0)


def test_logistic_regression_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    scores = 3 * torch.randn(200) + 5
    same = (scores + 3 * torch.randn(200) > 5).float()
    scale, offset = logistic_regression(scores, same, ridge=1e-9)
    expected = LogisticRegression(C=1e9, tol=1e-10).fit(scores[:, None].numpy(), same.numpy())
    assert scale == pytest.approx(float(expected.coef_[0, 0]), rel=1e-3)
    assert offset == pytest.approx(float(expected.intercept_[0]), rel=1e-3)
    separable, _ = logistic_regression(
        torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    )
    assert 0 < separable < 100


def test_matching_start() -> None:
    """Two pictures hold the same 49 cells, somewhat changed, in another order: each must find its
    likeness.
    """
    torch.manual_seed(0)
    model = ProductsTransformer(ProductsConfig(map_channels=160)).eval()

    def triplet() -> list[Tensor]:
        cells = torch.randn(49, 160) * torch.linspace(2, 0.5, 160)
        alike = (cells + 0.4 * torch.randn(49, 160))[torch.randperm(49)]
        other = torch.randn(49, 160) * torch.linspace(2, 0.5, 160)
        return [x.T.reshape(160, 7, 7) for x in (cells, alike, other)]

    start_from_triplets(model, torch.stack([x for _ in range(30) for x in triplet()]))
    order = torch.randperm(49)
    query = triplet()[0]
    gallery = query.flatten(1)[:, order].reshape(160, 7, 7)
    with torch.no_grad():
        tokens = model.matcher.embed(
            model.describe_local(query[None]), model.describe_local(gallery[None])
        )[0]
        first = model.matcher.layers[0]
        likeness = first.self_attn.in_proj_weight[:128], first.self_attn.in_proj_weight[128:256]
        q, k = ((tokens @ weight.T).view(100, 4, 32).transpose(0, 1) for weight in likeness)
        attention = (q @ k.transpose(1, 2) / math.sqrt(32)).softmax(-1)  # [heads, 100, 100]
        place = torch.argsort(order)  # where query cell i lies in the gallery image
        assert ((attention[:, 1:50].argmax(-1) == 51 + place).float().mean(1) > 0.95).all()
        # Pictures that the start has not seen are told apart by untrained logits.
        anchors, positives, negatives = (
            torch.stack(x) for x in zip(*(triplet() for _ in range(12)), strict=True)
        )
        assert (model(anchors, positives) > 0).all() and (model(anchors, negatives) < 0).all()
    # Segments point away from the positions, so that these do not disturb what is compared.
    segments = model.matcher.seg_encoder.weight[[SEGMENT_Q, SEGMENT_G]].detach()
    away = segments @ sine_positions(7, 7, 128).T / segments.norm(dim=1, keepdim=True)
    assert float(away.abs().max()) < 1.5
    with pytest.raises(UserError, match="at least two layers"):
        start_from_triplets(
            ProductsTransformer(ProductsConfig(map_channels=160, layers=1)),
            torch.zeros(3, 160, 7, 7),
        )
