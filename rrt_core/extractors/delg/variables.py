"""Names of DELG's variables in TensorFlow -> names of our tensors, for both families of exports.

keras  paths of objects, `backbone/l4f/conv2a/kernel`, from the object graph of a TF2 SavedModel as
       export_local_and_global_model.py writes it (the checkpoint's own keys are
       `_model/backbone/l4f/variables/0/...`)
slim   variable names of a TF1 SavedModel, `resnet_v1_50/block3/unit_6/bottleneck_v1/conv2/weights`.
       The code that exported the published models is not public: the heads are recognised by their
       shapes, which are unlike

Nothing here needs TensorFlow: variables come as a mapping of names to shapes and a function that
    reads one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rrt_core.extractors.delg.network import (
    BLOCK3,
    EPSILON,
    EXPANDED,
    KERAS,
    SLIM,
    Architecture,
    tensor_shapes,
)
from schemas.errors import UserError

Shape = tuple[int, ...]
Read = Callable[[str], npt.NDArray[np.float32]]

_DEEPEST = 3  # backbone / l4f / conv2a / kernel
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_KERAS_UNIT = re.compile(r"(?:^|/)backbone/l([2-5])([a-z])/conv2a/kernel$")
_SLIM_UNIT = re.compile(
    r"^(?:.*/)?(resnet_v1_\d+)/block([1-4])/unit_(\d+)/bottleneck_v1/conv1/weights$"
)
_SUBSAMPLING = "backbone/subsampling_layer"
_KERAS_NORM = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "mean",
    "moving_variance": "variance",
}


@dataclass(frozen=True)
class Mapped:
    """How an export's variables make our tensors.

    architecture  as far as names and shapes show it: not where attention looks; block3_strides from
                  an object graph
    variables     tensor name -> name of the variable, or None where TensorFlow has none (a bias of
                  0, a factor of 1)
    """

    architecture: Architecture
    variables: Mapping[str, str | None]


def object_paths(
    children: Sequence[Mapping[str, int]], keys: Sequence[str | None]
) -> dict[str, str | None]:
    """Paths below the DELG model in an object graph.

    children: for each node, its children's nodes by their names. keys: the checkpoint's key where a
        node is a variable.
    Returns the key of each object's path, `backbone/l4f/conv2a/kernel`; None for those that are no
    variable. Empty where no node has the children `backbone` and `attention`.
    """
    models = [
        node for node, named in enumerate(children) if {"backbone", "attention"} <= set(named)
    ]
    by_path: dict[str, str | None] = {}
    pending = [("", node, 0) for node in models[:1]]
    while pending:
        path, node, depth = pending.pop()
        for name, child in children[node].items():
            by_path[path + name] = keys[child]
            if depth < _DEEPEST:
                pending.append((f"{path}{name}/", child, depth + 1))
    return by_path


def map_variables(
    shapes: Mapping[str, Shape], where: str, paths: Mapping[str, str | None] | None = None
) -> Mapped:
    """Recognise the family, the depth and the variables.

    shapes: every variable of the checkpoint. Optimiser slots and classifiers of training are passed
        over.
    paths: of `object_paths`, where the checkpoint has an object graph.
    Raises UserError: no DELG network, variables missing, or of a wrong shape.
    """
    plain = {
        name.removesuffix(_VALUE): name
        for name in shapes
        if "OPTIMIZER_SLOT" not in name and not name.startswith(("optimizer/", "_CHECKPOINTABLE"))
    }
    paths = paths or {}
    plain.update({path: key for path, key in paths.items() if key is not None and key in shapes})
    if any(_KERAS_UNIT.search(name) for name in plain):
        mapped = _map_keras(plain, where, not paths or _SUBSAMPLING in paths)
    elif any(_SLIM_UNIT.match(name) for name in plain):
        mapped = _map_slim(plain, shapes, where)
    else:
        raise UserError(
            f"{where} holds no DELG network: none of its {len(shapes)} variables is named as in a "
            "ResNet of DELG (backbone/l2a/conv2a/kernel, or "
            "resnet_v1_50/block1/unit_1/bottleneck_v1/conv1/weights)."
        )
    return Mapped(_sized(mapped, shapes, where), mapped.variables)


def tensors(
    mapped: Mapped, shapes: Mapping[str, Shape], read: Read, where: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Read the variables into our tensors: convolutions [out, in, rows, columns], float32.

    Raises UserError for a variable of a wrong shape or with values that are not finite.
    """
    wanted = tensor_shapes(mapped.architecture)
    made: dict[str, npt.NDArray[np.float32]] = {}
    for name, variable in mapped.variables.items():
        if variable is None:
            value = _neutral(name.rpartition(".")[2], mapped.architecture.layout)
            made[name] = np.full(wanted[name], value, np.float32)
            continue
        if _turned(shapes[variable], wanted[name]) != wanted[name]:
            raise UserError(
                f"The variable {variable} in {where} has the shape {shapes[variable]}, which does "
                f"not fit {wanted[name]} of {name}: is this a DELG model with autoencoder?"
            )
        values = np.asarray(read(variable), np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"The variable {variable} in {where} has values that are not finite.")
        if values.ndim == 4 and len(wanted[name]) == 4:
            values = values.transpose(3, 2, 0, 1)
        elif len(wanted[name]) == 2:
            values = values.reshape(values.shape[-2:]).T
        made[name] = np.ascontiguousarray(values)

    return made


def _neutral(kind: str, layout: str) -> float:
    """The value of a tensor that changes nothing."""
    return {"gamma": 1.0, "variance": 1.0 - EPSILON[layout]}.get(kind, 0.0)


def _turned(shape: Shape, wanted: Shape) -> Shape:
    """The shape of a variable after `tensors` has turned it."""
    if len(wanted) == 4 and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if len(wanted) == 2 and len(shape) >= 2 and all(n == 1 for n in shape[:-2]):
        return (shape[-1], shape[-2])
    return shape


def _sized(mapped: Mapped, shapes: Mapping[str, Shape], where: str) -> Architecture:
    """The architecture with the channels that the variables have."""

    def outputs(name: str) -> int:
        variable = mapped.variables[name]
        shape = shapes[variable] if variable is not None else ()
        if not shape:
            raise UserError(
                f"The variable {variable} in {where} is a single number, not the weights of a "
                "layer."
            )
        return int(shape[-1])

    return replace(
        mapped.architecture,
        width=outputs("stem.weight"),
        attention_dim=outputs("attention.weight"),
        local_dim=outputs("reduce.weight"),
        global_dim=outputs("embedding.weight"),
    )


def _map_keras(plain: Mapping[str, str], where: str, block3_strides: bool) -> Mapped:
    letters: dict[int, set[str]] = {stage: set() for stage in range(2, 6)}
    for name in plain:
        if match := _KERAS_UNIT.search(name):
            letters[int(match[1])].add(match[2])
    units = _counted([len(letters[stage]) for stage in range(2, 6)], where)

    ends: dict[str, str | None] = {}

    def layer(tensor: str, path: str, norm: str | None) -> None:
        """A convolution (or dense layer), and the normalisation behind it."""
        ends[f"{tensor}.weight"], ends[f"{tensor}.bias"] = f"{path}/kernel", f"{path}/bias"
        if norm is not None:
            ends.update(
                {f"{tensor}.{ours}": f"{norm}/{theirs}" for theirs, ours in _KERAS_NORM.items()}
            )

    layer("stem", "backbone/conv1", "backbone/bn_conv1")
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            at = f"backbone/l{stage + 1}{chr(ord('a') + unit)}"
            for number, letter in enumerate("abc", 1):
                layer(
                    f"stage{stage}.{unit}.conv{number}", f"{at}/conv2{letter}", f"{at}/bn2{letter}"
                )
            if unit == 0:
                layer(f"stage{stage}.0.shortcut", f"{at}/conv_shortcut", f"{at}/bn_shortcut")

    layer("reduce", "autoencoder/conv1", None)
    layer("expand", "autoencoder/conv2", None)
    layer("attention", "attention/conv1", "attention/bn_conv1")
    layer("score", "attention/conv2", None)
    layer("embedding", "backbone/embedding_layer", None)
    paths = _by_end(plain, {end for end in ends.values() if end is not None})
    missing = sorted(end for end in ends.values() if end is not None and end not in paths)

    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} variables of DELG, such as "
            f"{missing[0]}{_hint(missing[0])}."
        )

    variables = {tensor: paths[end] for tensor, end in ends.items() if end is not None}
    architecture = Architecture(
        units=units, layout=KERAS, block3_strides=block3_strides, attention_input=EXPANDED
    )
    return Mapped(architecture, variables)


def _by_end(plain: Mapping[str, str], ends: set[str]) -> dict[str, str]:
    """The variable of each path, whatever stands before it (`_model/`, nothing).

    Of several it is the shortest name.
    """
    variables: dict[str, str] = {}
    for name in sorted(plain, key=lambda name: (len(name), name)):
        pieces = name.split("/")
        for start in range(len(pieces) - 2):
            end = "/".join(pieces[start:])
            if end in ends:
                variables.setdefault(end, plain[name])
    return variables


def _hint(missing: str) -> str:
    if missing.startswith("autoencoder"):
        return ": export the model with its autoencoder (--use_autoencoder)"
    if missing.startswith("backbone/embedding"):
        return ": export the local and global model (--delg_global_features)"
    return ""


def _map_slim(plain: Mapping[str, str], shapes: Mapping[str, Shape], where: str) -> Mapped:
    scopes: dict[str, dict[int, int]] = {}
    for name in plain:
        if match := _SLIM_UNIT.match(name):
            scope = name[: match.end(1)]
            stages = scopes.setdefault(scope, {})
            stages[int(match[2])] = max(stages.get(int(match[2]), 0), int(match[3]))

    if len(scopes) > 1:
        raise UserError(
            f"{where} holds several ResNets ({', '.join(sorted(scopes))}); a DELG model has one."
        )

    scope, stages = next(iter(scopes.items()))
    units = _counted([stages.get(stage, 0) for stage in range(1, 5)], where)
    names: dict[str, str | None] = {}

    def layer(tensor: str, path: str, normalised: bool) -> None:
        if f"{path}/weights" not in plain:
            raise UserError(f"{where} lacks the variable {path}/weights of DELG.")
        names[f"{tensor}.weight"] = plain[f"{path}/weights"]
        names[f"{tensor}.bias"] = plain.get(f"{path}/biases")
        if not normalised:
            return
        for theirs, ours in _KERAS_NORM.items():
            names[f"{tensor}.{ours}"] = plain.get(f"{path}/BatchNorm/{theirs}")
        lacking = names[f"{tensor}.mean"] is None or names[f"{tensor}.variance"] is None
        if lacking and not (tensor == "attention" and names["attention.bias"] is not None):
            raise UserError(
                f"{where} lacks the variable {path}/BatchNorm/moving_mean or moving_variance of "
                "DELG."
            )

    layer("stem", f"{scope}/conv1", True)
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            at = f"{scope}/block{stage}/unit_{unit + 1}/bottleneck_v1"
            for number in (1, 2, 3):
                layer(f"stage{stage}.{unit}.conv{number}", f"{at}/conv{number}", True)
            if unit == 0:
                layer(f"stage{stage}.0.shortcut", f"{at}/shortcut", True)

    stem = names["stem.weight"]
    width = shapes[stem][-1] if stem is not None else 0
    heads = _slim_heads(
        {
            name[: -len("/weights")]: shapes[full]
            for name, full in plain.items()
            if name.endswith("/weights") and not name.startswith(f"{scope}/")
        },
        16 * width,
        32 * width,
        where,
    )
    for tensor, path in heads.items():
        layer(tensor, path, tensor == "attention")
    seen = EXPANDED if "expand" in heads else BLOCK3

    return Mapped(Architecture(units=units, layout=SLIM, attention_input=seen), names)


def _slim_heads(paths: Mapping[str, Shape], block3: int, block4: int, where: str) -> dict[str, str]:
    """The layers beside the ResNet, distinguished by what they turn into what."""

    def find(what: str, fits: Callable[[int, int], bool]) -> str:
        flat = {
            path: shape
            for path, shape in paths.items()
            if len(shape) >= 2 and set(shape[:-2]) <= {1}
        }
        fitting = sorted(path for path, shape in flat.items() if fits(shape[-2], shape[-1]))
        if len(fitting) != 1:
            raise UserError(
                f"{where}: {what} must be one variable of that shape beside the ResNet, but there "
                f"are {len(fitting)}{': ' + ', '.join(fitting) if fitting else ''}."
            )
        return fitting[0]

    score = find("the attention's score (channels -> 1)", lambda i, o: o == 1)
    hidden = paths[score][-2]
    heads = {
        "attention": find(
            f"the attention's first layer ({block3} -> {hidden})",
            lambda i, o: (i, o) == (block3, hidden),
        ),
        "score": score,
        "reduce": find(
            f"the autoencoder's first layer ({block3} -> fewer, not {hidden})",
            lambda i, o: i == block3 and o not in (1, hidden) and o < block3,
        ),
        "embedding": find(
            f"the whitening ({block4} -> any, up to {block4})",
            lambda i, o: i == block4 and o <= block4,
        ),
    }
    reduced = paths[heads["reduce"]][-1]
    if any(shape[-2:] == (reduced, block3) for shape in paths.values()):
        what = f"the autoencoder's second layer ({reduced} -> {block3})"
        heads["expand"] = find(what, lambda i, o: (i, o) == (reduced, block3))

    return heads


def looking_at_block3(mapped: Mapped) -> Mapped:
    """The same network whose attention looks at the third stage itself."""
    kept = {
        name: variable
        for name, variable in mapped.variables.items()
        if not name.startswith("expand.")
    }
    return Mapped(replace(mapped.architecture, attention_input=BLOCK3), kept)


def _counted(counts: list[int], where: str) -> tuple[int, int, int, int]:
    first, second, third, fourth = counts
    if min(counts) < 1:
        raise UserError(
            f"{where} lacks a stage of its ResNet: {first}, {second}, {third}, {fourth} units in "
            "the four."
        )
    return first, second, third, fourth
