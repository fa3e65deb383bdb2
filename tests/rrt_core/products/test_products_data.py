"""Crops, backbones, kept maps, sampling and evaluation of the products variant."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from rrt_core.products.backbone import create_backbone
from rrt_core.products.crops import CropOptions, CropReader, augmented_crop, plain_crop
from rrt_core.products.evaluation import average_precisions, figures, rank, reordered, score
from rrt_core.products.inputs import CropInputs, frozen_part, keep
from rrt_core.products.model import MapMatcher, ProductsConfig
from rrt_core.products.sampling import Sampler, neighbours
from schemas.errors import UserError

RNG = np.random.default_rng(0)


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)


def test_plain_crop_is_the_middle_of_the_resized_picture() -> None:
    options = CropOptions(resize=48, crop=32)
    expected = cv2.resize(picture(), (48, 48), interpolation=cv2.INTER_AREA)[8:40, 8:40]
    assert np.array_equal(plain_crop(picture(), options), expected)


def test_augmented_crop_of_all_the_picture_is_the_resized_picture() -> None:
    options = CropOptions(resize=64, crop=64, area=(1.0, 1.0), aspect=1.0)
    square = picture(64, 64)
    assert np.array_equal(augmented_crop(square, options, np.random.default_rng(0)), square)
    flipped = CropOptions(resize=64, crop=64, area=(1.0, 1.0), aspect=1.0, flip=True)
    crops = [augmented_crop(square, flipped, np.random.default_rng(seed)) for seed in range(8)]
    mirrored = [np.array_equal(crop, square[:, ::-1]) for crop in crops]
    assert any(mirrored) and not all(mirrored)
    assert all(
        np.array_equal(crop, square)
        for crop, other in zip(crops, mirrored, strict=True)
        if not other
    )


def test_augmented_crop_sees_the_asked_share() -> None:
    """The ramp's slope tells how much of the picture is in the crop."""
    options = CropOptions(resize=64, crop=64, area=(0.25, 0.25), aspect=1.0)
    ramp = np.repeat(np.linspace(0, 255, 64)[None], 64, axis=0).astype(np.uint8)
    crop = augmented_crop(np.dstack([ramp] * 3), options, np.random.default_rng(3)).astype(float)
    assert np.ptp(crop[32, :, 0]) == pytest.approx(255 / 2, abs=8)
    assert np.ptp(crop[:, 32, 0]) <= 1


def test_augmentation_is_a_function_of_seed_row_and_copy(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(files[-1]), np.roll(picture(), 11 * number, axis=1))
    options = CropOptions(resize=40, crop=32, degrees=20, jitter=0.3, flip=True)
    rows, copies = np.array([0, 1, 0]), np.array([2, 1, 0])
    result = CropReader(files, options, seed=5).read(rows, copies)
    assert result.shape == (3, 3, 32, 32) and result.dtype == np.uint8
    assert np.array_equal(result, CropReader(files, options, seed=5, threads=2).read(rows, copies))
    assert np.array_equal(
        result[1], CropReader(files, options, seed=5).read(rows[1:2], copies[1:2])[0]
    )
    assert not np.array_equal(result[0], CropReader(files, options, seed=6).read(rows, copies)[0])
    assert np.array_equal(
        result[2].transpose(1, 2, 0), plain_crop(cv2.imread(str(files[0]))[:, :, ::-1], options)
    )


def test_reader_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    reader = CropReader([tmp_path / "bad.jpg", tmp_path / "none.jpg"], CropOptions())
    for row, words in ((0, r"bad\.jpg cannot be used"), (1, r"none\.jpg cannot be read")):
        with pytest.raises(UserError, match=words):
            reader.read(np.array([row]), np.array([0]))


@pytest.mark.parametrize(
    "bad", [{"crop": 16}, {"crop": 300}, {"area": (0.5, 0.2)}, {"jitter": 1.0}, {"degrees": -1}]
)
def test_bad_crop_options(bad: dict) -> None:
    with pytest.raises(UserError, match="Crops"):
        CropOptions(**bad)


def test_lite0_in_two_parts_is_the_network() -> None:
    plain, both = (
        create_backbone("efficientnet_lite0", "random"),
        create_backbone("efficientnet_lite0+stride16", "random"),
    )
    both.load_state_dict(plain.state_dict())
    crops = torch.randint(0, 256, (2, 3, 80, 64), dtype=torch.uint8)
    with torch.no_grad():
        maps = plain.network((crops.float() - 127) / 128)
        result = both(crops)
        assert torch.allclose(plain(crops), maps.head, rtol=1e-4, atol=1e-3)
    assert result.shape == (2, both.map_channels, 3, 2)
    assert torch.equal(result[:, :1280], plain(crops).detach())
    cell = maps.stage112[:, :, 2:4, 0:2].reshape(2, -1)  # 5 x 4 cells, padded to 6 x 4
    assert torch.allclose(result[:, 1280:, 1, 0], cell, rtol=1e-4, atol=1e-3)


def test_lite0_gradients_in_spite_of_in_place_operations() -> None:
    """Against finite differences, in float64."""
    backbone = create_backbone("efficientnet_lite0", "random")
    backbone.set_trained("late")
    network = backbone.network.double()
    x = torch.randn(1, 112, 2, 2, dtype=torch.float64)
    weight = network.blocks[backbone.cut + 1].narrow.weight
    probe = torch.randn(1, 1280, 1, 1, dtype=torch.float64)
    (backbone.late(x) * probe).sum().backward()
    gradient = weight.grad[3, 5].item()
    step = 1e-6
    values = []
    with torch.no_grad():
        for move in (step, -2 * step):
            weight[3, 5] += move
            values.append(float((backbone.late(x) * probe).sum()))
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_what_is_trained() -> None:
    backbone = create_backbone("efficientnet_lite0", "random")
    counts = {}
    for trained in ("all", "late", "none"):
        backbone.set_trained(trained)
        counts[trained] = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert counts["all"] > counts["late"] > counts["none"] == 0
    assert counts["all"] == sum(p.numel() for p in backbone.parameters())


def test_unknown_backbones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown; choose efficientnet_lite0"):
        create_backbone("resnet")
    with pytest.raises(UserError, match="needs a local file of weights"):
        create_backbone("timm:resnet18")
    file = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="no state dict of EfficientNet-Lite0"):
        create_backbone("efficientnet_lite0", str(file))
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        create_backbone("efficientnet_lite0", str(tmp_path / "none.pth"))


def test_timm_backbone(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(
        "resnet18", pretrained=False
    )  # with its classifier, as files have it
    torch.save(network.state_dict(), tmp_path / "r18.pth")
    backbone = create_backbone("timm:resnet18", str(tmp_path / "r18.pth"))
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (
        torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std")
    )
    with torch.no_grad():
        expected = network.eval().forward_features((crops / 255 - mean) / std)
        assert torch.allclose(backbone(crops), expected, atol=1e-4)
    assert backbone.map_channels == 512 and backbone(crops).shape == (2, 512, 2, 2)
    backbone.train()
    assert backbone.network.training and not backbone.network.bn1.training
    with pytest.raises(UserError, match="not parted"):
        backbone.set_trained("late")
    with pytest.raises(UserError, match="no model 'nosuch'"):
        create_backbone("timm:nosuch", "random")


class Counted:
    """Inputs that count how often they were asked."""

    copies = 5

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 20

    def batch(self, rows: np.ndarray, copies: np.ndarray) -> torch.Tensor:
        self.asked += sorted(set(rows.tolist()))
        return torch.from_numpy((10 * rows + copies).astype(np.float32))[:, None]


def test_kept_maps_go_on_where_they_stopped(tmp_path: Path) -> None:
    inputs, file = Counted(), tmp_path / "maps.npy"
    kept = keep(lambda x: x / 2, inputs, 2, file, "a")
    assert kept.copies == 2 and inputs.asked == list(range(20))
    values = kept.batch(np.array([3, 19]), np.array([0, 2]))
    assert values.tolist() == [[15.0], [96.0]]
    keep(lambda x: x / 2, inputs, 2, file, "a")
    assert len(inputs.asked) == 20  # nothing was computed again
    note = file.with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"done": 16}))
    again = keep(lambda x: x / 2, inputs, 2, file, "a")
    assert inputs.asked[20:] == [16, 17, 18, 19]
    assert again.batch(np.array([19]), np.array([1])).tolist() == [[95.5]]
    keep(lambda x: x / 2, inputs, 2, file, "b")
    assert len(inputs.asked) == 44
    with pytest.raises(UserError, match="float16"):
        keep(lambda x: x * 1e6, inputs, 2, tmp_path / "large.npy", "c")


def test_kept_part_of_a_backbone(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    inputs = CropInputs(CropReader([tmp_path / "a.png"], CropOptions(resize=64, crop=64)))
    backbone = create_backbone("efficientnet_lite0", "random")
    row, plain = np.array([0]), np.array([0])
    late = keep(frozen_part(backbone, "late"), inputs, 1, tmp_path / "late.npy", "")
    whole = keep(frozen_part(backbone, "none"), inputs, 1, tmp_path / "whole.npy", "")
    assert late.batch(row, plain).shape == (1, 112, 4, 4)
    with torch.no_grad():
        maps = backbone(inputs.batch(row, plain))
        assert torch.allclose(backbone.late(late.batch(row, plain)), maps, atol=0.05)
    assert torch.allclose(whole.batch(row, plain), maps, atol=0.01)


def test_neighbours_by_brute_force() -> None:
    x = F.normalize(torch.randn(37, 8), dim=1).numpy()
    result = neighbours(x, 5, block=10)
    for row in range(37):
        similarity = x @ x[row]
        others = [other for other in np.argsort(-similarity, kind="stable") if other != row]
        assert result[row].tolist() == others[:5]
    assert neighbours(x, 100).shape == (37, 36)


def test_triplets() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 3])  # 2 and 3 have one image each
    near = neighbours(RNG.standard_normal((7, 4)).astype(np.float32), 6)
    sampler = Sampler(labels, copies=3, seed=1)
    lone = 0
    for step in range(40):
        batch = sampler.triplets(step, 4, near)
        anchors, positives, negatives = batch.rows[0::3], batch.rows[1::3], batch.rows[2::3]
        assert np.array_equal(labels[anchors], labels[positives])
        assert (labels[anchors] != labels[negatives]).all()
        assert (batch.copies >= 1).all() and (batch.copies <= 3).all()
        same = anchors == positives
        assert np.isin(anchors[same], (5, 6)).all()  # only a lone image is its own positive
        assert (batch.copies[0::3][same] != batch.copies[1::3][same]).all()
        lone += same.sum()
        again = sampler.triplets(step, 4, near)
        assert np.array_equal(batch.rows, again.rows) and np.array_equal(batch.copies, again.copies)
    assert 25 <= lone <= 75  # 30% of 160


def test_identities() -> None:
    labels = np.repeat(np.arange(10), 3)
    batch = Sampler(labels, copies=0, seed=0).identities(7, 12)
    assert len(batch.rows) == 12 and len(set(batch.labels.tolist())) == 6
    assert (batch.labels[0::2] == batch.labels[1::2]).all() and (
        batch.rows[0::2] != batch.rows[1::2]
    ).all()
    assert not batch.copies.any()
    with pytest.raises(UserError, match="No two training images"):
        Sampler(np.arange(5), copies=0, seed=0)
    assert len(Sampler(np.arange(5), copies=1, seed=0).identities(0, 4).rows) == 4


def test_average_precision_is_scikit_learns() -> None:
    hits = RNG.random((20, 50)) < 0.2
    falling = -np.arange(50)
    expected = [average_precision_score(row, falling) for row in hits]
    assert np.allclose(average_precisions(hits), expected, atol=1e-12)
    assert np.isnan(average_precisions(np.zeros((1, 4), bool))[0])


def test_figures_by_hand() -> None:
    gallery = np.array([0, 1, 0, 1, 2])
    order = np.array([[1, 0, 2, 3, 4], [4, 3, 2, 1, 0]])
    result = figures(order, np.array([0, 1]), gallery, at=(1, 2, 3))
    mean = ((1 / 2 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2
    assert result == pytest.approx({"map": mean, "recall_1": 0.0, "recall_2": 1.0, "recall_3": 1.0})
    # A query of the gallery is no hit of its own, and one without another of its product does not
    # count.
    own = np.array([0, 4])
    descriptors = np.eye(5, dtype=np.float32)
    order = rank(descriptors[own], descriptors, own)
    assert order[0].tolist() == [1, 2, 3, 4, 0]
    assert figures(order, gallery[own], gallery, own, at=(1, 2)) == {
        "map": 0.5,
        "recall_1": 0.0,
        "recall_2": 1.0,
    }


def test_reranking_is_a_permutation_of_the_top() -> None:
    config = ProductsConfig(map_channels=8, d_model=16, feedforward=16, layers=2)
    torch.manual_seed(0)
    matcher = MapMatcher(config).eval()
    queries, gallery = torch.randn(3, 16, 2, 2), torch.randn(12, 16, 2, 2)
    order = np.stack([RNG.permutation(12) for _ in range(3)])
    logits = score(matcher, queries, gallery, order[:, :7], batch=3)
    with torch.no_grad():
        expected = [
            float(matcher(queries[1:2], gallery[order[1, 4]][None])),
            float(matcher(queries[2:], gallery[order[2, 6]][None])),
        ]
    assert np.allclose([logits[1, 4], logits[2, 6]], expected, atol=1e-5)
    again = reordered(order, logits)
    assert np.array_equal(np.sort(again[:, :7]), np.sort(order[:, :7])) and np.array_equal(
        again[:, 7:], order[:, 7:]
    )
    labels = RNG.integers(0, 3, 12)
    asked = np.array([0, 1, 2])
    assert (
        figures(order, asked, labels, at=(7,))["recall_7"]
        == figures(again, asked, labels, at=(7,))["recall_7"]
    )
    by_logit = [dict(zip(o, s, strict=True)) for o, s in zip(order[:, :7], logits, strict=True)]
    for number in range(3):
        ranked = [by_logit[number][place] for place in again[number, :7]]
        assert ranked == sorted(ranked, reverse=True)
