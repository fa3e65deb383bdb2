"""Networks run by OpenVINO: the descriptors of torch to 1e-4, the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rrt_core.execution
from rrt_core.extractors import comparable, create, identity_of, options_of_store
from rrt_core.extractors.efficientnet.extractor import EfficientNet
from schemas.errors import UserError
from tests.rrt_core.extractors.test_extractors import as_bytes, described, image

SIZES = [(400, 300), (33, 97), (300, 41), (640, 200)]


@pytest.fixture(scope="module")
def both() -> tuple[EfficientNet, EfficientNet]:
    """The default extractor by torch and by OpenVINO."""
    pytest.importorskip("openvino", reason="the package openvino is missing (RRT_EXTRAS=openvino)")
    return EfficientNet(), EfficientNet(execution="openvino")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_descriptors_are_torchs(
    width: int, height: int, both: tuple[EfficientNet, EfficientNet]
) -> None:
    one = image(width, height)
    ours, theirs = (described(extractor, one) for extractor in both)
    np.testing.assert_allclose(theirs.global_descriptor, ours.global_descriptor, atol=1e-4)
    # Cells of nearly equal strength may change places.
    order = [np.lexsort((*each.xy.T, each.scale)) for each in (ours, theirs)]
    for name, tolerance in (("xy", 0), ("scale", 0), ("strength", 1e-3), ("descriptors", 1e-4)):
        left, right = (
            getattr(each, name)[by] for each, by in zip((ours, theirs), order, strict=True)
        )
        np.testing.assert_allclose(right, left, atol=tolerance, err_msg=name)


def test_maps_are_torchs_at_every_parity(both: tuple[EfficientNet, EfficientNet]) -> None:
    """SAME padding depends on the rest of a side by 32."""
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for width in range(64, 97):
            pixels = rng.integers(0, 256, (160 - width, width, 3), np.uint8)
            ours, theirs = (extractor._maps(pixels) for extractor in both)
            for name in ("stage112", "head"):
                expected = getattr(ours, name).numpy()
                difference = np.abs(getattr(theirs, name).numpy() - expected).max()
                assert difference < 2e-5 * np.abs(expected).max(), (width, name)


def test_the_same_bytes_each_time_and_in_any_company(
    both: tuple[EfficientNet, EfficientNet],
) -> None:
    images = [image(width, height, seed) for seed, (width, height) in enumerate(SIZES)]
    together = [as_bytes(answer) for answer in both[1].describe(images)]
    again = EfficientNet(execution="openvino")
    assert [as_bytes(described(again, one)) for one in reversed(images)] == together[::-1]


def test_it_is_in_the_identity_and_may_be_compared(
    both: tuple[EfficientNet, EfficientNet],
) -> None:
    ours, theirs = map(identity_of, both)
    assert "execution" not in ours["config"] and theirs["config"]["execution"] == "openvino"
    assert ours != theirs and comparable(ours) == comparable(theirs)
    assert options_of_store("efficientnet", {}, theirs["config"]) == {"execution": "openvino"}
    assert options_of_store("efficientnet", {"execution": "torch"}, theirs["config"]) == {
        "execution": "torch"
    }
    sift = identity_of(create("rootsift", execution="openvino"))
    assert options_of_store("rootsift", {}, sift["config"]) == {"execution": "openvino"}


def test_values_that_are_none() -> None:
    with pytest.raises(UserError, match="execution is 'onnx'; it must be one of torch, openvino"):
        create("efficientnet", execution="onnx")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrt_core.execution, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="RRT_EXTRAS=openvino"):
        create("efficientnet", execution="openvino")
