"""convert-delg: names of both families, what the variables leave open, files, mistakes."""

from __future__ import annotations

import builtins
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.cli import main
from pipelines.exchange import convert_delg
from pipelines.exchange.convert_delg import (
    Options,
    candidates,
    import_tensorflow,
    threshold_of,
)
from pipelines.exchange.convert_delg_check import Agreement, SavedDelg, picture
from rrt_core.extractors import Description, create
from rrt_core.extractors.delg.extractor import GLOBAL_SCALES, IMAGE_SCALES
from rrt_core.extractors.delg.network import (
    BLOCK3,
    EXPANDED,
    KERAS,
    SLIM,
    UNITS,
    Architecture,
    load_network,
    tensor_shapes,
    weights_file,
)
from rrt_core.extractors.delg.variables import Mapped, map_variables, object_paths, tensors
from rrt_core.images import Image
from schemas.errors import UserError

Floats = npt.NDArray[np.float32]
NORM = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}


def small(layout: str, **changes: Any) -> Architecture:
    """Sizes by which the heads can be told apart, as those of the published models can."""
    sizes: dict[str, Any] = {
        "units": (1, 2, 2, 1),
        "width": 4,
        "attention_dim": 16,
        "local_dim": 12,
        "global_dim": 24,
    }
    return Architecture(**{**sizes, "layout": layout, **changes})


def keras_path(tensor: str) -> str:
    """The object path of a tensor in the Keras model; written out apart from the code under
    test.
    """
    layer, _, kind = tensor.rpartition(".")
    leaf = {"weight": "kernel", "bias": "bias", **NORM}[kind]
    heads = {
        "stem": ("backbone/conv1", "backbone/bn_conv1"),
        "attention": ("attention/conv1", "attention/bn_conv1"),
        "score": ("attention/conv2", ""),
        "reduce": ("autoencoder/conv1", ""),
        "expand": ("autoencoder/conv2", ""),
        "embedding": ("backbone/embedding_layer", ""),
    }
    if layer in heads:
        return f"{heads[layer][kind in NORM]}/{leaf}"
    stage, unit, part = layer.split(".")
    block = f"backbone/l{int(stage[-1]) + 1}{'abcdefghijklmnopqrstuvw'[int(unit)]}"
    if part == "shortcut":
        return f"{block}/{'bn' if kind in NORM else 'conv'}_shortcut/{leaf}"
    return f"{block}/{'bn' if kind in NORM else 'conv'}2{' abc'[int(part[-1])]}/{leaf}"


def slim_name(tensor: str, depth: int) -> str:
    layer, _, kind = tensor.rpartition(".")
    leaf = (
        f"BatchNorm/{NORM[kind]}" if kind in NORM else {"weight": "weights", "bias": "biases"}[kind]
    )
    heads = {
        "stem": f"resnet_v1_{depth}/conv1",
        "attention": "attention_block/attention/compute/conv1",
        "score": "attention_block/attention/compute/conv2",
        "reduce": "any/name",
        "expand": "other/name",
        "embedding": "global/whitening",
    }
    if layer in heads:
        return f"{heads[layer]}/{leaf}"
    stage, unit, part = layer.split(".")
    return f"resnet_v1_{depth}/block{stage[-1]}/unit_{int(unit) + 1}/bottleneck_v1/{part}/{leaf}"


def variables_of(
    architecture: Architecture, prefix: str = "_model/"
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Our random tensors, and TensorFlow's variables that mean the same."""
    rng = np.random.default_rng(0)
    ours: dict[str, Floats] = {}
    theirs: dict[str, Floats] = {}
    for tensor, shape in tensor_shapes(architecture).items():
        ours[tensor] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        value = ours[tensor]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if architecture.layout == KERAS:
            theirs[f"{prefix}{keras_path(tensor)}/.ATTRIBUTES/VARIABLE_VALUE"] = value
        elif tensor.endswith(".bias") and (
            tensor.startswith(("stem", "stage")) or tensor == "attention.bias"
        ):
            ours[tensor] = np.zeros(shape, np.float32)  # a normalised convolution of slim has none
        else:
            theirs[slim_name(tensor, architecture.depth)] = value
    return ours, theirs


def shapes_of(variables: dict[str, Floats]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in variables.items()}


@pytest.mark.parametrize("layout", [KERAS, SLIM])
@pytest.mark.parametrize("units", [(1, 2, 2, 1), (3, 4, 23, 3)])
def test_every_variable_finds_its_tensor(layout: str, units: tuple[int, int, int, int]) -> None:
    architecture = small(layout, units=units)
    ours, theirs = variables_of(architecture)
    theirs["global_step"] = np.zeros((), np.float32)
    theirs[
        "_model/backbone/conv1/kernel/.OPTIMIZER_SLOT/optimizer/momentum/.ATTRIBUTES/VARIABLE_VALUE"
    ] = np.zeros(3)
    shapes = shapes_of(theirs)
    mapped = map_variables(shapes, "m")
    assert mapped.architecture == architecture
    assert set(mapped.variables) == set(ours)
    used = [name for name in mapped.variables.values() if name is not None]
    assert (
        len(used) == len(set(used)) == len(theirs) - 2
    )  # all but the step and the optimiser's slot
    made = tensors(mapped, shapes, theirs.__getitem__, "m")
    assert all(np.array_equal(made[name], ours[name]) for name in ours)


def test_the_names_of_the_real_depths_are_complete() -> None:
    for depth in UNITS:
        for layout in (KERAS, SLIM):
            architecture = Architecture(units=UNITS[depth], layout=layout)
            name = keras_path if layout == KERAS else lambda tensor: slim_name(tensor, depth)  # noqa: B023
            shapes = {
                name(tensor): tuple(shape[i] for i in (2, 3, 1, 0))
                if len(shape) == 4
                else shape[::-1]
                for tensor, shape in tensor_shapes(architecture).items()
            }
            mapped = map_variables(shapes, "m")
            assert mapped.architecture == architecture and set(mapped.variables.values()) == set(
                shapes
            )


def test_a_checkpoint_whose_keys_are_numbers_is_read_by_its_objects() -> None:
    """A SavedModel of Keras numbers its variables (`_model/backbone/l2a/variables/0`); its object
    graph names them.
    """
    architecture = small(KERAS, block3_strides=False)
    _, theirs = variables_of(architecture, "")
    children: list[dict[str, int]] = [{"_model": 1}, {}]
    keys: list[str | None] = [None, None]
    numbered: dict[str, Floats] = {}
    for n, (name, value) in enumerate(theirs.items()):
        at = 1
        for piece in name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/"):
            if piece not in children[at]:
                children[at][piece] = len(children)
                children.append({})
                keys.append(None)
            at = children[at][piece]
        keys[at] = f"_model/variables/{n}/.ATTRIBUTES/VARIABLE_VALUE"
        numbered[keys[at] or ""] = value
    children[2]["around"] = 1  # a ring, as trackers of parents make
    paths = object_paths(children, keys)
    mapped = map_variables(shapes_of(numbered), "m", paths)
    assert mapped.architecture == architecture  # no subsampling_layer: a stride of 16
    assert set(mapped.variables.values()) == set(numbered)
    assert object_paths([{"x": 1}, {}], [None, None]) == {}


def test_slim_without_a_normalised_attention_or_an_expanding_layer() -> None:
    ours, theirs = variables_of(small(SLIM))
    theirs = {
        name: value
        for name, value in theirs.items()
        if not name.startswith(("attention_block/attention/compute/conv1/BatchNorm", "other/"))
    }
    theirs["attention_block/attention/compute/conv1/biases"] = np.full(16, 0.5, np.float32)
    mapped = map_variables(shapes_of(theirs), "m")
    assert mapped.architecture.attention_input == BLOCK3 and "expand.weight" not in mapped.variables
    made = tensors(mapped, shapes_of(theirs), theirs.__getitem__, "m")
    network = load_network(weights_file(made, mapped.architecture, 0.0, "x"), "x").network
    folded = network.attention.weight.numpy()
    np.testing.assert_allclose(folded, ours["attention.weight"], rtol=1e-6)
    np.testing.assert_allclose(network.attention.bias.numpy(), 0.5, rtol=1e-6)


def _without(part: str) -> Any:
    return lambda found: {name: value for name, value in found.items() if part not in name}


def _with(name: str, shape: tuple[int, ...]) -> Any:
    return lambda found: {**found, name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("layout", "change", "told"),
    [
        (
            KERAS,
            _without("autoencoder"),
            "lacks 4 variables of DELG, such as autoencoder.*--use_autoencoder",
        ),
        (
            KERAS,
            _without("embedding"),
            "backbone/embedding_layer/bias: export the local and global",
        ),
        (KERAS, _without("bn2b/moving_mean"), "lacks 6 variables"),
        (KERAS, _without("/l4"), "lacks a stage of its ResNet: 1, 2, 0, 1"),
        (KERAS, _without("backbone"), "holds no DELG network: none of its"),
        (
            SLIM,
            _without("block2/unit_2/bottleneck_v1/conv3/weights"),
            "unit_2/bottleneck_v1/conv3/weights",
        ),
        (
            SLIM,
            _without("unit_1/bottleneck_v1/conv2/BatchNorm/moving_mean"),
            "lacks the variable .*moving_mean",
        ),
        (SLIM, _without("global/whitening"), "the whitening .* but there are 0"),
        (
            SLIM,
            _with("second/weights", (1, 1, 16, 1)),
            "attention's score .* there are 2: att.*, second",
        ),
        (
            SLIM,
            _with("resnet_v1_50/block1/unit_1/bottleneck_v1/conv1/weights", (1, 1, 4, 4)),
            "several ResNets",
        ),
        (SLIM, lambda found: {"x": np.zeros(3, np.float32)}, "none of its 1 variables"),
    ],
)
def test_what_is_missing_is_named(layout: str, change: Any, told: str) -> None:
    _, theirs = variables_of(small(layout))
    with pytest.raises(UserError, match=told):
        map_variables(shapes_of(change(theirs)), "folder")


def test_wrong_shapes_and_values_are_named() -> None:
    _, theirs = variables_of(small(KERAS))
    name = "_model/attention/bn_conv1/gamma/.ATTRIBUTES/VARIABLE_VALUE"
    for value, told in (
        (np.zeros(3, np.float32), "has the shape"),
        (np.full(16, np.inf, np.float32), "not finite"),
    ):
        changed = {**theirs, name: value}
        mapped = map_variables(shapes_of(changed), "m")
        with pytest.raises(UserError, match=f"attention/bn_conv1/gamma.*{told}"):
            tensors(mapped, shapes_of(changed), changed.__getitem__, "m")


# What the variables leave open -------------------------------------------------------------------


def _options(**given: Any) -> Options:
    return Options(**{"model": "m", "out": "o.safetensors", **given})


def test_candidates_begin_with_the_likeliest() -> None:
    def listed(mapped: Mapped, **given: Any) -> list[tuple[str, int]]:
        return [
            (one.architecture.attention_input, one.architecture.local_stride)
            for one in candidates(mapped, _options(**given))
        ]

    keras = map_variables(shapes_of(variables_of(small(KERAS))[1]), "m")
    slim = map_variables(shapes_of(variables_of(small(SLIM))[1]), "m")
    assert listed(keras) == [(EXPANDED, 32), (BLOCK3, 32), (EXPANDED, 16), (BLOCK3, 16)]
    assert listed(slim) == [(BLOCK3, 32), (EXPANDED, 32)]
    assert listed(keras, attention_input=BLOCK3, local_stride=16) == [(BLOCK3, 16)]
    with pytest.raises(UserError, match="local stride is 32"):
        listed(slim, local_stride=16)


def test_thresholds_are_told_by_name() -> None:
    assert threshold_of(_options(model="/x/r50delg_gld_20200814")) == 175.0
    assert threshold_of(_options(model="/x/r50delg_gldv2clean_20200914/")) == 454.6
    assert threshold_of(_options(published="r101delg_gld")) == 166.1
    assert threshold_of(_options(model="r101delg_gld_20200814", threshold=3.0)) == 3.0
    with pytest.raises(UserError, match="give --published"):
        threshold_of(_options())
    for other in ("r50delg_gldv2full_2021", "r101delg_gldv2"):
        with pytest.raises(UserError, match="give --published"):
            threshold_of(_options(model=other))
    with pytest.raises(UserError, match="must be a finite number"):
        threshold_of(_options(threshold=float("nan")))


# Files -------------------------------------------------------------------------------------------


class _Reader:
    """tf.train.load_checkpoint's reader over variables in memory."""

    def __init__(self, variables: dict[str, Floats]) -> None:
        self._variables = variables

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in self._variables.items()}

    def get_tensor(self, name: str) -> Floats:
        return self._variables[name]


def _saved(description: Description) -> SavedDelg:
    """What a SavedModel would have said, had it said this."""
    yx = description.xy[:, ::-1]
    return SavedDelg(
        {
            "boxes": np.concatenate([yx - 145, yx + 145], 1),
            "features": 3 * description.descriptors,
            "scales": 1 / np.array(IMAGE_SCALES, np.float32)[description.scale],
            "scores": description.strength[:, None],
            "global_descriptors": np.repeat(
                description.global_descriptor[None], len(GLOBAL_SCALES), 0
            ),
        },
        picture(),
    )


@pytest.fixture()
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a SavedModel's, whose variables and outputs come from here: attention at
    block3, stride 16.
    """
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (folder / name).write_bytes(b"")
    rng = np.random.default_rng(3)
    meant = small(KERAS, block3_strides=False, attention_input=BLOCK3)
    ours = {
        name: rng.normal(0, np.sqrt(2 / max(1, np.prod(shape[1:]))), shape).astype(np.float32)
        if len(shape) > 1
        else rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, shape in tensor_shapes(small(KERAS)).items()
    }
    theirs = {
        f"_model/{keras_path(name)}/.ATTRIBUTES/VARIABLE_VALUE": value.transpose(2, 3, 1, 0)
        if value.ndim == 4
        else value.T
        for name, value in ours.items()
    }
    file = tmp_path / "meant.safetensors"
    file.write_bytes(
        weights_file({name: ours[name] for name in tensor_shapes(meant)}, meant, -1.0, "x")
    )
    shown = picture()
    said = create("delg", weights=str(file), max_locals=1000).describe(
        [Image("p", shown, shown.shape[1], shown.shape[0])]
    )[0]
    assert isinstance(said, Description)

    class Train:
        load_checkpoint = staticmethod(lambda path: _Reader(theirs))

    monkeypatch.setattr(
        convert_delg, "import_tensorflow", lambda: type("TensorFlow", (), {"train": Train})
    )
    monkeypatch.setattr(convert_delg, "load_saved_model", lambda tensorflow, path: _saved(said))
    return folder


def test_the_check_finds_what_the_variables_do_not_tell(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.safetensors"
    assert main(["convert-delg", str(model), str(out), "--threshold", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert (
        "attention at block3, local stride 16" in printed
        and "agrees with the SavedModel: 100.0%" in printed
    )
    loaded = load_network(out.read_bytes(), "x")
    assert loaded.threshold == 2.5 and loaded.source == "saved"
    assert loaded.network.architecture == small(KERAS, block3_strides=False, attention_input=BLOCK3)
    assert main(["convert-delg", str(model), str(out), "--threshold", "2.5"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert-delg", str(model), str(out), "--threshold", "3", "--overwrite"]) == 0
    assert [path.name for path in tmp_path.glob("made*")] == ["made.safetensors"]


def test_a_network_that_says_other_things_is_not_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.safetensors"
    given = [
        "convert-delg",
        str(model),
        str(out),
        "--threshold",
        "2.5",
        "--attention-input",
        "expanded",
    ]
    assert main(given) == 2
    assert "does not give what the SavedModel gives" in capsys.readouterr().err and not out.exists()
    assert main([*given, "--no-check"]) == 0
    assert load_network(out.read_bytes(), "x").network.architecture == small(KERAS)
    assert "not compared" in capsys.readouterr().out


def test_agreement_needs_all_of_it() -> None:
    assert Agreement(1.0, 1e-5, 1e-5, 1e-5).close() and Agreement(0.995, 0, 0, 0).close()
    for figures in ((0.9, 0, 0, 0), (1, 0.01, 0, 0), (1, 0, 0.01, 0), (1, 0, 0, 0.01)):
        apart = Agreement(*figures)
        assert not apart.close() and apart.worst() > 1e-3


def test_folders_that_are_no_saved_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert-delg", str(tmp_path), str(tmp_path / "o"), "--threshold", "1"]) == 2
    assert "it has no variables/variables.index" in capsys.readouterr().err
    archive = tmp_path / "r50delg_gld_20200814.tar.gz"
    archive.write_bytes(b"")
    assert main(["convert-delg", str(archive), str(tmp_path / "o")]) == 2
    assert "unpack the archive first" in capsys.readouterr().err
    assert main(["convert-delg", str(tmp_path), f"{tmp_path}/", "--threshold", "1"]) == 2
    assert "name the file to write" in capsys.readouterr().err


def test_without_tensorflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def refusing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorflow":
            raise ImportError("No module named 'tensorflow'")
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(UserError, match=r"rrt-pipelines\[convert\]"):
        import_tensorflow()


def test_a_checkpoint_that_tensorflow_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both families, through TensorFlow's own files; the networks themselves:
    benchmarks/parity/delg_parity.py.
    """
    tensorflow = pytest.importorskip("tensorflow")
    v1 = tensorflow.compat.v1
    for layout in (KERAS, SLIM):
        ours, theirs = variables_of(small(layout))
        folder = tmp_path / layout
        (folder / "variables").mkdir(parents=True)
        with tensorflow.Graph().as_default(), v1.Session() as session:
            listed = {
                name: v1.get_variable(f"v{n}", initializer=value)
                for n, (name, value) in enumerate(theirs.items())
            }
            session.run(v1.global_variables_initializer())
            v1.train.Saver(listed).save(
                session, str(folder / "variables" / "variables"), write_meta_graph=False
            )
        out = tmp_path / f"{layout}.safetensors"
        given = Options(
            model=str(folder), out=str(out), threshold=1.0, check=False, attention_input=EXPANDED
        )
        made = convert_delg.run(given)
        assert made.mapped.architecture == small(layout)
        with_names = load_network(out.read_bytes(), "x").network
        np.testing.assert_array_equal(with_names.reduce.weight.numpy(), ours["reduce.weight"])
        (folder / "variables" / "variables.index").write_bytes(b"broken")
        assert (
            main(
                ["convert-delg", str(folder), str(tmp_path / "n"), "--threshold", "1", "--no-check"]
            )
            == 2
        )
        assert "cannot be read" in capsys.readouterr().err


def test_torch_still_trains_in_the_process_that_read_tensorflow() -> None:
    pytest.importorskip("tensorflow")
    code = """
        import torch
        from pipelines.exchange.convert_delg import import_tensorflow
        import_tensorflow()
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1).step()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
