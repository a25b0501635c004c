"""Resizing and padding of images, the same graph functions in training, evaluation and serving."""

from __future__ import annotations

import tensorflow as tf

STRIDE = 32  # canvas sides are multiples of it


def canvas_sides(min_side: int, max_side: int) -> tuple[int, int]:
    """(short, long) side in pixels of the static canvas: multiples of 32."""
    return -(-min_side // STRIDE) * STRIDE, -(-max_side // STRIDE) * STRIDE


def resize_and_pad(
    image: tf.Tensor, min_side: int, max_side: int, scale_jitter: tf.Tensor | float = 1.0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Resizes so that the short side is `min_side` unless the long one exceeds `max_side`.

    Args:
      image: uint8 [h, w, 3].
      min_side: wanted length of the short side, pixels.
      max_side: largest length of the long side, pixels.
      scale_jitter: factor on the scale; what then exceeds the canvas is cut off right and below.

    Returns:
      image: uint8 [H, W, 3], zero padded right and below; (H, W) is the canvas, its long side
        lying as the image's does (square images: horizontally).
      image_size: float32 [2], (height, width) of the valid part.
      image_scale: float32 [2], network-input pixels per original pixel (y, x).
    """
    image, image_size, image_scale, _ = resize_crop_and_pad(
        image, min_side, max_side, scale_jitter, tf.zeros([2])
    )
    return image, image_size, image_scale


def resize_crop_and_pad(
    image: tf.Tensor,
    min_side: int,
    max_side: int,
    scale_jitter: tf.Tensor | float,
    crop_position: tf.Tensor,
    is_landscape: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `resize_and_pad`, with a choice of the part kept where the image exceeds the canvas.

    Args:
      image: uint8 [h, w, 3].
      min_side: as in `resize_and_pad`.
      max_side: as in `resize_and_pad`.
      scale_jitter: as in `resize_and_pad`.
      crop_position: float32 [2] in [0, 1], (y, x): 0 keeps the top / left, 1 the bottom / right.
      is_landscape: bool [], whether the canvas is; None: as the image.

    Returns:
      image, image_size, image_scale, and offset: float32 [2], (y, x) of the kept part's corner in
      the resized image. A point p of the original lies at p * image_scale - offset.
    """
    original = tf.cast(tf.shape(image)[:2], tf.float32)  # [2]
    short, long = canvas_sides(min_side, max_side)
    height, width = tf.unstack(original)
    if is_landscape is None:
        is_landscape = height <= width
    canvas = tf.where(is_landscape, [short, long], [long, short])  # [2]
    # Not by tf.reduce_min: OpenVINO 2026.4 computes x / 800 where 800 / min(x) is asked for.
    scale = tf.minimum(min_side / tf.minimum(height, width), max_side / tf.maximum(height, width))
    resized = tf.floor(original * scale * scale_jitter + 0.5)
    resized = tf.maximum(tf.cast(resized, tf.int32), 1)  # [2]
    kept = tf.minimum(resized, canvas)
    excess = tf.cast(resized - kept, tf.float32)
    offset = tf.cast(tf.floor(crop_position * excess + 0.5), tf.int32)
    image = tf.image.resize(image, resized, method="bilinear")
    image = image[offset[0] : offset[0] + kept[0], offset[1] : offset[1] + kept[1]]
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    padding = canvas - kept
    image = tf.pad(image, [[0, padding[0]], [0, padding[1]], [0, 0]])
    image.set_shape([*((short, long) if short == long else (None, None)), image.shape[-1]])
    image_scale = tf.cast(resized, tf.float32) / original
    return image, tf.cast(kept, tf.float32), image_scale, tf.cast(offset, tf.float32)
