"""Reads pickled weight files without running anything that they name.

The standard library's unpickler in Python, which looks up names and sets states in methods that can
be overridden: names come from a list of a dozen, states are those of numeric arrays.
"""

from __future__ import annotations

import collections
import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from maskx_tf.errors import UserError

_REMEDY = "give a .pkl of Detectron or detectron2"
_SIGNATURES = {
    b"PK\x03\x04": "is a PyTorch or another zip file",
    b"\x1f\x8b": "is compressed; unpack it with gunzip first",
    b"<": "is a web page or XML, not weights; download the file itself",
    b"\x89HDF": "is an HDF5 file, not a pickle",
}


class RefusedError(Exception):
    """What is wrong with the pickle, without the file's name."""


def _dtype(code: Any, *_: Any) -> np.dtype:
    """A numeric dtype of its own, whose byte order comes with its state."""
    if not isinstance(code, str) or np.dtype(code).kind not in "biuf":
        raise RefusedError(
            f"holds an array of dtype {_short(code)}; only bool, integer and floating point arrays "
            "are read"
        )
    return np.dtype(code, copy=True)


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "_codecs.encode": str.encode,  # how Python 3 writes bytes for Python 2
    "collections.OrderedDict": collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    # Functions without a public name: what NumPy itself writes into a pickle.
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = np.empty(0).__reduce__()[0]  # type: ignore
    _ALLOWED[f"{_core}.multiarray.scalar"] = np.float32(0).__reduce__()[0]  # type: ignore
    _ALLOWED[f"{_core}.numeric._frombuffer"] = np.empty(0).__reduce_ex__(5)[0]  # type: ignore
for _builtins in ("builtins", "__builtin__"):
    for _type in (bytes, set, frozenset):
        _ALLOWED[f"{_builtins}.{_type.__name__}"] = _type


class WholeReads:
    """A file of which less than was asked for is an error, not the beginning of a name."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, count: int) -> bytes:
        """As of a file; EOFError if there is less."""
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        """As of a file; EOFError without the line's end."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class Unpickler(pickle._Unpickler):
    """Runs nothing but what `allowed` has: name -> what takes its place."""

    allowed: ClassVar[dict[str, Any]] = _ALLOWED
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: Any, name: Any) -> Callable[..., Any]:
        """What a name of the file stands for; RefusedError if it is not in `allowed`."""
        full_name = f"{module}.{name}"
        if full_name not in self.allowed:
            raise RefusedError(
                f"calls for `{_short(full_name)}`: loading it would run code, and weights are only "
                "NumPy arrays in plain containers. Do not load it elsewhere"
            )
        return self.allowed[full_name]

    def load_build(self) -> None:
        """Sets a state, which may be any object's, of arrays and of their byte order only."""
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype) and state[2:] != (None, None, None, -1, -1, 0):
            raise RefusedError("holds an array of a structured or unknown dtype")
        if not isinstance(target, np.dtype | np.ndarray):
            raise RefusedError(f"sets the state of a {type(target).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def _short(value: Any) -> str:
    """A name out of the file as one short line that is safe to print."""
    text = ascii(value)[1:-1] if isinstance(value, str) else f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def load(path: str) -> dict[Any, Any]:
    """The dict in a pickled weight file of Python 2 or 3 (protocols 0 to 5).

    Only NumPy arrays and scalars (bool, integer, floating point) and plain containers and values
    are read. A Python 2 str becomes str (latin1). Nothing that the file names is run.

    Raises:
      UserError: the file cannot be read, is damaged or no pickle, holds or calls for anything
        else, or holds something other than a dict.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is not a file; {_REMEDY}")
        with open(path, "rb") as file:
            return _load(file)
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} {error}; {_REMEDY}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
    except EOFError as error:
        raise UserError(f"{path} is cut off; download it again") from error
    except Exception as error:  # of a damaged file, any
        raise UserError(f"{path} is damaged or not a pickle; download it again") from error


def _load(file: BinaryIO) -> dict[Any, Any]:
    start = file.read(8)
    if not start:
        raise RefusedError("is empty")
    for signature, problem in _SIGNATURES.items():
        if start.startswith(signature):
            raise RefusedError(problem)
    file.seek(0)
    content = Unpickler(WholeReads(file), encoding="latin1").load()
    if not isinstance(content, dict):
        raise RefusedError(
            f"holds a {type(content).__name__}, not a dict of arrays; PyTorch files are not "
            "supported"
        )
    return content
