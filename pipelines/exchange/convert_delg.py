"""convert-delg: a TensorFlow SavedModel of DELG -> the safetensors file of the extractor `delg`.

The variables are read from the model's checkpoint. What they leave open (where attention looks, the
stride of the local map) is settled by running the SavedModel itself on a picture and comparing; a
network that does not give what the SavedModel gives is not written. TensorFlow (extra `convert`) is
needed here alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engines.settings import RunSettings
from pipelines.exchange.convert_delg_check import Agreement, load_saved_model
from pipelines.exchange.convert_options import Options as Options
from pipelines.storage.place import open_place
from rrt_core.extractors.delg.extractor import THRESHOLDS
from rrt_core.extractors.delg.network import BLOCK3, EXPANDED, KERAS, weights_file
from rrt_core.extractors.delg.variables import (
    Mapped,
    looking_at_block3,
    map_variables,
    object_paths,
    tensors,
)
from schemas.errors import UserError

CHECKPOINT = "variables/variables"
STRIDES = (32, 16)
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class Converted:
    """What was made. agreement: None where nothing was compared."""

    mapped: Mapped
    threshold: float
    size: int
    agreement: Agreement | None


def run(options: Options, settings: RunSettings = RunSettings()) -> Converted:
    """Write the file: whole, under a temporary name, fsynced, renamed. Raises UserError."""
    folder, name = os.path.split(options.out)
    if not name:
        raise UserError(
            f"convert-delg: OUT is {options.out!r}, a folder; name the file to write, "
            f"x.safetensors."
        )
    place = open_place(folder or ".")
    if place.exists(name) and not settings.overwrite:
        raise UserError(f"{options.out} exists: name another file, or give --overwrite.")
    if options.local_stride not in (0, *STRIDES):
        raise UserError(
            f"convert-delg: --local-stride is {options.local_stride}; it must be 16 or 32."
        )

    model = Path(options.model)
    _require_saved_model(model, options.check)
    threshold = threshold_of(options)

    tensorflow = import_tensorflow()
    shapes, reader = _open_checkpoint(tensorflow, model)
    mapped = map_variables(shapes, options.model, _object_paths(reader, shapes))
    saved = load_saved_model(tensorflow, model) if options.check else None

    refused: list[tuple[Mapped, Agreement]] = []
    for candidate in candidates(mapped, options):
        made = tensors(candidate, shapes, reader.get_tensor, options.model)
        data = weights_file(made, candidate.architecture, threshold, model.resolve().name)
        agreement = saved.compare(data, candidate.architecture) if saved is not None else None
        if agreement is None or agreement.close():
            place.write(name, data)
            return Converted(candidate, threshold, len(data), agreement)
        refused.append((candidate, agreement))

    mapped, nearest = min(refused, key=lambda pair: pair[1].worst())
    a = mapped.architecture
    raise UserError(
        f"The network converted from {options.model} does not give what the SavedModel gives, so "
        f"nothing was written: {nearest} (layout {a.layout}, attention at {a.attention_input}, "
        f"stride {a.local_stride}). It is of another architecture than those that are known here."
    )


def summarise(options: Options, converted: Converted) -> None:
    """Say what was written and how near it is."""
    a = converted.mapped.architecture
    print(
        f"{options.out}: ResNet-{a.depth} ({a.layout}), attention at {a.attention_input}, local "
        f"stride {a.local_stride}, {a.local_dim}-D locals, {a.global_dim}-D global, threshold "
        f"{converted.threshold:g}, {converted.size / 1e6:.1f} MB"
    )
    agreement = converted.agreement
    print(
        f"agrees with the SavedModel: {agreement}"
        if agreement
        else "not compared with the SavedModel (--no-check)"
    )


def threshold_of(options: Options) -> float:
    """The threshold given, or that of the published model that is named, or that the folder names.

    Raises UserError.
    """
    if options.threshold is not None:
        return options.threshold

    name = options.published or Path(options.model).resolve().name
    for published, threshold in THRESHOLDS.items():
        if name == published or name.startswith(f"{published}_"):  # a date follows
            return threshold

    raise UserError(
        f"The folder {options.model} is not named as a published model, so the threshold of its "
        f"attention is unknown: give --published ({', '.join(THRESHOLDS)}) or --threshold."
    )


def candidates(mapped: Mapped, options: Options) -> Iterator[Mapped]:
    """The architectures that the variables leave open, the likeliest first.

    With --no-check the first is taken.
    """
    known = mapped.architecture
    seen = [EXPANDED, BLOCK3] if known.attention_input == EXPANDED else [BLOCK3]
    if known.layout != KERAS:
        seen.reverse()  # the paper's attention looks at the third stage
    strides = STRIDES if known.layout == KERAS else STRIDES[:1]
    if not known.block3_strides:
        strides = STRIDES[::-1]

    if options.attention_input:
        if options.attention_input not in seen:
            raise UserError(
                f"{options.model} has no expanding layer, so its attention looks at {BLOCK3}."
            )
        seen = [options.attention_input]
    if options.local_stride:
        if options.local_stride not in strides:
            raise UserError(f"{options.model} is of layout {known.layout}: its local stride is 32.")
        strides = (options.local_stride,)
    for stride in strides:
        for attention_input in seen:
            one = mapped if attention_input == EXPANDED else looking_at_block3(mapped)
            yield Mapped(replace(one.architecture, block3_strides=stride == 32), one.variables)


def import_tensorflow() -> Any:
    """The module. Raises UserError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    # TensorFlow makes its LLVM visible to the whole process: a Triton that torch loads later, to
    # train, would find it instead of its own and abort. Loaded first, it keeps its own.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")

    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"convert-delg needs TensorFlow, which cannot be imported ({error}): install the "
            f"extra `convert` (pip install 'rrt-pipelines[convert]')."
        ) from error
    return tensorflow


def _require_saved_model(model: Path, check: bool) -> None:
    needed = [f"{CHECKPOINT}.index", *(["saved_model.pb"] if check else [])]
    for name in needed:
        if not (model / name).is_file():
            hint = "; unpack the archive first" if model.is_file() else ""
            raise UserError(f"{model} is no folder of a SavedModel: it has no {name}{hint}.")


def _open_checkpoint(tensorflow: Any, model: Path) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Shape of every variable, and the reader of their values."""
    try:
        reader = tensorflow.train.load_checkpoint(str(model / CHECKPOINT))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # TensorFlow's own errors, of a damaged file
        why = str(error).split("\n")[0][:200]
        raise UserError(
            f"The variables of {model} cannot be read ({why}): the files are damaged."
        ) from error
    return shapes, reader


def _object_paths(reader: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | None]:
    """What TF2 keeps beside the variables: which object holds which. Empty for TF1."""
    if _GRAPH not in shapes:
        return {}
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    graph = TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    keys = [
        {a.name: a.checkpoint_key for a in node.attributes}.get("VARIABLE_VALUE")
        for node in graph.nodes
    ]
    return object_paths(
        [{c.local_name: c.node_id for c in node.children} for node in graph.nodes], keys
    )
