"""COCO run-length codes of pasted masks made in the graph, for models served without Python."""

from __future__ import annotations

import tensorflow as tf

# COCO writes a number in groups of 5 bits, lowest first, 7 for 33 bits with a sign; a group is a
# character from "0" on, 32 further where another one follows.
_BITS, _GROUPS = 5, 7
_CHARACTERS = [bytes([ord("0") + code]) for code in range(2 * 2**_BITS)]


def paste_to_rle(
    masks: tf.Tensor, boxes_yxyx: tf.Tensor, count: tf.Tensor, image_size: tf.Tensor
) -> tf.Tensor:
    """As `masks.paste_to_rle` with its threshold of 0.5, in the graph.

    Args:
      masks: uint8 [D, m, n], 255 times the probabilities over the boxes.
      boxes_yxyx: float32 [D, 4], pixels of the image, exclusive corners; may leave the image.
      count: int32 [], how many are real.
      image_size: int32 [2], (height, width) in pixels.

    Returns:
      string [D], the `counts` of COCO's compressed codes; empty in the padding.
    """

    def encode(inputs):
        mask, box, is_real = inputs
        code = lambda: _encode(*paste_region(mask, box, image_size), image_size)  # noqa: E731
        return tf.cond(is_real, code, lambda: tf.constant(b""))

    is_real = tf.range(tf.shape(masks)[0]) < count
    return tf.map_fn(
        encode,
        (masks, boxes_yxyx, is_real),
        fn_output_signature=tf.TensorSpec([], tf.string),
        parallel_iterations=2,  # each may need six bytes for every pixel of the image
    )


def paste_region(
    mask: tf.Tensor, box_yxyx: tf.Tensor, image_size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `masks.paste_region`, the region transposed: (bool [w, h], top, left int64 [])."""
    y1, x1, y2, x2 = tf.unstack(tf.cast(box_yxyx, tf.float64))
    height, width = tf.unstack(tf.cast(image_size, tf.float64))
    top, rows = _weights(y1, y2, mask.shape[0], height)
    left, columns = _weights(x1, x2, mask.shape[1], width)
    values = tf.cast(tf.cast(mask, tf.float64) / 255, tf.float32)
    is_set = columns @ tf.transpose(values) @ tf.transpose(rows) >= 0.5
    return is_set, top, left


def _weights(low, high, cells: int, limit) -> tuple[tf.Tensor, tf.Tensor]:
    """First pixel, int64, and bilinear weights [pixels, cells] of the pixels in [low, high)."""
    first = tf.clip_by_value(tf.floor(low), 0, limit)
    last = tf.clip_by_value(tf.math.ceil(high), first, limit)
    last = tf.where(high > low, last, first)
    position = (tf.range(first, last) + 0.5 - low) / (high - low) * cells - 0.5
    gaps = tf.abs(position[:, None] - tf.range(cells, dtype=tf.float64))
    return tf.cast(first, tf.int64), tf.cast(tf.maximum(1 - gaps, 0), tf.float32)


def _encode(region, top, left, image_size) -> tf.Tensor:
    """Code, string [], of an image that is zero outside the region, bool [w, h]."""
    height, width = tf.unstack(tf.cast(image_size, tf.int64))
    rows = tf.shape(region, out_type=tf.int64)[1]
    # A zero under each column keeps its runs from the next one's.
    gap = tf.cast(rows < height, tf.int64)
    flat = tf.reshape(tf.pad(region, [[0, 0], [0, gap]]), [-1])
    flat = tf.pad(flat, [[1, 1]])
    edges = tf.where(flat[1:] != flat[:-1])[:, 0]
    step = tf.maximum(rows + gap, 1)
    positions = (edges // step + left) * height + edges % step + top
    positions = tf.concat([[0], positions, [height * width]], axis=0)
    runs = positions[1:] - positions[:-1]
    return compress(tf.cond(runs[-1] == 0, lambda: runs[:-1], lambda: runs))


def compress(runs: tf.Tensor) -> tf.Tensor:
    """COCO's text, string [], of run lengths int64 [N]: from the fourth on differences."""
    before = tf.concat([tf.zeros_like(runs[:3]), runs[1:-2]], axis=0)[: tf.size(runs)]
    shifts = tf.range(0, _BITS * _GROUPS, _BITS, dtype=tf.int64)
    shifted = tf.bitwise.right_shift((runs - before)[:, None], shifts)  # [N, groups]
    group = shifted & (2**_BITS - 1)
    rest = tf.bitwise.right_shift(shifted, tf.constant(_BITS, tf.int64))
    is_negative = group >= 2 ** (_BITS - 1)
    more = rest != tf.where(is_negative, -tf.ones_like(rest), tf.zeros_like(rest))
    written = tf.math.cumprod(tf.cast(more, tf.int64), axis=1, exclusive=True) > 0
    codes = tf.boolean_mask(group + 2**_BITS * tf.cast(more, tf.int64), written)
    return tf.strings.reduce_join(tf.gather(tf.constant(_CHARACTERS), codes))
