"""What a weight pickle may hold: NumPy arrays and plain values, made without looking up a name.

A `Box` on the unpickler's stack is something that is no data, or not known yet to be data; `plain`
turns it into data or refuses it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_DTYPES = {np.dtype(code).str[1:] for code in "?bhilqBHILQefdg"}
_KEY_TYPES = (str, bytes, int, float, bool, type(None))
_MAX_DIMENSIONS = 32


class RefusedError(Exception):
    """What is wrong with the pickle, without the file's name."""


class Box:
    """Something on the stack that is no data, or not known yet to be data."""

    label = "a part of a pickle"

    def plain(self) -> Any:
        """The data it stands for."""
        raise RefusedError(f"holds {self.label}, which is not data")


class Text(Box):
    """A Python 2 str, kept as bytes because most of them are the contents of an array."""

    def __init__(self, data: bytes):
        self.data = data
        self._text: str | None = None

    def plain(self) -> str:
        """As text."""
        if self._text is None:
            self._text = self.data.decode("latin1")
        return self._text


class Tuple(Box):
    """A tuple with boxes in it: arguments or a state, unless it is put into a container."""

    def __init__(self, items: Sequence[Any]):
        # Inner tuples are settled here, so that boxes nest one level deep and no recursion follows.
        self.items = tuple(plain(item) if isinstance(item, Tuple) else item for item in items)
        self._settled: tuple[Any, ...] | None = None

    def plain(self) -> tuple[Any, ...]:
        """As a tuple without boxes."""
        if self._settled is None:
            self._settled = tuple(map(plain, self.items))
        return self._settled


class Global(Box):
    """A name on the list of allowed ones; `call` is what REDUCE does with it here."""

    def __init__(self, name: str):
        self.call = GLOBALS[name]
        self.label = f"the global {name.replace(' ', '.')}"


class DType(Box):
    """A numeric dtype; its byte order comes with BUILD."""

    label = "a dtype"

    def __init__(self, code: Any, *_: Any):
        code = plain(code)
        if not isinstance(code, str) or code not in _DTYPES:
            raise RefusedError(
                f"holds an array of dtype {short(code)}; only bool, integer and floating "
                "point arrays are read"
            )
        self._code = code
        self.dtype = np.dtype(code)

    def build(self, version: Any, order: Any, *state: Any) -> None:
        """Takes the byte order out of the state that NumPy gave it."""
        order = plain(order)
        fields = state[:3]  # subarray, names, fields; then sizes and flags
        if version != 3 or order not in ("<", ">", "|", "=") or fields != (None, None, None):
            raise RefusedError("holds an array of a structured or unknown dtype")
        self.dtype = np.dtype(order + self._code)


class Array(Box):
    """An array, empty until BUILD gives shape, dtype and contents."""

    label = "an array without contents"

    def __init__(self, array_type: Any, *_: Any):
        if not isinstance(array_type, Global) or array_type.call is not _not_callable:
            raise RefusedError("holds an array of a class other than numpy.ndarray")
        self._array: np.ndarray | None = None

    def build(self, version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        """Takes the contents out of the state that NumPy gave it."""
        if version != 1:
            raise RefusedError(f"holds an array state of version {short(version)}, not 1")
        self._array = _make_array(data, dtype, shape, "F" if fortran else "C")

    def plain(self) -> np.ndarray:
        """The array; refused before its contents are there."""
        return super().plain() if self._array is None else self._array


def plain(value: Any) -> Any:
    """The data that a box stands for; anything else as it is."""
    return value.plain() if isinstance(value, Box) else value


def short(value: Any) -> str:
    """A name or number out of the file as one short line that is safe to print."""
    if not isinstance(value, str | int):
        return f"of type {type(value).__name__}"  # printing a container may never end
    text = ascii(value)[1:-1] if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def as_key(value: Any) -> Any:
    """`value` if it can be hashed in constant time and without recursion."""
    value = plain(value)
    if type(value) not in _KEY_TYPES or (isinstance(value, int) and abs(value) >= 2**63):
        raise RefusedError(
            f"has a {type(value).__name__} as a key or set member; only text and 64-bit numbers "
            "are read there"
        )
    return value


def _make_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """A read-only array that shares the memory of `data`."""
    data = data.data if isinstance(data, Text) else data
    if not isinstance(data, bytes) or not isinstance(dtype, DType) or not _is_shape(shape):
        raise RefusedError("holds an array whose contents, dtype or shape are damaged")
    wanted = math.prod(shape) * dtype.dtype.itemsize
    if wanted != len(data):
        raise RefusedError(
            f"holds an array of shape {shape} and dtype {dtype.dtype} with {len(data)} bytes, "
            f"not {wanted}"
        )
    return np.ndarray(shape, dtype.dtype, buffer=data, order=order)


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**48 for size in shape)
    )


def _make_scalar(dtype: Any, data: Any) -> Any:
    return _make_array(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    order = plain(order)
    if order not in ("C", "F", "K") or (order == "K" and not _is_shape(axes)):
        raise RefusedError(f"holds an array of order {short(order)}")
    array = _make_array(data, dtype, shape, "F" if order == "F" else "C")
    return array.transpose(axes) if order == "K" else array


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    text = plain(text)
    if not isinstance(text, str) or plain(encoding) not in ("latin1", "latin-1"):
        raise RefusedError("calls _codecs.encode for something else than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _pairs(items: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((as_key(key), plain(value)) for key, value in items)


def _set(items: Any = ()) -> set[Any]:
    return set(map(as_key, items))


def frozen_set(items: Any = ()) -> frozenset[Any]:
    """A frozenset of simple values."""
    return frozenset(map(as_key, items))


def _not_callable(*_: Any) -> Any:
    raise RefusedError("calls numpy.ndarray, which no weight file does")


# What the names stand for here; the real objects are never looked up.
GLOBALS: dict[str, Callable[..., Any]] = {
    "numpy ndarray": _not_callable,
    "numpy dtype": DType,
    "_codecs encode": _encode,
    "collections OrderedDict": _pairs,
}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_core}.multiarray _reconstruct"] = Array
    GLOBALS[f"{_core}.multiarray scalar"] = _make_scalar
    GLOBALS[f"{_core}.numeric _frombuffer"] = _from_buffer
for _module in ("builtins", "__builtin__"):
    GLOBALS[f"{_module} bytes"] = _no_bytes
    GLOBALS[f"{_module} set"] = _set
    GLOBALS[f"{_module} frozenset"] = frozen_set
# These copy what they are given, which a pickle can name again and again.
COPYING = (_encode, _pairs, _set, frozen_set)
