"""What a JPEG file says of itself, read in the graph: EXIF orientation, number of scans.

Everything is plain integer arithmetic on the bytes as a uint8 vector: a served model has no Python.
"""

from __future__ import annotations

import tensorflow as tf

_MAX_SEGMENTS = 100  # of a JPEG file, looked through for EXIF


def number(data: tf.Tensor, position: tf.Tensor, count: int, big_endian=False) -> tf.Tensor:
    """The unsigned number, int64 [], in `count` bytes of data, uint8 [N], N > 0; clamped to it."""
    big_endian = tf.convert_to_tensor(big_endian)
    offsets = tf.range(count, dtype=tf.int64)
    offsets = tf.where(big_endian, offsets, count - 1 - offsets)
    powers = tf.constant([256**power for power in reversed(range(count))], tf.int64)
    return tf.reduce_sum(_bytes(data, tf.cast(position, tf.int64) + offsets) * powers)


def _bytes(data: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """The bytes of data, uint8 [N], N > 0, at places int64 [n], clamped to it; int64 [n]."""
    places = tf.clip_by_value(places, 0, _length(data) - 1)
    return tf.cast(tf.gather(data, places), tf.int64)


def jpeg_scans(encoded: tf.Tensor) -> tf.Tensor:
    """int64 [], starts of scans in a JPEG file; those of an embedded preview are counted too.

    Told from other bytes, as of a film that a phone appends, by their length: 6 + 2 per component.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    shifted = tf.pad(data, [[0, 4]])
    marker, code, high, low, components = (shifted[i : tf.size(data) + i] for i in range(5))
    is_start = (marker == 0xFF) & (code == 0xDA) & (high == 0) & (low == 6 + 2 * components)
    return tf.math.count_nonzero(is_start & (components >= 1) & (components <= 4))


def jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """int64 [], EXIF orientation 1..8 of a JPEG file, string []; 1 where none is told.

    Segments are gone through from the start until the one with EXIF; its first directory counts.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)

    def is_exif(position):
        same = [number(data, position + 4 + i, 1) == byte for i, byte in enumerate(b"Exif\0\0")]
        return (number(data, position + 1, 1) == 0xE1) & tf.reduce_all(tf.stack(same))

    def goes_on(position):
        code = number(data, position + 1, 1)
        is_header = (number(data, position, 1) == 0xFF) & (code != 0xDA) & (code != 0xD9)
        return (position + 10 < _length(data)) & is_header & ~is_exif(position)

    def step(position):
        segment = 2 + number(data, position + 2, 2, big_endian=True)
        return [position + tf.where(number(data, position + 1, 1) != 0xFF, segment, 1)]

    start = tf.constant(2, tf.int64)
    (position,) = tf.while_loop(goes_on, step, [start], maximum_iterations=_MAX_SEGMENTS)
    found = (position + 10 < _length(data)) & is_exif(position)
    return tf.cond(
        found,
        lambda: _tiff_orientation(data, position + 10),
        lambda: tf.ones([], tf.int64),
    )


def _tiff_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Orientation, int64 [], in the first directory of the TIFF header at `start`; else 1."""
    big_endian = number(data, start, 1) == ord("M")
    directory = start + number(data, start + 4, 4, big_endian)
    count = number(data, directory, 2, big_endian)
    count = tf.where(directory + 2 + 12 * count <= _length(data), count, 0)
    places = directory + 2 + 12 * tf.range(count)[:, None] + tf.range(12, dtype=tf.int64)
    entries = tf.cast(
        tf.gather(data, places), tf.int64
    )  # [count, 12]: tag 2, type 2, count 4, value 4

    def column(first):
        high, low = entries[:, first], entries[:, first + 1]
        return tf.where(big_endian, 256 * high + low, 256 * low + high)

    values = tf.boolean_mask(column(8), (column(0) == 0x0112) & (column(2) == 3))
    value = tf.concat([values, [1]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _length(data: tf.Tensor) -> tf.Tensor:
    return tf.size(data, out_type=tf.int64)
