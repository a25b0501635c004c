"""Serialises tf.train.Example without TensorFlow, so that record-writing processes start fast."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

# Field numbers of tensorflow/core/example/{example,feature}.proto; all fields are length-delimited.
_FEATURES = _MAP_ENTRY = _KEY = _LIST_VALUE = _BYTES_LIST = 1
_VALUE = _FLOAT_LIST = 2
_INT64_LIST = 3
_LENGTH_DELIMITED = 2


def serialize(features: Mapping[str, tuple[type, Sequence[Any]]]) -> bytes:
    """The bytes of a tf.train.Example, keys sorted: equal features give equal bytes.

    Args:
      features: key -> (bytes, float or int, the values); float is stored as float32.
    """
    entries = b"".join(
        _field(_MAP_ENTRY, _field(_KEY, key.encode()) + _field(_VALUE, _feature(*features[key])))
        for key in sorted(features)
    )
    return _field(_FEATURES, entries)


def _feature(kind: type, values: Sequence[Any]) -> bytes:
    if kind is bytes:
        return _field(_BYTES_LIST, b"".join(_field(_LIST_VALUE, value) for value in values))
    if kind is float:
        packed = struct.pack(f"<{len(values)}f", *values)
        return _field(_FLOAT_LIST, _field(_LIST_VALUE, packed) if values else b"")
    packed = b"".join(_varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values)
    return _field(_INT64_LIST, _field(_LIST_VALUE, packed) if values else b"")


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field (bytes, a string or a message) of any protocol buffer."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
