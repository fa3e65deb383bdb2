"""Pickles of plain data, read without running anything that they name.

A pickle is a program: it may name any importable function and have it called. Here each name that a
file asks for is looked up in a short table. Sets are built as they are; numpy's arrays, scalars and
dtypes are built by the small stand-ins below, from their bytes, so that not even numpy's own
unpickling runs on the file. Any other name is refused before anything is called.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np

from schemas.errors import UserError

MOST_VALUES = 4_000_000  # of a gallery of a million images some 1,000,100


class _StandIn:
    """What a pickle may call.

    State that it is not made for is refused, so that no class can be altered.
    """

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for something that has none")


class _Ndarray(_StandIn):
    """The class `numpy.ndarray` as an argument; calling it is refused."""

    def __init__(self, *arguments: object) -> None:
        raise pickle.UnpicklingError("an ndarray that is made by a call")


class _Dtype(_StandIn):
    """A numpy dtype: booleans, integers, floats, fixed-length text, or object (a list)."""

    def __init__(self, spec: object, align: object = False, copy: object = False) -> None:
        if not isinstance(spec, str) or not re.fullmatch(r"[biufSUO]\d{0,6}", spec):
            raise pickle.UnpicklingError(f"the dtype {spec!r:.80}")
        self.is_object = spec[0] == "O"
        self.dtype = np.dtype(spec)

    # (version, byte order, ...): only the order matters here
    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def values(self, raw: object, shape: Any, order: str) -> Any:
        """The raw bytes as nested lists of Python values (one value for the shape ())."""
        if self.is_object:
            raise pickle.UnpicklingError("objects as raw bytes")
        if isinstance(raw, str):  # bytes written by Python 2, which are read as latin1
            raw = raw.encode("latin1")
        array = np.frombuffer(raw, self.dtype)  # type: ignore[call-overload]
        return array.reshape(shape, order="F" if order == "F" else "C").tolist()


class _Array(_StandIn, list[Any]):
    """A numpy array as nested lists; `_reconstruct` makes it empty and its state fills it."""

    def __init__(self, subtype: object, shape: object, typecode: object) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.is_object:
            if len(shape) != 1 or not isinstance(raw, list):
                raise pickle.UnpicklingError("an object array of more than one dimension")
            self[:] = raw
        else:
            self[:] = dtype.values(raw, shape, "F" if fortran else "C")


class _Scalar(_StandIn):
    """`numpy.core.multiarray.scalar`: a Python value."""

    def __new__(cls, dtype: _Dtype, raw: object) -> Any:
        return dtype.values(raw, (), "C")


class _FromBuffer(_StandIn):
    """`numpy.core.numeric._frombuffer`, of protocol 5: nested lists."""

    def __new__(cls, raw: object, dtype: _Dtype, shape: object, order: str, *axes: object) -> Any:
        return dtype.values(raw, shape, order)


class _Encode(_StandIn):
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes below protocol 3."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"the encoding {encoding!r:.80}")
        return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, place: str) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # latin1: text and bytes of Python 2
        self._place = place

    def find_class(self, module: str, name: str) -> type:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UserError(
                f"{self._place} is a pickle that asks for {module}.{name}, which is not plain "
                "data: refused, and nothing in it was run. Convert it to JSON where you trust it."
            ) from None


def _check_size(content: object) -> None:
    """Raise UnpicklingError for more values than a file of data has: a few bytes can hold a list of
    lists that hold each other, without end for whoever walks through them.
    """
    values, left = 0, [content]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            left += [*inner.keys(), *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            left += inner
        values += 1
        if values + len(left) > MOST_VALUES:
            raise pickle.UnpicklingError(f"more than {MOST_VALUES:,} values")


def load_plain(data: bytes, place: str) -> Any:
    """The content of a pickle of plain data; arrays as lists.

    Plain are dict, list, tuple, set, str, bytes, int, float, bool and None.

    Args:
        data: the pickle, of any protocol and of Python 2 or 3.
        place: what messages call it, a path or URL.

    Raises:
        UserError: the pickle names anything else (nothing is called), or it is damaged.
    """
    try:
        content = _Unpickler(data, place).load()
        _check_size(content)
        return content
    except UserError:
        raise
    except Exception as error:  # a damaged pickle fails with almost any exception
        reason = str(error) or type(error).__name__
        raise UserError(f"{place} cannot be read as a pickle of plain data: {reason}.") from error
