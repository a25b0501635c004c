"""Small features of a serialised tf.Example, found without reading the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    found: dict[str, Any] = {}
    try:
        for key, head, value, _ in _entries(read, length):
            if key in keys:
                found[key] = _first_value(head, value)
                if len(found) == len(keys):
                    break
    except (IndexError, ValueError):
        pass
    return found


def peek_features(
    read: Callable[[int, int], bytes], length: int, keys: Collection[str]
) -> dict[str, bytes]:
    """Some features of whatever length, each as the bytes of a tf.train.Feature.

    Args:
      read: as in `peek`.
      length: of the message in bytes.
      keys: features wanted.
    """
    found: dict[str, bytes] = {}
    try:
        for key, head, value, offset in _entries(read, length):
            if key in keys:
                _, start, size = _field(head, value)
                found[key] = read(offset + start, size)
                if len(found) == len(keys):
                    break
    except (IndexError, ValueError):
        pass
    return found


def _entries(
    read: Callable[[int, int], bytes], length: int
) -> Iterator[tuple[str, bytes, int, int]]:
    """(key, first bytes of the map's entry, where its value is in them, where it is) of each."""
    _, start, size = _field(read(0, 16), 0)  # Example.features
    offset, end = start, min(start + size, length)
    while offset < end:
        head = read(offset, _HEAD_BYTES)
        _, start, size = _field(head, 0)  # one entry of the map
        _, key_start, key_size = _field(head, start)
        value = key_start + key_size
        yield head[key_start:value].decode(errors="replace"), head, value, offset
        offset += start + size


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
