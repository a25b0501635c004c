"""Single small features of a serialised tf.Example, found without reading the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

_HEAD_BYTES = 96  # of a map entry: its key, and all of a small value
_LENGTH_DELIMITED = 2


def peek(
    read: Callable[[int, int], bytes], length: int, keys: Collection[str]
) -> dict[str, int | bytes]:
    """The first values of some features, as far as the message can be followed.

    Args:
      read: (offset, count) -> bytes of the message.
      length: of the message in bytes.
      keys: features wanted, each one int64 or a short byte string.

    Returns:
      What was found; damaged messages give less, or wrong values, but no error.
    """
    wanted = {key.encode(): key for key in keys}
    found: dict[str, Any] = {}
    try:
        _, start, size = _field(read(0, 16), 0)  # Example.features
        offset, end = start, min(start + size, length)
        while offset < end and len(found) < len(wanted):
            head = read(offset, _HEAD_BYTES)
            _, start, size = _field(head, 0)  # one entry of the map
            _, key_start, key_size = _field(head, start)
            key = head[key_start : key_start + key_size]
            if key in wanted:
                found[wanted[key]] = _first_value(head, key_start + key_size)
            offset += start + size
    except (IndexError, ValueError):
        pass
    return found


def _first_value(data: bytes, offset: int) -> int | bytes:
    _, offset, _ = _field(data, offset)  # the entry's value: a Feature
    kind, offset, _ = _field(data, offset)  # one of its lists
    if kind == 3 and data[offset] & 7 != _LENGTH_DELIMITED:  # int64, not packed
        return _varint(data, offset + 1)[0]
    _, offset, size = _field(data, offset)
    return _varint(data, offset)[0] if kind == 3 else data[offset : offset + size]


def _field(data: bytes, offset: int) -> tuple[int, int, int]:
    """(number, start, size) of the length-delimited field at `offset`."""
    tag, offset = _varint(data, offset)
    if tag & 7 != _LENGTH_DELIMITED:
        raise ValueError(f"wire type {tag & 7}")
    size, offset = _varint(data, offset)
    return tag >> 3, offset, size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
