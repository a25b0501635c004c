"""Reads pickled weight files without importing or calling anything that they name.

Python's own unpickler is not used, not even with a `find_class` that refuses everything: a few
bytes make it fill the memory (a large memo index) or crash it (a deeply nested tuple as a key).
"""

from __future__ import annotations

import codecs
import os
import pickletools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from maskx_tf.errors import UserError
from maskx_tf.weights.pickle_values import (
    COPYING,
    GLOBALS,
    Array,
    Box,
    DType,
    Global,
    RefusedError,
    Text,
    Tuple,
    as_key,
    frozen_set,
    plain,
    short,
)

_WANTED = "give a .pkl of Detectron or detectron2"
_SIGNATURES = {
    b"PK\x03\x04": "is a PyTorch or another zip file, which is not supported",
    b"\x1f\x8b": "is compressed; unpack it with gunzip first",
    b"<": "is a web page or XML, not weights; download the file itself",
    b"\x89HDF": "is an HDF5 file, not a pickle",
}
_OPCODES = {info.code: info for info in pickletools.opcodes}
_MAX_ARGUMENTS = 16


class _File:
    """A file of known size: asking for more than is left fails before memory is taken."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self.left = size

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise EOFError
        self.left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        self.left -= len(line)
        return line


def _quoted_text(file: _File) -> Text:
    line = file.readline().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise RefusedError("has a str without quotes")
    return Text(codecs.escape_decode(line[1:-1])[0])


# Opcodes that push their argument; how the argument is read where pickletools does not do it.
_LITERALS: dict[str, Any] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")),
    "STRING": _quoted_text,
    "BINSTRING": lambda file: Text(file.read(pickletools.read_int4(file))),
    "SHORT_BINSTRING": lambda file: Text(file.read(pickletools.read_uint1(file))),
    "BYTEARRAY8": pickletools.read_bytes8,  # the contents of an array
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class _Machine:
    """The part of the pickle machine that data need; `on_x` executes the opcode X."""

    def __init__(self, file: _File):
        self._file: Any = file  # enough of a file for the readers of pickletools
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below the open marks
        self._memo: dict[int, Any] = {}
        self._copies_left = file.left

    def run(self) -> Any:
        """Executes the opcodes up to STOP and returns the value they leave."""
        while True:
            code = self._file.read(1).decode("latin1")
            info = _OPCODES.get(code)
            if info is None:
                raise RefusedError(f"is not a pickle: the byte {short(code)} is not an opcode")
            name = info.name
            if name == "STOP":
                return plain(self._stack.pop())
            read: Any = _LITERALS.get(name) or (info.arg.reader if info.arg else None)
            if name in _LITERALS:
                self._stack.append(read(self._file))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif execute := getattr(self, f"on_{name.lower()}", None):
                execute(*((read(self._file),) if read else ()))
            else:
                raise RefusedError(f"uses the pickle opcode {name}, which no weights need")

    def on_proto(self, version: int) -> None:
        if version > 5:
            raise RefusedError(f"is written in pickle protocol {version}; 0 to 5 are read")

    def on_frame(self, size: int) -> None:
        pass

    # Names and calls.

    def on_global(self, name: str) -> None:
        if name not in GLOBALS:
            raise RefusedError(
                f"calls for `{short(name.replace(' ', '.'))}`: loading it would run code, and "
                "weights are only NumPy arrays in plain containers. Do not load it elsewhere"
            )
        self._stack.append(Global(name))

    def on_stack_global(self) -> None:
        name, module = plain(self._stack.pop()), plain(self._stack.pop())
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedError("names a global by something else than text")
        self.on_global(f"{module} {name}")

    def on_inst(self, name: str) -> None:
        self.on_global(name)
        raise RefusedError("uses the pickle opcode INST, which no weights need")

    def on_reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global):
            raise RefusedError(f"calls a {type(plain(function)).__name__}")
        if function.call in COPYING:
            self._spend(arguments)
        self._stack.append(function.call(*_items_of(arguments)))

    def _spend(self, arguments: Any) -> None:
        """Bounds all copies together by the file size: each element takes a byte or more there."""
        for argument in _items_of(arguments)[:1]:
            self._copies_left -= len(plain(argument))
        if self._copies_left < 0:
            raise RefusedError("copies the same values over and over, as no weights do")

    def on_build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Array | DType):
            raise RefusedError(f"sets the state of a {type(plain(target)).__name__}")
        target.build(*_items_of(state))

    # The stack and the memo.

    def on_mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def on_pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def on_pop_mark(self) -> None:
        self._pop_mark()

    def on_dup(self) -> None:
        self._stack.append(self._stack[-1])

    def on_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def on_memoize(self) -> None:
        self.on_put(len(self._memo))

    def on_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    on_binput = on_long_binput = on_put
    on_binget = on_long_binget = on_get

    # Containers; what goes into them is plain from then on.

    def on_tuple(self) -> None:
        self._push_tuple(self._pop_mark())

    def on_tuple1(self) -> None:
        self._push_tuple([self._stack.pop()])

    def on_tuple2(self) -> None:
        self._push_tuple([self._stack.pop() for _ in range(2)][::-1])

    def on_tuple3(self) -> None:
        self._push_tuple([self._stack.pop() for _ in range(3)][::-1])

    def _push_tuple(self, items: list[Any]) -> None:
        boxed = any(isinstance(item, Box) for item in items)
        self._stack.append(Tuple(items) if boxed else tuple(items))

    def on_list(self) -> None:
        items = self._pop_mark()
        self._stack.append(list(map(plain, items)))

    def on_append(self) -> None:
        self._extend([self._stack.pop()])

    def on_appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: Iterable[Any]) -> None:
        self._top(list).extend(map(plain, items))

    def on_dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def on_setitem(self) -> None:
        self._set_items([self._stack.pop() for _ in range(2)][::-1])

    def on_setitems(self) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[as_key(key)] = plain(value)

    def on_additems(self) -> None:
        items = self._pop_mark()
        self._top(set).update(map(as_key, items))

    def on_frozenset(self) -> None:
        items = self._pop_mark()
        self._stack.append(frozen_set(items))

    def _top(self, wanted: type) -> Any:
        if not isinstance(self._stack[-1], wanted):
            raise RefusedError(f"adds items to something that is no {wanted.__name__}")
        return self._stack[-1]


def _items_of(value: Any) -> tuple[Any, ...]:
    items = value.items if isinstance(value, Tuple) else value
    if not isinstance(items, tuple) or len(items) > _MAX_ARGUMENTS:
        raise RefusedError("passes arguments that are not a tuple, or too many")
    return items


def load(path: str) -> dict[Any, Any]:
    """The dict in a pickled weight file of Python 2 or 3 (protocols 0 to 5).

    Only NumPy arrays and scalars (bool, integer, floating point) and plain containers and values
    are read. A Python 2 str becomes str (latin1). Nothing that the file names is imported or run.

    Returns:
      The file's dict, with str keys where the file has str or unicode. Arrays are read-only and
      keep the file's byte order. Containers may be shared, or hold themselves, as in the file.

    Raises:
      UserError: the file cannot be read, is damaged or no pickle, holds or calls for anything
        else, has bytes after the pickle, or holds something other than a dict.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is not a file; {_WANTED}")
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _load(file, os.fstat(file.fileno()).st_size)
    except RefusedError as error:
        raise UserError(f"{path} {error}; {_WANTED}") from error
    except EOFError as error:
        raise UserError(f"{path} is cut off; download it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {_WANTED}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit into the memory; use a larger machine") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a pickle; download it again") from error


def _load(file: BinaryIO, size: int) -> dict[Any, Any]:
    start = file.read(8)
    if not start:
        raise RefusedError("is empty")
    for signature, problem in _SIGNATURES.items():
        if start.startswith(signature):
            raise RefusedError(problem)
    file.seek(0)
    bounded = _File(file, size)
    value = _Machine(bounded).run()
    if not isinstance(value, dict):
        raise RefusedError(
            f"holds a {type(value).__name__}, not a dict of arrays; PyTorch files are not supported"
        )
    if bounded.left:
        raise RefusedError(f"has {bounded.left} bytes after the end of the pickle")
    return value
