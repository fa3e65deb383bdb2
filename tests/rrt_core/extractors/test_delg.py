"""DELG in torch: TensorFlow's arithmetic in numpy beside it, the promises of the contract, and
mistakes.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from rrt_core.extractors import Description, Failure, create
from rrt_core.extractors.delg import extractor as module
from rrt_core.extractors.delg.extractor import (
    IMAGE_SCALES,
    THRESHOLDS,
    Delg,
    field_centres,
    resize,
    scaled,
    strongest,
)
from rrt_core.extractors.delg.network import (
    BLOCK3,
    EPSILON,
    KERAS,
    SLIM,
    UNITS,
    Architecture,
    DelgNetwork,
    NormalisedConvolution,
    load_network,
    pad_same,
    tensor_shapes,
    weights_file,
)
from rrt_core.images import Image
from schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(layout: str = KERAS, **changes: Any) -> Architecture:
    sizes: dict[str, Any] = {
        "units": (1, 2, 2, 1),
        "width": 8,
        "attention_dim": 16,
        "local_dim": 12,
        "global_dim": 24,
    }
    return Architecture(**{**sizes, "layout": layout, **changes})


def random_tensors(architecture: Architecture, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    made: dict[str, Floats] = {}
    for name, shape in tensor_shapes(architecture).items():
        if len(shape) > 1:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("variance", "gamma")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.2, shape)
        made[name] = values.astype(np.float32)
    return made


def written(folder: Path, architecture: Architecture, threshold: float = 0.0) -> str:
    a = architecture
    path = folder / f"{a.layout}{a.local_stride}{a.attention_input}.safetensors"
    path.write_bytes(weights_file(random_tensors(architecture), architecture, threshold, "random"))
    return str(path)


@pytest.fixture(scope="module", params=[KERAS, SLIM])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("delg"), small(request.param))


def picture(width: int, height: int, seed: int = 0, **changes: Any) -> Image:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3)), np.ones((9, 9, 1)))
    pixels = np.clip(
        coarse[:height, :width] + rng.normal(0, 12, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    return Image(
        **{"record_id": "p", "pixels": pixels, "width": width, "height": height, **changes}
    )


def described(answer: Description | Failure) -> Description:
    assert isinstance(answer, Description), answer
    return answer


def same(a: Description, b: Description) -> bool:
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("global_descriptor", "descriptors", "xy", "scale", "strength")
    )


# TensorFlow's arithmetic -------------------------------------------------------------------------


def convolved(x: Floats, kernel: Floats, stride: int, before: int, outputs: int) -> Floats:
    """Brute force: output o looks at inputs o * stride - before + k; what lies outside is zero. One
    channel.
    """
    side = kernel.shape[0]
    made = np.zeros((outputs, outputs), np.float64)
    for row, column in itertools.product(range(outputs), repeat=2):
        for i, j in itertools.product(range(side), repeat=2):
            y, z = row * stride - before + i, column * stride - before + j
            if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
                made[row, column] += x[y, z] * kernel[i, j]
    return made.astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 13])
@pytest.mark.parametrize(("side", "stride"), [(7, 2), (3, 2), (3, 1)])
def test_padding_is_tensorflows(n: int, side: int, stride: int) -> None:
    """tf.nn.convolution's documentation: total = max((ceil(n / s) - 1) s + k - n, 0), the odd rest
    behind.
    """
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, n)).astype(np.float32)
    kernel = rng.standard_normal((side, side)).astype(np.float32)
    outputs = -(-n // stride)
    total = max((outputs - 1) * stride + side - n, 0)
    layer = NormalisedConvolution(1, 1, side, stride, EPSILON[KERAS], KERAS)
    layer.weight = torch.nn.Buffer(torch.from_numpy(kernel)[None, None])
    layer.variance = torch.nn.Buffer(torch.tensor([1.0 - EPSILON[KERAS]]))
    layer.fold()
    ours = layer(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(ours, convolved(x, kernel, stride, total // 2, outputs), atol=1e-5)
    assert pad_same(torch.zeros(1, 1, n, n), side, stride).shape[2] == n + total


def test_slim_pads_alike_on_both_sides() -> None:
    """resnet_utils.conv2d_same: (k - 1) // 2 before, the rest behind, then no padding."""
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    layer = NormalisedConvolution(1, 1, 3, 2, EPSILON[SLIM], SLIM)
    layer.weight = torch.nn.Buffer(torch.ones(1, 1, 3, 3))
    layer.fold()
    ours = layer(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(
        ours, convolved(x, np.ones((3, 3), np.float32), 2, 1, 4), rtol=1e-4, atol=1e-5
    )


def test_folding_is_the_normalisation() -> None:
    rng = np.random.default_rng(1)
    layer = NormalisedConvolution(3, 5, 1, 1, 1e-3, KERAS)
    for name in ("weight", "bias", "gamma", "beta", "mean"):
        layer.get_buffer(name).copy_(
            torch.from_numpy(rng.standard_normal(layer.get_buffer(name).shape))
        )
    layer.variance.copy_(torch.from_numpy(rng.uniform(0.1, 2, 5)))
    x = torch.from_numpy(rng.standard_normal((1, 3, 4, 4)).astype(np.float32))
    plain = F.batch_norm(
        F.conv2d(x, layer.weight, layer.bias),
        layer.mean,
        layer.variance,
        layer.gamma,
        layer.beta,
        eps=1e-3,
    )
    layer.fold()
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", IMAGE_SCALES)
def test_resizing_is_tensorflows(scale: float) -> None:
    """tf.image.resize: half-pixel centres, two neighbours a side, no smoothing; sides rounded half
    to even.
    """
    x = np.random.default_rng(2).uniform(-1, 1, (13, 22)).astype(np.float32)
    sides = [int(np.round(np.float32(n) * np.float32(scale))) for n in x.shape]
    expected = x.astype(np.float64)
    for axis, side in enumerate(sides):
        at = (np.arange(side) + 0.5) * x.shape[axis] / side - 0.5
        low = np.floor(at)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        first = expected.take(np.clip(low, 0, x.shape[axis] - 1).astype(int), axis)
        second = expected.take(np.clip(np.ceil(at), 0, x.shape[axis] - 1).astype(int), axis)
        expected = first * (1 - share) + second * share
    ours = scaled(torch.from_numpy(x)[None, None].repeat(1, 3, 1, 1), scale)[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_sides_that_end_in_a_half_are_rounded_to_even() -> None:
    assert scaled(torch.zeros(1, 3, 10, 14), 0.25).shape[2:] == (2, 4)


def test_pictures_are_only_shrunk_and_by_pil() -> None:
    large = picture(300, 200).pixels
    assert resize(large, 300.0) is large and resize(large, 1024.0) is large
    assert resize(large, 100.0).shape == (67, 100, 3)


def test_centres_are_those_of_the_boxes() -> None:
    """CalculateReceptiveBoxes: [-145, 145] about stride * place, over the scale; float32 rounding
    as there.
    """
    places = np.array([[0, 0], [3, 5]])
    assert field_centres(places, 32.0, 0.5).tolist() == [[0.0, 0.0], [192.0, 320.0]]
    assert field_centres(places, 16.0, 2.0).tolist() == [[0.0, 0.0], [24.0, 40.0]]
    odd = field_centres(places, 32.0, 0.35355338)
    np.testing.assert_allclose(odd[1], np.array([96, 160]) / 0.35355338, rtol=1e-6)


def test_the_strongest_come_first_and_equals_in_order() -> None:
    strength = np.array([1, 5, 3, 5, 3, 2], np.float32)
    assert strongest(strength, 10).tolist() == [1, 3, 2, 4, 5, 0]
    assert strongest(strength, 3).tolist() == [1, 3, 2]


def test_thresholds_of_the_published_models() -> None:
    assert THRESHOLDS == {
        "r50delg_gld": 175.0,
        "r101delg_gld": 166.1,
        "r50delg_gldv2clean": 454.6,
        "r101delg_gldv2clean": 357.48,
    }


# The network -------------------------------------------------------------------------------------


def test_sizes_of_the_published_networks() -> None:
    """ResNet-50 without its classifier has 23,508,032 weights (torchvision's, which has no biases
    beside BN's).
    """
    for depth, expected in ((50, 23_508_032), (101, 42_500_160)):
        shapes = tensor_shapes(Architecture(units=UNITS[depth]))
        own = {name: shape for name, shape in shapes.items() if name.startswith(("stem", "stage"))}
        counted = sum(
            int(np.prod(shape))
            for name, shape in own.items()
            if not name.endswith((".bias", ".mean", ".variance"))
        )
        assert counted == expected
        assert shapes["embedding.weight"] == (2048, 2048) and shapes["reduce.weight"] == (
            128,
            1024,
            1,
            1,
        )
        assert shapes["attention.weight"] == (512, 1024, 1, 1) and shapes["score.weight"] == (
            1,
            512,
            1,
            1,
        )


@pytest.mark.parametrize(
    ("architecture", "side", "places"),
    [
        (small(), 256, 8),  # 256 / 2 = 128, pool without padding 63, 32, 16, every second: 8
        (small(block3_strides=False), 256, 16),
        (small(SLIM), 256, 8),
        (small(SLIM), 257, 9),  # 129, 65, 33, 17, 9
        (small(), 257, 8),  # 129, 64, 32, 16, 8
    ],
)
def test_places_of_the_local_map(architecture: Architecture, side: int, places: int) -> None:
    network = DelgNetwork(architecture).eval()
    for part in network.modules():
        if isinstance(part, NormalisedConvolution):
            part.fold()
    block3 = network.trunk(torch.zeros(1, 3, side, side))
    assert block3 is not None and block3.shape == (1, 128, places, places)


def test_gem_and_whitening_in_closed_form(weights: str) -> None:
    network = load_network(Path(weights).read_bytes(), "w").network
    block3 = torch.rand(1, 128, 3, 4)
    deep = network.stage4(block3)[0].double().clamp(min=1e-6)
    pooled = (deep**3).mean((1, 2)) ** (1 / 3)
    expected = pooled @ network.embedding.weight.double().T + network.embedding.bias.double()
    torch.testing.assert_close(
        network.global_descriptors(block3)[0].double(), expected, rtol=1e-5, atol=1e-5
    )


def test_attention_looks_where_the_file_says(tmp_path: Path) -> None:
    made = [
        create("delg", weights=written(tmp_path, small(attention_input=seen)))
        for seen in ("expanded", BLOCK3)
    ]
    first, second = (described(extractor.describe([picture(120, 90)])[0]) for extractor in made)
    assert len(first.strength) == len(second.strength) and not np.array_equal(
        first.strength, second.strength
    )


# The extractor's promises ------------------------------------------------------------------------


def test_descriptions_keep_the_contract(weights: str) -> None:
    extractor = create("delg", weights=weights, max_locals=20)
    answer = described(extractor.describe([picture(200, 140)])[0])
    assert extractor.scales == IMAGE_SCALES and extractor.config["threshold"] == 0.0
    assert len(answer.strength) == 20 and (np.diff(answer.strength) <= 0).all()
    assert answer.global_descriptor.shape == (24,) and answer.descriptors.shape == (20, 12)
    for rows in (answer.descriptors, answer.global_descriptor[None]):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert answer.xy.dtype == np.float32 and answer.scale.dtype == np.uint8
    assert (answer.xy >= 0).all() and (answer.xy <= [200, 140]).all()


def test_alone_and_among_others_the_same_bytes(weights: str) -> None:
    extractor = create("delg", weights=weights, device="cpu")
    images = [picture(90, 60), picture(61, 95, 1), picture(90, 60, 2)]
    together = [described(answer) for answer in extractor.describe(images)]
    for image, answer in zip(images, together, strict=True):
        assert same(described(extractor.describe([image])[0]), answer)
    for answer, alone in zip(together, extractor.describe_globals(images), strict=True):
        own = described(alone)
        assert own.global_descriptor.tobytes() == answer.global_descriptor.tobytes()
        assert own.descriptors.shape == (0, 12) and own.xy.shape == (0, 2)


def test_a_group_on_a_gpu_is_close_to_one_alone(weights: str) -> None:
    """Run on the CPU here: the grouping itself, whose bits a GPU alone may change."""
    extractor = create("delg", weights=weights, device="cpu")
    assert isinstance(extractor, Delg)
    images = [picture(90, 60, seed) for seed in range(3)] + [picture(60, 90, 3)]
    alone = [described(answer) for answer in extractor.describe(images)]
    extractor.batch = 2
    for a, b in zip(alone, extractor.describe(images), strict=True):
        np.testing.assert_allclose(a.global_descriptor, described(b).global_descriptor, atol=1e-5)
        assert set(map(tuple, a.xy)) == set(map(tuple, described(b).xy))


def test_a_crop_is_shrunk_as_in_its_picture_and_placed_in_it(weights: str) -> None:
    extractor = create("delg", weights=weights, max_image_size=128)
    whole = picture(256, 192)
    crop = np.ascontiguousarray(whole.pixels[40:136, 64:192])
    cropped = Image("c", crop, 256, 192, origin=(64.0, 40.0), resize_factor=0.5)
    answer = described(extractor.describe([cropped])[0])
    # 128 pixels are shrunk to 0.5 * 128, so the crop is described as a picture of 64 x 48
    half = Image("h", resize(crop, 64.0), 64, 48)
    expected = described(create("delg", weights=weights).describe([half])[0])
    assert answer.global_descriptor.tobytes() == expected.global_descriptor.tobytes()
    np.testing.assert_allclose(answer.xy, expected.xy * 2 + [64, 40], atol=1e-4)
    assert (answer.xy >= [64, 40]).all() and (answer.xy <= [192, 136]).all()


def test_the_threshold_cuts(weights: str) -> None:
    image = picture(160, 120)
    every = described(create("delg", weights=weights, max_locals=1000).describe([image])[0])
    middle = float(every.strength[len(every.strength) // 2])
    some = described(
        create("delg", weights=weights, max_locals=1000, threshold=middle).describe([image])[0]
    )
    assert (
        len(some.strength)
        == int((every.strength >= np.float32(middle)).sum())
        < len(every.strength)
    )
    assert some.strength.min() == np.float32(middle)
    none = described(create("delg", weights=weights, threshold=1e9).describe([image])[0])
    assert (
        none.descriptors.shape == (0, 12)
        and none.xy.shape == (0, 2)
        and none.global_descriptor.shape == (24,)
    )


def test_small_pictures_are_described_down_to_ten_pixels(weights: str) -> None:
    extractor = create("delg", weights=weights)
    least, below = extractor.describe([picture(10, 10), picture(9, 40)])
    assert described(least).global_descriptor.shape == (24,)
    assert (
        isinstance(below, Failure) and below.error_class == "too_small" and "9 x 40" in below.reason
    )


def test_shrinking_may_make_a_picture_too_small(weights: str) -> None:
    answer = create("delg", weights=weights, max_image_size=100).describe([picture(1000, 60)])[0]
    assert isinstance(answer, Failure) and answer.error_class == "too_small"


# Mistakes ----------------------------------------------------------------------------------------


def _renamed(data: dict[str, Floats]) -> dict[str, Floats]:
    return {
        ("stem.kernel" if name == "stem.weight" else name): value for name, value in data.items()
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _renamed,
            (
                "1 tensors are missing, such as stem.weight; 1 tensors are unknown, such as "
                "stem.kernel"
            ),
        ),
        (
            lambda d: {**d, "score.weight": np.zeros((1, 3, 1, 1), np.float32)},
            "score.weight has the shape",
        ),
        (lambda d: {**d, "score.bias": np.full(1, np.nan, np.float32)}, "score.bias .* not finite"),
    ],
)
def test_a_wrong_file_is_named(change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_network(
            weights_file(change(random_tensors(small())), small(), 0.0, "x"), "some.safetensors"
        )


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="neither a safetensors file"):
        create("delg", weights=str(tmp_path / "a"))
    with pytest.raises(UserError, match="no such file"):
        create("delg", weights=str(tmp_path / "b"))
    with pytest.raises(UserError, match="needs the option 'weights'"):
        create("delg")
    embedded = ROOT / "rrt_core" / "weights" / "efficientnet_whitening.safetensors"
    with pytest.raises(UserError, match="holds no DELG weights"):
        create("delg", weights=str(embedded))


def test_a_file_whose_depth_is_not_its_units_is_refused() -> None:
    data = weights_file(random_tensors(small()), small(), 0.0, "x")
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    config = json.loads(header["__metadata__"]["config"])
    for key, value, words in (
        ("depth", 50, "its depth as 50"),
        ("layout", "torch", "layout is keras or slim"),
        ("units", [1, 2], "four of them"),
        ("other", 1, "cannot be read"),
    ):
        header["__metadata__"]["config"] = json.dumps({**config, key: value})
        text = json.dumps(header).encode()
        with pytest.raises(UserError, match=words):
            load_network(len(text).to_bytes(8, "little") + text + data[8 + size :], "f")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_locals": 0}, "max_locals"),
        ({"max_image_size": 10.5}, "max_image_size"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str, weights: str) -> None:
    with pytest.raises(UserError, match=words):
        create("delg", weights=weights, **options)


def test_weights_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    tensors = random_tensors(small())
    made = {
        weights_file(dict(order), small(), 1.5, "x")
        for order in (tensors.items(), reversed(tensors.items()))
    }
    assert len(made) == 1
    loaded = load_network(made.pop(), "x")
    assert (loaded.threshold, loaded.source, loaded.network.architecture) == (1.5, "x", small())


def test_the_published_steps_are_those_of_the_module() -> None:
    assert [IMAGE_SCALES[ordinal] for ordinal in module.GLOBAL_SCALES] == [
        0.70710677,
        1.0,
        1.4142135,
    ]


@pytest.mark.timeout(900)
def test_parity_with_the_original_code() -> None:
    """Needs tensorflow, tf_keras and RRT_DELG_REFERENCE = a checkout of tensorflow/models."""
    reference = os.environ.get("RRT_DELG_REFERENCE")
    if not reference:
        pytest.skip("RRT_DELG_REFERENCE names no checkout of tensorflow/models")
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf_keras")
    photos = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared")) / "photos"
    if not photos.is_dir():
        pytest.skip("RRT_TEST_DATA has no photos/")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "parity" / "delg_parity.py"),
        "--reference",
        reference,
        "--photos",
        str(photos),
        "--count",
        "3",
        "--longest",
        "160",
        "--depths",
        "50",
        "--layouts",
        "keras",
        "--strides",
        "32",
    ]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    *_, verdict, figures = ended.stdout.splitlines()
    assert verdict == "equal" and json.loads(figures)["equal"]
