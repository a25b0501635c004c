"""What the first bytes of an image file say, read in the graph: kind, size, EXIF orientation.

Everything is plain integer arithmetic on the bytes as a uint8 vector: a served model has no Python.
"""

from __future__ import annotations

import tensorflow as tf

JPEG, PNG, GIF, BMP, UNKNOWN = range(5)
_HEADER_BYTES = 32  # holds the size of a PNG, GIF or BMP file
_MAX_SEGMENTS = 100  # of a JPEG file, looked through for EXIF
_GIF_WINDOW = 64  # sub-blocks of a GIF file looked at in one step
_MAX_GIF_STEPS = 2000  # up to the end of its first frame


def kind(encoded: tf.Tensor) -> tf.Tensor:
    """int32 [], what the bytes, string [], begin as: `JPEG`, `PNG`, `GIF`, `BMP`, `UNKNOWN`."""
    starts = {JPEG: b"\xff\xd8\xff", PNG: b"\x89PNG\r\n\x1a\n", GIF: b"GIF8", BMP: b"BM"}
    found = [
        tf.equal(tf.strings.substr(encoded, 0, len(start)), start) for start in starts.values()
    ]
    return tf.argmax(tf.stack([*found, tf.constant(True)]), output_type=tf.int32)


def size(encoded: tf.Tensor, kind_of_file: int) -> tf.Tensor:
    """int64 [2], (height, width) as a file of the given kind says: what its decoder will allocate.

    Of a GIF it is the size of the screen. A header cut short gives any numbers: decoding will fail.
    """
    if kind_of_file == JPEG:
        return tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64)  # libjpeg's own reading
    data = tf.io.decode_raw(tf.strings.substr(encoded, 0, _HEADER_BYTES), tf.uint8)
    if kind_of_file == PNG:
        return tf.stack(
            [number(data, 20, 4, big_endian=True), number(data, 16, 4, big_endian=True)]
        )
    if kind_of_file == GIF:
        return tf.stack([number(data, 8, 2), number(data, 6, 2)])
    height, width = number(data, 22, 4), number(data, 18, 4)
    return tf.stack([tf.minimum(height, 2**32 - height), width])  # negative: rows from the top


def png_starts_with_its_header(encoded: tf.Tensor) -> tf.Tensor:
    """Whether (bool []) the first chunk of a PNG file, string [], is the one that `size` reads."""
    data = tf.io.decode_raw(tf.strings.substr(encoded, 0, _HEADER_BYTES), tf.uint8)
    return number(data, 12, 4, big_endian=True) == int.from_bytes(b"IHDR", "big")


def bmp_bits(encoded: tf.Tensor) -> tf.Tensor:
    """Bits per pixel, int64 [], of a BMP file, string []; of 8 and less it has a palette."""
    data = tf.io.decode_raw(tf.strings.substr(encoded, 0, _HEADER_BYTES), tf.uint8)
    return number(data, 28, 2)


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
    """int64 [], starts of scans in a JPEG file; those of an embedded preview are counted too."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    return tf.math.count_nonzero((data[:-1] == 0xFF) & (data[1:] == 0xDA))


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


def gif_first_frame(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A GIF file cut after its first frame: a decoder of all frames would fill the memory.

    Returns:
      (string [], int64 [4]: left, top, width, height of the frame). The string is empty where no
      whole frame is found.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    at_block, in_extension, in_image, done = range(4)

    def table_bytes(position):
        packed = number(data, position, 1)
        colors = tf.bitwise.left_shift(tf.constant(2, tf.int64), packed & 7)
        return tf.where(packed >= 0x80, 3 * colors, 0)

    def goes_on(position, state, frame):
        return (state != done) & (position < _length(data))

    def step(position, state, frame):
        lengths = _bytes(data, position + 256 * tf.range(_GIF_WINDOW, dtype=tf.int64))
        # Sub-blocks of full length, as nearly all are, are passed many at a time.
        full = tf.reduce_sum(tf.math.cumprod(tf.cast(lengths == 255, tf.int64)))
        full = tf.where(state != at_block, full, 0)
        byte = lengths[0]
        is_image = (state == at_block) & (byte == 0x2C)
        is_extension = (state == at_block) & (byte == 0x21)
        is_wrong = (state == at_block) & ~is_image & ~is_extension
        after = tf.where(full > 0, 256 * full, 1 + byte)
        after = tf.where(~is_image, after, 11 + table_bytes(position + 9))
        after = tf.where(~is_extension, after, 2)
        ends = (state != at_block) & (byte == 0)
        next_state = tf.where(ends, tf.where(state == in_image, done, at_block), state)
        next_state = tf.where(is_extension, in_extension, next_state)
        next_state = tf.where(is_image, in_image, next_state)
        next_position = tf.where(is_wrong, _length(data) + 1, position + after)
        return [next_position, next_state, tf.where(is_image, position, frame)]

    start = 13 + table_bytes(tf.constant(10, tf.int64))
    position, state, frame = tf.while_loop(
        goes_on, step, [start, tf.constant(at_block), tf.zeros([], tf.int64)],
        maximum_iterations=_MAX_GIF_STEPS,
    )  # fmt: skip
    whole = tf.strings.substr(
        encoded, 0, tf.cast(position, tf.int32) * tf.cast(state == done, tf.int32)
    )
    cut = tf.where(state == done, whole + b";", b"")
    return cut, tf.stack([number(data, frame + 1 + 2 * i, 2) for i in range(4)])


def _length(data: tf.Tensor) -> tf.Tensor:
    return tf.size(data, out_type=tf.int64)
