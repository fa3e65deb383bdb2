"""DELG of tensorflow/models and of tf_slim with random weights: build, export, extract.

For delg_parity.py. The sources are read from a folder of the user's and never copied. Their
packages' own `__init__` (which wants compiled protocol buffers and the whole object detection
library) is passed by: only the modules needed are imported.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # the sources are written for Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

IMAGE_SCALES = (0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0)
GLOBAL_SCALES = (3, 4, 5)
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Maps = dict[str, np.ndarray]


@dataclass
class Reference:
    """A random DELG.

    maps: uint8 [H, W, 3], an image scale -> block3, attention, descriptors, each [h, w, channels].
    """

    folder: Path
    threshold: float
    maps: Callable[[np.ndarray, float], Maps]
    extract: Callable[[np.ndarray, float], dict[str, Any]]


def import_sources(folder: Path) -> None:
    """Make `delf` and `object_detection` importable from a checkout of tensorflow/models."""
    research = folder / "research"
    for needed in (
        "delf/delf/python/training/model/delg_model.py",
        "object_detection/core/box_list_ops.py",
    ):
        if not (research / needed).is_file():
            raise SystemExit(
                f"{folder} has no research/{needed}: give a checkout of tensorflow/models."
            )
    packages = {
        "delf": research / "delf" / "delf",
        "object_detection": research / "object_detection",
    }
    for below in (
        "python",
        "python/training",
        "python/training/model",
        "python/training/datasets",
        "python/examples",
        "python/pooling_layers",
        "python/normalization_layers",
    ):
        packages["delf." + below.replace("/", ".")] = research / "delf" / "delf" / below
    for below in ("core", "utils"):
        packages[f"object_detection.{below}"] = research / "object_detection" / below
    for name, path in packages.items():
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    # only PCA and drawing would use these
    for name in ("delf.datum_io", "object_detection.utils.ops"):
        sys.modules[name] = types.ModuleType(name)
    delf = sys.modules["delf"]
    vars(delf)["datum_io"] = sys.modules["delf.datum_io"]
    vars(delf)["feature_extractor"] = importlib.import_module("delf.python.feature_extractor")
    vars(delf)["utils"] = importlib.import_module("delf.python.utils")
    detection = sys.modules["object_detection.utils"]
    vars(detection)["ops"] = sys.modules["object_detection.utils.ops"]


def random_value(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights that keep activations in range through a hundred layers.

    Their statistics are not neutral, so that a normalisation left out would show.
    """
    last = name.rpartition("/")[2].partition(":")[0]
    if last in ("kernel", "weights"):
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif last == "gamma":
        closing = "2c/" in name or "conv3/" in name  # what a unit adds to its shortcut
        value = rng.uniform(0.2, 0.5, shape) if closing else rng.uniform(0.7, 1.3, shape)
    elif last == "moving_variance":
        value = rng.uniform(0.6, 1.6, shape)
    else:
        value = rng.normal(0, 0.1, shape)
    return value.astype(np.float32)


def extractor_of(
    folder: Path, threshold: float, tf2: bool, most: int
) -> Callable[[np.ndarray, float], dict[str, Any]]:
    """Their examples/extractor.py over a SavedModel, with the published configuration."""
    from delf.python.examples import extractor

    config = types.SimpleNamespace(
        use_local_features=True,
        use_global_features=True,
        model_path=str(folder),
        image_scales=list(IMAGE_SCALES),
        is_tf2_exported=tf2,
        max_image_size=1024,
        min_image_size=-1,
        use_square_images=False,
        delf_local_config=types.SimpleNamespace(
            use_pca=False,
            max_feature_num=most,
            score_threshold=threshold,
            use_resized_coordinates=False,
        ),
        delf_global_config=types.SimpleNamespace(
            use_pca=False, image_scales_ind=list(GLOBAL_SCALES)
        ),
    )
    made = extractor.MakeExtractor(config)
    return lambda image, factor: made(image, resize_factor=factor)


def _normalised(tf: Any, image: np.ndarray, scale: float) -> Any:
    pixels = (tf.cast(image, tf.float32) - 128.0) / 128.0
    size = np.round(np.array(image.shape[:2], np.float32) * np.float32(scale)).astype(int)
    return tf.image.resize(pixels[None], size)


def keras_reference(
    depth: int, block3_strides: bool, folder: Path, sample: np.ndarray, seed: int, most: int
) -> Reference:
    """Their Keras model with random weights, exported as export_local_and_global_model.py does."""
    import tensorflow as tf
    from absl import flags
    from delf.python.training.model import delf_model, resnet50
    from delf.python.training.model import export_local_and_global_model as export

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["delg_reference"])
    # the name that Delf makes its backbone by; in resnet50 itself it must stay, for its own super()
    delf_model.resnet = (
        types.SimpleNamespace(ResNet50=_deeper(resnet50)) if depth == 101 else resnet50
    )
    module = export._ExtractModule(block3_strides=block3_strides)
    model = module._model
    model.build_call(_normalised(tf, sample, 0.5), training=False)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(random_value(variable.name, tuple(variable.shape), rng))

    def maps(image: np.ndarray, scale: float) -> Maps:
        _, _, scores, blocks, _, reduced = model.global_and_local_forward_pass(
            _normalised(tf, image, scale), training=False
        )
        outputs = {"block3": blocks["block3"], "attention": scores, "descriptors": reduced}
        return {name: value.numpy()[0] for name, value in outputs.items()}

    threshold = _spread(maps, sample, *model.attention.conv2.variables)
    tf.saved_model.save(module, str(folder))
    return Reference(folder, threshold, maps, extractor_of(folder, threshold, True, most))


def _deeper(resnet50: Any) -> Any:
    """ResNet-101 of their blocks: they give ResNet-50 alone.

    17 more units follow l4f, named l4g, l4h, ...
    """

    class Last(resnet50._IdentityBlock):
        def call(self, x: Any, training: bool = False) -> Any:
            x = super().call(x, training=training)
            for block in self.followed_by():
                x = block(x, training=training)
            return x

    class ResNet101(resnet50.ResNet50):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            names = [
                f"l4{chr(letter)}"
                for letter in range(ord("g"), ord("g") + UNITS[101][2] - UNITS[50][2])
            ]
            for name in names:
                setattr(
                    self,
                    name,
                    resnet50._IdentityBlock(3, [256, 256, 1024], 4, name[-1], "channels_last"),
                )
            last = Last(3, [256, 256, 1024], 4, "f", "channels_last")
            last.followed_by = lambda: [getattr(self, name) for name in names]
            self.l4f = last

    return ResNet101


def _spread(
    maps: Callable[[np.ndarray, float], Maps], sample: np.ndarray, kernel: Any, bias: Any
) -> float:
    """Set the score layer so that attention is spread over tens.

    Returns a threshold that cuts 6 of 10 cells.
    """
    before = np.log(np.expm1(maps(sample, 1.0)["attention"].astype(np.float64)))
    factor = 15.0 / before.std()
    kernel.assign(kernel.numpy() * np.float32(factor))
    bias.assign(bias.numpy() * np.float32(factor) + np.float32(20.0 - factor * before.mean()))
    return float(np.float32(np.quantile(maps(sample, 1.0)["attention"], 0.6)))


def slim_reference(depth: int, folder: Path, sample: np.ndarray, seed: int, most: int) -> Reference:
    """tf_slim's ResNet v1 with DELG's heads, exported by TF1.

    It has the names that their extractor feeds and fetches. The ResNet is theirs; the heads are
    written here after the paper, with names of our choice, since the code that exported the
    published models is not public.
    """
    import tensorflow as tf
    import tf_slim as slim
    from delf import feature_extractor
    from object_detection.core import box_list, box_list_ops
    from tf_keras.src import legacy_tf_layers
    from tf_slim.nets import resnet_v1

    # TensorFlow looks for the normalisation of TF1 under the name that tf_keras had for it before
    sys.modules.setdefault("tf_keras.legacy_tf_layers", legacy_tf_layers)
    sys.modules.setdefault(
        "tf_keras.legacy_tf_layers.normalization",
        importlib.import_module(f"{legacy_tf_layers.__name__}.normalization"),
    )
    v1 = tf.compat.v1
    scope = f"resnet_v1_{depth}"

    def network(images: Any) -> tuple[Any, Any, Any, Any]:
        block = resnet_v1.resnet_v1_block
        strides = (2, 2, 2, 1)
        blocks = [
            block(f"block{n}", base_depth=32 * 2**n, num_units=units, stride=stride)
            for n, (units, stride) in enumerate(zip(UNITS[depth], strides, strict=True), 1)
        ]
        with (
            slim.arg_scope(resnet_v1.resnet_arg_scope()),
            slim.arg_scope([slim.batch_norm], is_training=False),
        ):
            net, ends = resnet_v1.resnet_v1(
                images,
                blocks,
                is_training=False,
                global_pool=False,
                reuse=v1.AUTO_REUSE,
                scope=scope,
            )
            block3 = ends[f"{scope}/block3"]
            with v1.variable_scope("attention_block", reuse=v1.AUTO_REUSE):
                hidden = slim.conv2d(block3, 512, 1, scope="conv1")
                plain = {"activation_fn": None, "normalizer_fn": None}
                score = slim.conv2d(hidden, 1, 1, scope="conv2", **plain)
            with v1.variable_scope("autoencoder", reuse=v1.AUTO_REUSE):
                reduced = slim.conv2d(block3, 128, 1, scope="conv1", **plain)
                slim.conv2d(reduced, 1024, 1, scope="conv2", normalizer_fn=None)
            pooled = tf.pow(tf.reduce_mean(tf.pow(tf.maximum(net, 1e-6), 3.0), [1, 2]), 1 / 3.0)
            with v1.variable_scope("whitening", reuse=v1.AUTO_REUSE):
                vector = slim.fully_connected(pooled, 2048, scope="dense", **plain)
        return vector, tf.nn.softplus(score), reduced, block3

    graph = tf.Graph()
    with graph.as_default():
        image = v1.placeholder(tf.uint8, [None, None, 3], "input_image")
        scales = v1.placeholder(tf.float32, [None], "input_scales")
        threshold_in = v1.placeholder(tf.float32, [], "input_abs_thres")
        most_in = v1.placeholder(tf.int32, [], "input_max_feature_num")
        chosen = v1.placeholder(tf.int32, [None], "input_global_scales_ind")
        pixels = ((tf.cast(image, tf.float32) - 128.0) / 128.0)[None]
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        parts: list[tuple[Any, ...]] = []
        vectors = []
        for n in range(len(IMAGE_SCALES)):
            resized = tf.image.resize(pixels, tf.cast(tf.round(shape * scales[n]), tf.int32))
            vector, attention, reduced, _ = network(resized)
            boxes = (
                feature_extractor.CalculateReceptiveBoxes(
                    tf.shape(reduced)[1], tf.shape(reduced)[2], 291.0, 32.0, 145.0
                )
                / scales[n]
            )
            flat = tf.reshape(attention, [-1])
            kept = tf.reshape(tf.where(flat >= threshold_in), [-1])
            cells = tf.gather(tf.reshape(reduced, [-1, 128]), kept)
            scores = tf.gather(flat, kept)
            parts.append((tf.gather(boxes, kept), cells, tf.ones_like(scores) / scales[n], scores))
            vectors.append(vector)
        boxes, cells, inverse, scores = (
            tf.concat(column, 0) for column in zip(*parts, strict=True)
        )
        listed = box_list.BoxList(boxes)
        for name, field in (("cells", cells), ("scales", inverse), ("scores", scores)):
            listed.add_field(name, field)
        best = box_list_ops.non_max_suppression(
            listed, 1.0, tf.minimum(most_in, listed.num_boxes())
        )
        outputs = {
            "boxes": tf.identity(best.get(), "boxes"),
            "features": tf.identity(best.get_field("cells"), "features"),
            "scales": tf.identity(best.get_field("scales"), "scales"),
            "scores": tf.identity(best.get_field("scores")[:, None], "scores"),
            "global_descriptors": tf.identity(
                tf.gather(tf.concat(vectors, 0), chosen), "global_descriptors"
            ),
        }
        resized_in = v1.placeholder(tf.float32, [1, None, None, 3], "resized")
        _, attention, reduced, block3 = network(resized_in)
        session = v1.Session(graph=graph)
        rng = np.random.default_rng(seed)
        for variable in v1.global_variables():
            variable.load(random_value(variable.name, tuple(variable.shape), rng), session)

        def maps(picture: np.ndarray, scale: float) -> Maps:
            values = session.run(
                [block3, attention, reduced], {resized_in: _normalised_array(picture, scale)}
            )
            return {
                name: value[0]
                for name, value in zip(("block3", "attention", "descriptors"), values, strict=True)
            }

        layer = {
            v.name.rpartition("/")[2][:-2]: _InSession(v, session)
            for v in v1.global_variables()
            if v.name.startswith("attention_block/conv2/")
        }
        threshold = _spread(maps, sample, layer["weights"], layer["biases"])
        inputs = {
            "input_image": image,
            "input_scales": scales,
            "input_abs_thres": threshold_in,
            "input_max_feature_num": most_in,
            "input_global_scales_ind": chosen,
        }
        v1.saved_model.simple_save(session, str(folder), inputs, outputs)
    return Reference(folder, threshold, maps, extractor_of(folder, threshold, False, most))


class _InSession:
    """A variable of a TF1 graph with the two methods of a Keras one that `_spread` calls."""

    def __init__(self, variable: Any, session: Any) -> None:
        self._variable, self._session = variable, session

    def numpy(self) -> Any:
        return self._session.run(self._variable)

    def assign(self, value: Any) -> None:
        self._variable.load(value, self._session)


def _normalised_array(image: np.ndarray, scale: float) -> np.ndarray:
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        return np.asarray(session.run(_normalised(tf, image, scale)))


def references(
    depth: int,
    layout: str,
    strides: list[int],
    work: Path,
    sample: np.ndarray,
    seed: int,
    most: int,
) -> Iterator[Reference]:
    """The models of one layout and depth; strides of the local map are for keras, slim's is 32."""
    if layout == "slim":
        yield slim_reference(depth, work / f"r{depth}_slim", sample, seed, most)
        return
    for stride in strides:
        folder = work / f"r{depth}_keras_{stride}"
        yield keras_reference(depth, stride == 32, folder, sample, seed, most)
