"""Backbones of timm as extractors, against timm's own features, numpy and scikit-learn.

Weights are random ones.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.numpy import load, save
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from rrt_core.extractors import Description, Failure, create
from rrt_core.extractors.projection import Projection, Whitening
from rrt_core.extractors.timm.cell_grid import CellGrid, grid_of, watch
from rrt_core.images import Image, decode
from schemas.errors import UserError

timm = pytest.importorskip("timm", reason="needs the package timm (the extra of that name)")
from rrt_core.extractors.timm import extractor as timm_extractor  # noqa: E402
from rrt_core.extractors.timm.extractor import Timm  # noqa: E402
from rrt_core.extractors.timm.network import TimmNetwork  # noqa: E402

RESNET, CONVNEXT, VIT, SWIN = (
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)
ATOL = 2e-5  # of unit vectors: float32 on both sides, sums in another order


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(model: str, **options: Any) -> Timm:
    """An extractor with random weights unless told otherwise."""
    options = {"weights": "random", "sizes": [160, 96], "device": "cpu", **options}
    extractor = create(f"timm:{model}", **options)
    assert isinstance(extractor, Timm)
    return extractor


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Blocks of colour at several sizes."""
    generator = np.random.default_rng(seed)
    coarse, fine = (generator.integers(0, 256, (side, side, 3), np.uint8) for side in (5, 23))
    layers = [
        cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in (coarse, fine)
    ]
    return cv2.addWeighted(layers[0], 0.6, layers[1], 0.4, 0)


def image(
    width: int, height: int, seed: int = 0, origin: tuple[float, float] = (0.0, 0.0)
) -> Image:
    return Image(f"{width}x{height}-{seed}", picture(width, height, seed), width, height, origin)


def described(extractor: Timm, one: Image) -> Description:
    answer = extractor.describe([one])[0]
    assert isinstance(answer, Description)
    return answer


def as_bytes(description: object) -> tuple[bytes, ...]:
    assert isinstance(description, Description)
    return tuple(array.tobytes() for array in vars(description).values())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """Of each model: timm's own network with its classifier, and the file of its weights."""
    result = {}
    for number, name in enumerate((RESNET, CONVNEXT, VIT, SWIN)):
        torch.manual_seed(100 + number)
        options = {"dynamic_img_size": True} if name in (VIT, SWIN) else {}
        network = timm.create_model(name, pretrained=False, **options).eval()
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(network.state_dict(), path)
        result[name] = (network, str(path))
    return result


def normalised(pixels: np.ndarray, network: Any) -> torch.Tensor:
    mean, deviation = (np.array(network.pretrained_cfg[key]) for key in ("mean", "std"))
    x = (pixels / 255.0 - mean) / deviation
    return torch.from_numpy(x.transpose(2, 0, 1)[None]).float()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_device_and_group_are_in_the_recipe_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of a GPU depend on them. The network itself stays on the CPU here."""
    plain = made(RESNET)
    assert not {"device", "group"} & set(plain.config)
    cpu = torch.device("cpu")
    here = lambda name, **given: TimmNetwork(name, **{**given, "device": cpu})  # noqa: E731
    monkeypatch.setattr(timm_extractor, "TimmNetwork", here)
    monkeypatch.setattr(timm_extractor, "choose_device", torch.device)
    grouped = made(RESNET, device="cuda")
    assert grouped.config == {**plain.config, "device": "gpu", "group": grouped.batch}
    images = [image(120, 90, seed) for seed in range(3)]
    for one, other in zip(plain.describe(images), grouped.describe(images), strict=True):
        assert isinstance(one, Description) and isinstance(other, Description)
        np.testing.assert_allclose(other.global_descriptor, one.global_descriptor, atol=ATOL)


# Globals and locals


@pytest.mark.parametrize(
    ("name", "pooling"),
    [(RESNET, "gem"), (CONVNEXT, "gem"), (SWIN, "gem"), (VIT, "cls"), (VIT, "gem"), (VIT, "model")],
)
def test_globals_are_timms_features_pooled(
    published: dict[str, Any], name: str, pooling: str
) -> None:
    network, path = published[name]
    extractor = made(name, weights=path, pooling=pooling)
    one = image(200, 140)
    expected = np.zeros(extractor.global_dim)
    for side in (160, 96):
        height = side * 140 / 200
        if extractor.network.multiple > 1:
            height = round(height / extractor.network.multiple) * extractor.network.multiple
        copy = cv2.resize(one.pixels, (side, round(height)), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            features = network.forward_features(normalised(copy, network))
            if pooling == "model":
                pooled = network.forward_head(features, pre_logits=True)[0].double().numpy()
            elif pooling == "cls":
                pooled = features[0, 0].double().numpy()
            else:
                tokens = {VIT: lambda f: f[0, 1:], SWIN: lambda f: f[0].flatten(0, 1)}.get(name)
                rows = (tokens(features) if tokens else features[0].flatten(1).T).double().numpy()
                pooled = (np.maximum(rows, 1e-6) ** 3).mean(0) ** (1 / 3)
        expected += unit(pooled)
    got = described(extractor, one).global_descriptor
    np.testing.assert_allclose(got, unit(expected), atol=ATOL)


def expected_map(network: Any, name: str, x: torch.Tensor, feature: int) -> torch.Tensor:
    """The map [C, h, w] by another road of timm than ours."""
    with torch.inference_mode():
        if name == VIT:
            return network.get_intermediate_layers(x, n=[feature], reshape=True, norm=True)[0][0]
        seen: list[torch.Tensor] = []
        module = network.get_submodule(network.feature_info[feature]["module"])
        hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
        network(x)
        hook.remove()
        return seen[0]


@pytest.mark.parametrize(
    ("name", "feature", "chosen"),
    [(RESNET, None, 3), (RESNET, 2, 2), (CONVNEXT, None, 2), (VIT, None, 11), (VIT, 7, 7)],
)
def test_locals_are_the_strongest_cells(
    published: dict[str, Any], name: str, feature: int | None, chosen: int
) -> None:
    network, path = published[name]
    extractor = made(name, weights=path, feature=feature, max_locals=50, order="strength")
    assert extractor.network.feature == chosen == extractor.config["feature"]
    one = image(160, 96)
    cells = []
    for scale, (width, height) in enumerate(
        [(160, 96), (96, 64 if extractor.network.multiple > 1 else 58)]
    ):
        copy = one.pixels
        if scale:
            copy = cv2.resize(copy, (width, height), interpolation=cv2.INTER_AREA)
        maps = expected_map(network, name, normalised(copy, network), chosen).double().numpy()
        for row, column in np.ndindex(maps.shape[1:]):
            vector = maps[:, row, column]
            cells.append((-np.linalg.norm(vector), scale, unit(vector), row, column))
    cells.sort(key=lambda cell: cell[0])
    got = described(extractor, one)
    assert got.descriptors.shape == (50, extractor.local_dim)
    np.testing.assert_allclose(got.strength, [-cell[0] for cell in cells[:50]], rtol=1e-4)
    alike = np.sum(got.descriptors[:, None] * np.stack([cell[2] for cell in cells])[None], axis=2)
    # Strengths of a transformer lie close together: each local is one of the cells, and none is
    # there twice.
    match = alike.argmax(axis=1)
    assert alike.max(axis=1).min() > 1 - 1e-5 and len(set(match)) == 50
    assert np.abs(match - np.arange(50)).max() <= (10 if name == VIT else 0)
    assert (got.scale == [cells[place][1] for place in match]).all()


# Places


def support(network: Any, run: Any, x: torch.Tensor, cell: tuple[int, int]) -> tuple[float, float]:
    """The middle of the input pixels that a cell of a map depends on, row and column, the first
    covering 0..1.
    """
    x = x.clone().requires_grad_(True)
    run(x)[0, :, cell[0], cell[1]].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    rows, columns = (np.flatnonzero(seen.any(axis).numpy()) for axis in (1, 0))
    return (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2


@pytest.mark.parametrize(
    ("name", "feature", "side"),
    [
        ("resnet18", 2, 224),
        ("resnet18", 2, 197),
        ("tf_efficientnet_lite0", 2, 224),
        ("tf_efficientnet_lite0", 2, 225),
    ],
)
def test_cells_lie_in_the_middle_of_what_they_see(name: str, feature: int, side: int) -> None:
    # Weights that are all positive and no saturation: the gradient is not zero wherever there is a
    # path.
    network = timm.create_model(name, num_classes=0).double().eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 1e-2)
    for module in network.modules():
        if isinstance(module, torch.nn.Hardtanh):
            module.max_val = 1e300
    if name == "resnet18":
        network.maxpool = torch.nn.AvgPool2d(3, 2, 1)
    kinds = {torch.nn.ReLU6: torch.nn.ReLU}
    for parent in list(network.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child) in kinds:
                setattr(parent, child_name, kinds[type(child)]())

    def run(x: torch.Tensor) -> torch.Tensor:
        return network.forward_intermediates(x, indices=[feature], intermediates_only=True)[0]

    x = torch.ones(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        cells = run(x).shape[-1]
        grid = grid_of(watch(network, lambda: run(x)), side, cells)
    assert grid.layers and grid.stride == 8
    middle = cells // 2
    expected = support(network, run, x, (middle, middle + 1))
    centres = grid.centres(side, cells)
    np.testing.assert_allclose(centres[[middle, middle + 1]], expected, atol=1e-9)


@pytest.mark.parametrize("name", [RESNET, CONVNEXT, VIT, SWIN, "densenet121"])
def test_a_bright_blob_is_found_where_it_was_planted(name: str) -> None:
    # Enlarged, shrunk, and cropped out of a larger original: places count in the original's pixels.
    extractor = made(name, sizes=[192], max_locals=4000, feature=2 if name == VIT else None)
    for (width, height), origin in (((384, 256), (0.0, 0.0)), ((300, 470), (37.0, 90.0))):
        for x, y in ((0.25 * width, 0.3 * height), (0.7 * width, 0.6 * height)):
            plain = np.full((height, width, 3), 110, np.uint8)
            blob = cv2.circle(plain.copy(), (int(x), int(y)), 14, (255, 255, 255), -1)
            result = []
            for pixels in (plain, blob):
                with torch.inference_mode():
                    kept = next(extractor.kept([Image("b", pixels, 600, 600, origin)]))
                result.append(
                    {tuple(place): cell for place, cell in zip(kept.xy, kept.cells, strict=True)}
                )
            difference = {
                place: float((result[1][place] - result[0][place]).norm()) for place in result[1]
            }
            best = max(difference, key=lambda place: difference[place])
            away = np.hypot(best[0] - origin[0] - x, best[1] - origin[1] - y)
            assert (
                away <= 0.75 * 16 * max(width, height) / 192
            )  # half a cell's diagonal, in the original


def test_evenly_spread_cells_where_layers_are_no_windows() -> None:
    grid = made(SWIN).network.grid
    assert grid == CellGrid(16, ()) and grid.cuts
    np.testing.assert_allclose(grid.centres(64, 4), [8, 24, 40, 56])


def test_places_of_a_jpeg_decoded_smaller() -> None:
    file = io.BytesIO()
    PillowImage.fromarray(cv2.GaussianBlur(picture(1411, 1003), (9, 9), 0)).save(
        file, "JPEG", quality=95
    )
    extractor = made(RESNET, sizes=[160], max_locals=4000)
    assert extractor.largest_side == 160
    full = described(extractor, decode(file.getvalue(), "f"))
    smaller = decode(file.getvalue(), "s", largest_side=extractor.largest_side)
    assert smaller.reduction == 4
    small = described(extractor, smaller)
    assert full.global_descriptor @ small.global_descriptor > 0.99
    order = [np.lexsort((one.xy[:, 0].round(-1), one.xy[:, 1].round(-1))) for one in (full, small)]
    assert (
        np.abs(full.xy[order[0]] - small.xy[order[1]]).max() <= 3
    )  # of 1,411: what the last pixel spans beyond it


# The contract


@pytest.mark.parametrize("name", [RESNET, CONVNEXT, VIT, SWIN])
def test_a_description_keeps_its_promises(name: str) -> None:
    extractor = made(name, max_locals=70)
    for one in (image(400, 300), image(10, 10), image(900, 40), image(50, 60, origin=(20.0, 30.0))):
        got = described(extractor, one)
        count = len(got.xy)
        assert 0 < count <= 70 and got.descriptors.shape == (count, extractor.local_dim)
        assert got.global_descriptor.shape == (extractor.global_dim,)
        assert np.linalg.norm(got.global_descriptor) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(np.linalg.norm(got.descriptors, axis=1), 1, atol=1e-5)
        assert (got.scale < len(extractor.scales)).all()
        dtypes = [array.dtype for array in vars(got).values()]
        assert dtypes == [np.float32, np.float32, np.float32, np.uint8, np.float32]
        low, high = (
            one.origin,
            (one.origin[0] + one.pixels.shape[1], one.origin[1] + one.pixels.shape[0]),
        )
        assert ((got.xy >= low) & (got.xy <= high)).all()


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_the_same_bytes_alone_and_in_company(name: str) -> None:
    extractor = made(name)
    images = [image(320, 240, 1), image(320, 240, 2), image(200, 320, 3), image(320, 240, 4)]
    together = [as_bytes(answer) for answer in extractor.describe(images)]
    assert [as_bytes(described(extractor, one)) for one in images] == together
    assert [as_bytes(answer) for answer in extractor.describe(images[::-1])] == together[::-1]
    for alone, full in zip(
        extractor.describe_globals(images), extractor.describe(images), strict=True
    ):
        assert isinstance(alone, Description) and isinstance(full, Description)
        assert alone.global_descriptor.tobytes() == full.global_descriptor.tobytes()
        assert alone.descriptors.shape == (0, extractor.local_dim)
    again = made(name)
    assert as_bytes(described(again, images[2])) == together[2]
    assert (again.weights_sha256, again.config) == (extractor.weights_sha256, extractor.config)
    assert extractor.describe([]) == [] == extractor.describe_globals([])


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_batches_of_equal_sizes_are_the_same_descriptions(name: str) -> None:
    # What is done on a GPU, done here: equal up to the last bits.
    extractor = made(name, max_locals=4000)
    images = [
        image(320, 240, 1),
        image(200, 320, 3),
        image(320, 240, 2),
        image(90, 90, 4),
        image(320, 240, 5),
    ]
    alone = extractor.describe(images)
    extractor._batched = True
    for left, right in zip(alone, extractor.describe(images), strict=True):
        assert isinstance(left, Description) and isinstance(right, Description)
        np.testing.assert_allclose(left.global_descriptor, right.global_descriptor, atol=ATOL)
        np.testing.assert_allclose(left.strength, right.strength, rtol=1e-4)
        order = [np.lexsort((*one.xy.T, one.scale)) for one in (left, right)]
        np.testing.assert_array_equal(left.xy[order[0]], right.xy[order[1]])
        np.testing.assert_allclose(
            left.descriptors[order[0]], right.descriptors[order[1]], atol=10 * ATOL
        )


def test_values_that_are_not_finite_are_a_failure() -> None:
    extractor = made(RESNET)
    torch.nn.init.constant_(extractor.network._network.layer4[1].bn2.bias, float("nan"))
    for answer in (
        *extractor.describe([image(50, 50)]),
        *extractor.describe_globals([image(50, 50)]),
    ):
        assert isinstance(answer, Failure) and answer.error_class == "not_finite"


# Weights


def test_weights_of_every_file_are_one_identity(published: dict[str, Any], tmp_path: Path) -> None:
    network, path = published[RESNET]
    state = network.state_dict()
    for number, content in enumerate(
        (state, {"state_dict": {f"module.{name}": value for name, value in state.items()}})
    ):
        torch.save(content, tmp_path / f"{number}.pth")
    extractors = [
        made(RESNET, weights=one)
        for one in (path, str(tmp_path / "0.pth"), str(tmp_path / "1.pth"))
    ]
    assert len({extractor.weights_sha256 for extractor in extractors}) == 1
    assert (
        len(
            {
                described(extractor, image(80, 80)).global_descriptor.tobytes()
                for extractor in extractors
            }
        )
        == 1
    )
    assert made(RESNET).weights_sha256 != extractors[0].weights_sha256


def test_random_weights_touch_no_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made(RESNET)
    assert torch.rand(1) == expected


def test_files_of_other_origins_are_converted_by_timm(tmp_path: Path) -> None:
    # The names of DINOv2's own files: a class token and positions for it, a mask token that timm
    # leaves out.
    extractor_options = {"sizes": [112], "max_locals": 20}
    torch.manual_seed(3)
    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    save_file(state, tmp_path / "timm.safetensors")
    result = [
        made("vit_small_patch14_dinov2", weights=str(tmp_path / name), **extractor_options)
        for name in ("dinov2.pth", "timm.safetensors")
    ]
    assert result[0].weights_sha256 == result[1].weights_sha256 and result[0].network.multiple == 14


def test_wrong_weights_are_refused(published: dict[str, Any], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    state = published[RESNET][0].state_dict()
    files = {
        r"1 tensors are missing, such as layer4\.0\.conv1\.weight": {
            name: value for name, value in state.items() if name != "layer4.0.conv1.weight"
        },
        r"1 tensors are unknown, such as layer9\.weight": state | {"layer9.weight": torch.zeros(1)},
        "has the shape": {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
        r"plain torch checkpoint of tensors alone \(UnpicklingError\)": {"conv1.weight": Trap()},
        "are no state dict: give tensors": [1, 2],
    }
    for message, content in files.items():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=message):
            made(RESNET, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="neither a safetensors file nor"):
        made(RESNET, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        made(RESNET, weights=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="not those of timm's model"):
        made("resnet34", weights=published[RESNET][1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet18", {}, "name a local file by the option weights, or give pretrained=true"),
        ("timm:resnet18", {"weights": "random", "pretrained": True}, "exclude each other"),
        ("timm:resnet18", {"weights": "random", "pretrained": "yes"}, "true or false"),
        ("timm:resnet81", {"weights": "random"}, "did you mean resnet18"),
        ("timm:qqqqqqqqq", {"weights": "random"}, "list_models"),
        ("timm:resnet18.nope", {"weights": "random"}, "Invalid pretrained tag"),
        ("timm:hf-hub:someone/something", {"weights": "random"}, "needs the option pretrained"),
        ("timm:mixer_s16_224", {"weights": "random"}, "pictures of any size"),
        (
            "timm:resnet18",
            {"weights": "random", "feature": 5},
            r"option feature is 5.* 3 \(256 channels, stride 16\)",
        ),
        ("timm:resnet18", {"weights": "random", "feature": "x"}, "option feature"),
        ("timm:resnet18", {"weights": "random", "pooling": "cls"}, "no class token"),
        ("timm:resnet18", {"weights": "random", "pooling": "mean"}, "option pooling"),
        ("timm:resnet18", {"weights": "random", "sizes": [10]}, "option sizes"),
        ("timm:resnet18", {"weights": "random", "device": "tpu"}, "device"),
        ("timm:resnet18", {"weights": "random", "projection": "no/such"}, "option 'projection'"),
        ("timm:resnet18", {"weights": "random", "model": "resnet34"}, "no option 'model'"),
        ("timm:", {}, "timm:NAME"),
        ("timm", {}, "timm:NAME"),
    ],
)
def test_mistakes_are_told_in_a_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create(name, **options)
    assert "\n" not in str(caught.value)


def test_without_network_a_download_fails_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("resnet18", "hf-hub:someone/something"):
        with pytest.raises(UserError, match="cannot be had .* check the network") as caught:
            create(f"timm:{name}", pretrained=True)
        assert "\n" not in str(caught.value)


def test_where_timm_is_absent_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="RRT_EXTRAS=timm"):
        create("timm:resnet18", weights="random")


# Projections


def test_whitening_is_scikit_learns_pca() -> None:
    generator = np.random.default_rng(0)
    cells = generator.normal(size=(4000, 12)) @ generator.normal(size=(12, 12)) + generator.normal(
        size=12
    )
    gathered = Whitening(12)
    for piece in np.array_split(cells.astype(np.float32), 7):
        gathered.add(piece)
    mean, matrix = gathered.solve(5)
    directions = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    reference = PCA(5, whiten=True, svd_solver="full").fit(directions)
    expected = reference.transform(directions)
    got = (directions - mean) @ matrix
    signs = np.sign((got * expected).sum(0))
    np.testing.assert_allclose(got * signs, expected, atol=1e-4)
    assert (matrix[np.abs(matrix).argmax(0), np.arange(5)] > 0).all()
    projected = Projection(torch.from_numpy(mean), torch.from_numpy(matrix))(
        torch.from_numpy(cells[:50]).float()
    )
    by_hand = got[:50] / np.linalg.norm(got[:50], axis=1, keepdims=True)
    np.testing.assert_allclose(projected.numpy(), by_hand, atol=1e-4)


@pytest.mark.parametrize(
    ("cells", "dimensions", "message"),
    [(50, 13, "at most 12"), (9, 5, "too few"), (60, 9, "fewer")],
)
def test_what_cannot_be_whitened_is_refused(cells: int, dimensions: int, message: str) -> None:
    gathered = Whitening(12)
    few = np.random.default_rng(0).normal(size=(cells, 6)).astype(np.float32)
    gathered.add(np.concatenate([few, np.zeros((cells, 6), np.float32)], axis=1))
    with pytest.raises(UserError, match=message):
        gathered.solve(dimensions)


def test_the_script_makes_a_projection_that_the_extractor_takes(
    tmp_path: Path, capsys: Any
) -> None:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "making" / "make_projection.py"
    spec = importlib.util.spec_from_file_location("make_projection", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    sys.modules["make_projection"] = script
    spec.loader.exec_module(script)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        PillowImage.fromarray(picture(300, 200, number)).save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    options = ["--option", "weights=random", "--option", "sizes=160,96", "--option", "device=cpu"]
    before = torch.get_num_threads()
    for out in ("first", "again"):
        script.main(
            [
                "timm:resnet18",
                *options,
                "--photos",
                str(photos),
                "--out",
                str(tmp_path / out),
                "--dimensions",
                "32",
            ]
        )
    torch.set_num_threads(before)
    assert "256 -> 32 dimensions" in capsys.readouterr().out
    first, again = (load((tmp_path / out).read_bytes()) for out in ("first", "again"))
    assert all(first[name].tobytes() == again[name].tobytes() for name in ("mean", "projection"))
    raw, projected = made(RESNET), made(RESNET, projection=str(tmp_path / "first"))
    assert (raw.local_dim, projected.local_dim) == (
        256,
        32,
    ) and raw.weights_sha256 != projected.weights_sha256
    photographs = [decode((photos / f"{number}.png").read_bytes(), "p") for number in range(8)]
    whole = np.concatenate([described(raw, one).descriptors for one in photographs])
    reference = PCA(32, whiten=True, svd_solver="full").fit(whole).transform(whole)
    got = np.concatenate([described(projected, one).descriptors for one in photographs])
    expected = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    signs = np.sign((got * expected).sum(0))
    np.testing.assert_allclose(got * signs, expected, atol=1e-3)
    with pytest.raises(SystemExit, match="no folder|There is no"):
        script.main(
            [
                "timm:resnet18",
                *options,
                "--photos",
                str(tmp_path / "none"),
                "--out",
                str(tmp_path / "x"),
            ]
        )
    sys.modules.pop("make_projection")


def test_projections_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    fine = {"mean": np.zeros(256, np.float32), "projection": np.eye(256, 8, dtype=np.float32)}
    wrong = (
        (b"nothing", "is no projection"),
        (save({"mean": fine["mean"]}), "is no projection"),
        (
            save({"mean": np.zeros(9, np.float32), "projection": np.zeros((9, 2), np.float32)}),
            "has 256",
        ),
        (save({**fine, "mean": np.full(256, np.nan, np.float32)}), "not finite"),
    )
    for content, message in wrong:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            made(RESNET, projection=str(path))
    path.write_bytes(save(fine))
    assert made(RESNET, projection=str(path)).local_dim == 8
