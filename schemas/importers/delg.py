"""DELG's files: `.delg_global` holds a DatumProto, `.delg_local` a DelfFeatures.

Source: tensorflow/models, research/delf/delf/protos:

    DatumShape    repeated int64 dim = 1, packed
    FloatList     repeated float value = 1, packed
    Uint32List    repeated uint32 value = 1, packed
    DatumProto    shape = 1, oneof {float_list = 2, uint32_list = 3}
    DelfFeature   descriptor = 1, float x = 2, y = 3, scale = 4, orientation = 5, strength = 6
    DelfFeatures  repeated DelfFeature feature = 1

What writers make is regular: each feature has the same bytes but for its numbers. Such a file is
checked against that pattern and viewed as one array; every other valid encoding goes through
protobuf's own parser.

`scale` in the files is the feature's: 1 / image scale (ExtractKeypointDescriptor in DELF's
feature_extractor.py), so that 4 is the smallest copy of the image. Some ports write the image scale
itself. `strength` is the attention. Places are centres of receptive fields in pixels of the picture
that was given (a crop, for DELG's queries).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np

from schemas.importers import ImportedLocals, Unusable, checked_locals, ordinals_of

GLOBAL_SUFFIX, LOCAL_SUFFIX = ".delg_global", ".delg_local"
# image scales of DELG's published configurations
SCALES = (0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0)
SCALE_FIELDS = ("feature", "image")
MOST_BYTES = 256_000_000  # of a file: 1,000 features of 128 dimensions are 562 kB
# fields 2 .. 6, each a fixed 32-bit number
_NUMBERS = ("x", "y", "scale", "orientation", "strength")
_numbers_of = attrgetter(*_NUMBERS)


@dataclass(frozen=True)
class DelgFeatures:
    """A `.delg_local` file as it stands: float32 arrays, descriptors [n, W], the others [n]."""

    descriptors: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    orientation: np.ndarray
    strength: np.ndarray


def parse_global(data: bytes) -> np.ndarray:
    """The array of a DatumProto in its own shape: float32, or uint32.

    Raises Unusable where the bytes are none.
    """
    head, values = _datum_head(len(data))
    if values and data.startswith(head):
        return np.frombuffer(data, "<f4", values, len(head))
    return _datum_array(_parsed("DatumProto", data))


def parse_local(data: bytes) -> DelgFeatures:
    """The features of a DelfFeatures in the file's order; none is allowed.

    Raises Unusable where the bytes are none.
    """
    regular = _regular(data)
    if regular is not None:
        return DelgFeatures(
            np.ascontiguousarray(regular["descriptor"]), *(regular[name] for name in _NUMBERS)
        )
    features = _parsed("DelfFeatures", data).feature
    arrays = [_datum_array(feature.descriptor) for feature in features]
    if len({array.shape for array in arrays}) > 1 or any(array.ndim != 1 for array in arrays):
        raise Unusable("its descriptors are not all vectors of one dimension", "dimension")
    numbers = (
        np.array([_numbers_of(feature) for feature in features], np.float32)
        .reshape(-1, len(_NUMBERS))
        .T
    )
    stacked = np.stack(arrays).astype(np.float32) if arrays else np.zeros((0, 0), np.float32)
    return DelgFeatures(stacked, *numbers)


def locals_of(
    features: DelgFeatures,
    *,
    dimension: int,
    most: int,
    scales: tuple[float, ...] = SCALES,
    scale_field: str = "feature",
) -> ImportedLocals:
    """The features as our stores have them.

    Raises Unusable (schemas.importers), also for an unknown scale.
    """
    with np.errstate(divide="ignore"):
        image_scales = (
            1.0 / features.scale.astype(np.float64) if scale_field == "feature" else features.scale
        )
    try:
        ordinals = ordinals_of(image_scales, scales)
    except Unusable as error:
        other = "feature" if scale_field == "image" else "image"
        reason = f"{error.reason}; perhaps the files hold {other} scales (--scale-field {other})"
        raise Unusable(reason, error.error_class) from None
    xy = np.stack([features.x, features.y], axis=1)
    return checked_locals(
        features.descriptors, xy, ordinals, features.strength, dimension=dimension, most=most
    )


def _varint(value: int) -> bytes:
    """A number as the wire has it, in the fewest bytes."""
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])


def _field(tag: int, content: bytes, more: int = 0) -> bytes:
    """Tag, length and content of a field; `more` bytes of it are still to follow."""
    return bytes([tag]) + _varint(len(content) + more) + content


def _datum_start(values: int) -> bytes:
    """What stands before the numbers of a DatumProto of shape [values]."""
    return _field(0x0A, _field(0x0A, _varint(values))) + _field(
        0x12, _field(0x0A, b"", 4 * values), 4 * values
    )


@cache
def _datum_head(size: int) -> tuple[bytes, int]:
    """What a DatumProto of `size` bytes starts with where it is a vector, and its dimension.

    A dimension of 0: it can be none.
    """
    for values in range(size // 4, max(0, size // 4 - 8), -1):
        if len(_datum_start(values)) + 4 * values == size:
            return _datum_start(values), values
    return b"", 0


@cache
def _pattern(record: int) -> tuple[np.dtype[Any], bytes] | None:
    """The layout of a feature of `record` bytes with tag and length.

    With it come the bytes before its numbers.
    """
    for values in range(record // 4, max(0, record // 4 - 16), -1):
        datum = _datum_start(values)
        before = _field(0x0A, datum, 4 * values)
        before = _field(0x0A, before, 4 * values + 25)
        if len(before) + 4 * values + 25 == record:
            fields: list[Any] = [("before", f"V{len(before)}"), ("descriptor", "<f4", (values,))]
            for name in _NUMBERS:
                fields += [(f"tag_{name}", "u1"), (name, "<f4")]
            return np.dtype(fields), before
    return None


def _regular(data: bytes) -> np.ndarray | None:
    """The features as one structured array [n], or None where the file is not regular."""
    if len(data) < 3 or data[0] != 0x0A:
        return None
    length = shift = 0
    for place in range(1, min(6, len(data))):
        length |= (data[place] & 0x7F) << shift
        shift += 7
        if data[place] < 0x80:
            break
    else:
        return None

    record = 1 + place + length
    pattern = _pattern(record) if record <= len(data) and len(data) % record == 0 else None
    if pattern is None:
        return None
    layout, before = pattern
    rows = np.frombuffer(data, layout)
    raw = np.frombuffer(data, np.uint8).reshape(len(rows), record)
    if (raw[:, : len(before)] != np.frombuffer(before, np.uint8)).any():
        return None

    if any(
        (rows[f"tag_{name}"] != (number << 3 | 5)).any() for number, name in enumerate(_NUMBERS, 2)
    ):
        return None

    return rows


def _datum_array(datum: Any) -> np.ndarray:
    """A DatumProto message as an array. Raises Unusable."""
    kind = datum.WhichOneof("kind_oneof")
    if kind is None:
        raise Unusable("it holds no descriptor", "empty")
    held = getattr(datum, kind)
    # written anew they are packed, at its end: five times as fast as one by one
    if kind == "float_list":
        data = held.SerializeToString()
        values = np.frombuffer(data, "<f4", len(held.value), len(data) - 4 * len(held.value))
    else:
        values = np.array(held.value, np.uint32)
    shape = tuple(datum.shape.dim)
    if any(size < 0 for size in shape) or math.prod(shape) != len(values):
        raise Unusable(f"it holds {len(values)} numbers for the shape {list(shape)}", "damaged")
    return values.reshape(shape)


def _parsed(name: str, data: bytes) -> Any:
    """A message from its bytes. Raises Unusable where they are none."""
    from google.protobuf.message import DecodeError

    try:
        message = messages()[name].FromString(data)
    except DecodeError:
        raise Unusable("it is truncated, or no file of DELG", "damaged") from None
    message.DiscardUnknownFields()
    return message


@cache
def messages() -> dict[str, Any]:
    """Message classes by name, in a pool of their own.

    So DELG's generated modules can be loaded beside them.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="delg.proto", package="delg", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, Any, bool]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added = made.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".delg.{kind}"
            else:
                added.type = kind
                if repeated:
                    added.options.packed = True
        return made

    message("DatumShape", ("dim", 1, kinds.TYPE_INT64, True))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, True))
    message("Uint32List", ("value", 1, kinds.TYPE_UINT32, True))
    datum = message(
        "DatumProto",
        ("shape", 1, "DatumShape", False),
        ("float_list", 2, "FloatList", False),
        ("uint32_list", 3, "Uint32List", False),
    )
    datum.oneof_decl.add(name="kind_oneof")
    for field in list(datum.field)[1:]:
        field.oneof_index = 0
    numbers = [(name, number, kinds.TYPE_FLOAT, False) for number, name in enumerate(_NUMBERS, 2)]
    message("DelfFeature", ("descriptor", 1, "DatumProto", False), *numbers)
    message("DelfFeatures", ("feature", 1, "DelfFeature", True))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    return {
        made.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"delg.{made.name}"))
        for made in file.message_type
    }
