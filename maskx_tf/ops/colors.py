"""Colours in which distances are what people see: CIE LAB."""

import tensorflow as tf

# Linear sRGB to XYZ, each row divided by the white of D65, so that white is (1, 1, 1).
_WHITE = (0.95047, 1.0, 1.08883)
_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_TO_XYZ = [[value / white for value in row] for row, white in zip(_XYZ, _WHITE, strict=True)]


def rgb_to_lab(rgb: tf.Tensor) -> tf.Tensor:
    """CIE LAB under D65, float32 [..., 3], L 0..100, of sRGB 0..255, [..., 3]."""
    rgb = tf.cast(rgb, tf.float32) / 255.0
    linear = tf.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    # No matrix product: GPUs would round its factors to 10 bits.
    xyz = tf.reduce_sum(linear[..., None, :] * tf.constant(_TO_XYZ), axis=-1)
    x, y, z = tf.unstack(tf.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116), axis=-1)
    return tf.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)
