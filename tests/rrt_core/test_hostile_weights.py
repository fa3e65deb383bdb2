"""Files of weights that are damaged, foreign or made to hurt: a sentence, and little memory."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rrt_core.checkpoints import PRODUCTS, load_checkpoint, save_checkpoint
from rrt_core.products.backbone import load_backbone_state
from rrt_core.products.model import ProductsConfig, ProductsTransformer
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from rrt_core.weight_files import read_tensors, tensors_of
from schemas.errors import UserError
from tests.support.hostile import accepted, inputs

SMALL = ModelConfig(global_dim=6, d_model=8, heads=2, feedforward=4, layers=2)
PRODUCTS_SMALL = ProductsConfig(
    map_channels=6, global_dim=4, d_model=8, heads=2, feedforward=4, layers=1
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good small files of each form."""
    folder = tmp_path_factory.mktemp("weights")
    model = RerankingTransformer(SMALL)
    save_checkpoint(str(folder / "landmarks"), model)
    save_checkpoint(str(folder / "products"), ProductsTransformer(PRODUCTS_SMALL))
    state = RerankingTransformer(ModelConfig(6, 8, 4, 4, 2)).state_dict()
    return {
        "landmarks": (folder / "landmarks").read_bytes(),
        "products": (folder / "products").read_bytes(),
        "paper": torch_file({"state": state}),
        "bare": torch_file(dict(state)),
        "parallel": torch_file({f"module.{name}": value for name, value in state.items()}),
        "old": torch_file(dict(state), zipped=False),
    }


def torch_file(value: Any, zipped: bool = True) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with its header changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + data[8 + size :]


def configured(data: bytes, **values: Any) -> bytes:
    """A file of ours whose configuration says something else."""

    def change(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, **values})

    return changed(data, change)


def opens(data: bytes, folder: Path) -> bool:
    """Whether a file with these bytes is taken, as either variant; else one sentence."""
    path = folder / "w"
    path.write_bytes(data)
    one = accepted(lambda: load_checkpoint(str(path)))
    other = accepted(lambda: load_checkpoint(str(path), variant=PRODUCTS))
    return one or other


@pytest.mark.parametrize("form", ["landmarks", "products", "paper", "bare", "parallel", "old"])
def test_each_form_opens(form: str, files: dict[str, bytes], tmp_path: Path) -> None:
    assert opens(files[form], tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layers": 1_000_000_000}, "says layers 1000000000, and the tensors are of 2"),
        ({"global_dim": 10**12}, "says global_dim 1000000000000, and the tensors are of 6"),
        ({"feedforward": 2**40}, "says feedforward"),
        ({"d_model": 0}, "d_model must be a whole number from 1"),
        ({"heads": 3}, "cannot be shared out among 3 heads"),
        ({"heads": 0}, "heads must be a whole number"),
        ({"layers": None}, "layers must be a whole number"),
        ({"layers": float("nan")}, "layers must be a whole number"),
        ({"scale_binning": "other"}, "scale_binning is 'other'"),
        ({"scale_binning": [1]}, "is not ours"),
        ({"colour": 1}, "is not ours"),
    ],
)
def test_a_configuration_is_checked_before_a_model_is_made(
    values: dict[str, Any], sentence: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    path, started = tmp_path / "w", time.monotonic()
    path.write_bytes(configured(files["landmarks"], **values))
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(str(path))
    assert time.monotonic() - started < 2


def test_text_nothing_and_what_is_no_file(tmp_path: Path) -> None:
    for data, sentence in ((b"", "is empty"), (b"weights, please\n" * 9, "neither a safetensors")):
        (tmp_path / "w").write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            load_checkpoint(str(tmp_path / "w"))
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="no regular file"):
            load_checkpoint(str(place))


def test_numbers_that_are_not_finite_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(files["landmarks"])
    data[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "w").write_bytes(bytes(data))
    with pytest.raises(UserError, match="values that are not finite"):
        load_checkpoint(str(tmp_path / "w"))


def test_a_view_is_no_larger_than_the_file() -> None:
    with pytest.raises(UserError, match="name more numbers than the file holds"):
        tensors_of(torch_file({"w": torch.zeros(1).expand(10**12)}), "w")


def test_a_layer_of_a_great_number_makes_no_great_model(tmp_path: Path) -> None:
    state = dict(RerankingTransformer(SMALL).state_dict())
    state["encoder.layers.999999999.linear1.weight"] = torch.zeros(4, 8)
    (tmp_path / "w").write_bytes(torch_file({"state": state}))
    with pytest.raises(UserError, match="layers.2"):
        load_checkpoint(str(tmp_path / "w"))


def test_a_deeper_networks_weights_are_not_a_smaller_ones() -> None:
    small = torch.nn.Sequential(torch.nn.Linear(2, 2))
    deeper = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="2 tensors are unknown, such as 1.weight"):
        load_backbone_state(small, deeper.state_dict(), "w")
    classifier = {"fc.weight": torch.zeros(9, 2), "fc.bias": torch.zeros(9)}
    load_backbone_state(small, {**small.state_dict(), **classifier}, "w")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)


@inputs(40)
@given(
    values=st.dictionaries(
        st.sampled_from(["global_dim", "d_model", "heads", "feedforward", "layers", "x"]),
        VALUES,
        min_size=1,
        max_size=3,
    )
)
def test_any_configuration(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    opens(configured(files["landmarks"], **values), tmp_path_factory.getbasetemp())


@inputs(40)
@given(
    form=st.sampled_from(["landmarks", "products", "paper", "old"]),
    place=st.floats(0, 1, exclude_max=True),
    new=st.binary(min_size=1, max_size=9),
    cut=st.booleans(),
)
def test_damaged_bytes(
    files: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    place: float,
    new: bytes,
    cut: bool,
) -> None:
    data = files[form]
    # half of them in the first part, where headers and pickles are
    at = int(place * (len(data) if cut else min(len(data), 2_000)))
    mutated = data[:at] + new + (b"" if cut else data[at + len(new) :])
    opens(mutated, tmp_path_factory.getbasetemp())


@inputs(30)
@given(
    names=st.dictionaries(
        st.sampled_from(["state", "model", "remap.weight", "matcher.x", "a", "__metadata__"]),
        st.one_of(
            VALUES,
            st.lists(st.integers(0, 3), max_size=4).map(torch.zeros),
            st.just({"a": torch.zeros(2, dtype=torch.complex64)}),
            st.just({"encoder.layers.x.linear1.weight": torch.zeros(2, 2)}),
            st.just(torch.zeros(2).to_sparse()),
            st.just(torch.zeros(3, device="meta")),
        ),
        max_size=4,
    )
)
def test_any_content_of_a_torch_file(
    tmp_path_factory: pytest.TempPathFactory, names: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    opens(torch_file(names), folder)
    accepted(lambda: read_tensors(str(folder / "w"), "Weights"))


@inputs(30)
@given(
    header=st.one_of(
        st.recursive(VALUES, lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        st.fixed_dictionaries(
            {
                "remap.weight": st.fixed_dictionaries(
                    {
                        "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "U64", "XX"]),
                        "shape": st.lists(st.integers(0, 2**62), max_size=3),
                        "data_offsets": st.lists(st.integers(0, 2**62), min_size=2, max_size=2),
                    }
                ),
                "__metadata__": st.dictionaries(
                    st.sampled_from(["format", "variant", "config", "notes"]),
                    st.sampled_from(["rrt-weights/1", "products", "{}", "[" * 2_000, "null"]),
                ),
            }
        ),
    )
)
def test_any_header(tmp_path_factory: pytest.TempPathFactory, header: Any) -> None:
    text = json.dumps(header).encode()
    opens(len(text).to_bytes(8, "little") + text + b"\0" * 64, tmp_path_factory.getbasetemp())
