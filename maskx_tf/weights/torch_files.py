"""Reads the tensors of PyTorch's files, .pth and .safetensors, without PyTorch.

A .pth is a pickle in which tensors refer to storages: members of a zip archive or, up to PyTorch
1.5, bytes after the pickle. What the pickle may name is limited as in `pickles`.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import zipfile
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.weights import pickles
from maskx_tf.weights.pickles import RefusedError

REMEDY = "give the state_dict of a model, as .pth or .safetensors"
_MAGIC = 0x1950A86A20F9469CFC6C  # begins a .pth of PyTorch up to 1.5
_MOST_PICKLED = 1 << 26  # bytes; a pickle is a few hundred for each tensor
_WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys of training scripts' checkpoints
_BFLOAT16 = "bfloat16"
_TYPES = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "BFloat16": _BFLOAT16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "?",
}


class _Storage(NamedTuple):
    key: str
    type: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        """The tensor's values; RefusedError unless they are within its storage."""
        values = storages[self.storage.key]
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        if (
            min((0, self.offset, *self.shape, *self.strides)) < 0
            or count > len(values)
            or (count and self.offset + last >= len(values))
        ):
            raise RefusedError("holds a tensor that is larger than its storage")
        strides = [step * values.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)
        return view.copy()


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickles.Unpickler):
    """Keeps the storages that it comes across."""

    allowed: ClassVar[dict[str, Any]] = {
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": tuple,
    } | {f"torch.{name}Storage": code for name, code in _TYPES.items()}
    dispatch: ClassVar[dict[int, Any]] = dict(pickles.Unpickler.dispatch)

    def __init__(self, file: Any):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor refers to."""
        kind, code, key, _, size = pid[:5]
        if kind != "storage" or code not in _TYPES.values() or (len(pid) > 5 and pid[5]):
            raise RefusedError("holds storages of an unknown kind")
        return self.storages.setdefault(str(key), _Storage(str(key), code, int(size)))

    def load_build(self) -> None:
        """Drops the state of a state_dict, the versions of its modules."""
        if not isinstance(self.stack[-2], collections.OrderedDict):
            raise RefusedError(f"sets the state of a {type(self.stack[-2]).__name__}")
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build


def read(path: str) -> dict[str, Any]:
    """The arrays of a state_dict by their names; what is no tensor stays as it is.

    Args:
      path: a .safetensors, or a .pth of any version: a state_dict, or a dict that has one as
        `model`, `state_dict` or `model_state_dict`.

    Raises:
      UserError: the file cannot be read, is damaged, holds something else, or its pickle calls for
        anything but tensors in plain containers.
    """
    try:
        return _read_safetensors(path) if path.endswith(".safetensors") else _read_pth(path)
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} {error}; {REMEDY}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {REMEDY}.") from error
    except Exception as error:  # of a damaged file, any
        raise UserError(
            f"{path} is damaged or no file of PyTorch ({type(error).__name__}); download it again."
        ) from error


def _read_safetensors(path: str) -> dict[str, Any]:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(
            f"{path} needs the package safetensors: pip install -c requirements.lock safetensors."
        ) from None
    return safetensors.numpy.load_file(path)


def _read_pth(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        content, storages = (_read_zip if is_zip else _read_legacy)(file)
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise RefusedError(f"holds a {type(content).__name__}, not a dict of tensors")
    return {
        str(name): value.array(storages) if isinstance(value, _Tensor) else value
        for name, value in content.items()
    }


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise RefusedError("is a zip file, but none of PyTorch")
        root = names[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise RefusedError("has big-endian numbers")
        if archive.getinfo(names[0]).file_size > _MOST_PICKLED:
            raise RefusedError("holds more than names and shapes in its pickle")
        unpickler = _Unpickler(io.BytesIO(archive.read(names[0])))
        content = unpickler.load()
        storages = {}
        for key, storage in unpickler.storages.items():
            member = archive.getinfo(f"{root}data/{key}")
            if member.file_size < _bytes(storage):
                raise RefusedError("holds a storage that is cut off")
            with archive.open(member) as values:
                storages[key] = _values(values.read(_bytes(storage)), storage)
    return content, storages


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    reads = pickles.WholeReads(file)
    if _Unpickler(reads).load() != _MAGIC:
        raise RefusedError("is a pickle, but none of PyTorch")
    for _ in ("protocol version", "sizes of types"):
        _Unpickler(reads).load()
    unpickler = _Unpickler(reads)
    content = unpickler.load()
    storages = {}
    for key in _Unpickler(reads).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(reads.read(8), "little")
        if count != storage.size:
            raise RefusedError("holds a storage of another size than its tensors say")
        left = os.fstat(file.fileno()).st_size - file.tell()
        if left < _bytes(storage):
            raise RefusedError("is cut off")
        storages[key] = _values(reads.read(_bytes(storage)), storage)
    return content, storages


def _bytes(storage: _Storage) -> int:
    return storage.size * (2 if storage.type == _BFLOAT16 else np.dtype(storage.type).itemsize)


def _values(data: bytes, storage: _Storage) -> np.ndarray:
    if storage.type == _BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, storage.type)
