"""Exact RoIAlign on a feature pyramid, out of crop-and-resize and average pooling."""

import math
from collections.abc import Callable

import tensorflow as tf


def assign_levels(
    boxes_yxyx: tf.Tensor, min_level: int, max_level: int, canonical_size: float
) -> tf.Tensor:
    """Pyramid level of each RoI: floor(4 + log2(sqrt(area) / canonical_size)), clipped.

    [N, 4] in network-input pixels -> int32 [N].
    """
    height = boxes_yxyx[:, 2] - boxes_yxyx[:, 0]
    width = boxes_yxyx[:, 3] - boxes_yxyx[:, 1]
    scale = tf.sqrt(tf.maximum(height * width, 0.0)) / canonical_size
    level = tf.floor(4.0 + tf.math.log(scale + 1e-6) / math.log(2.0))
    return tf.cast(tf.clip_by_value(level, min_level, max_level), tf.int32)


def roi_align(
    features: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    stride: int,
    samples: int = 2,
    half_pixel: bool = True,
) -> tf.Tensor:
    """RoIAlign on one feature map: `samples`² bilinear samples a bin, averaged.

    Samples up to a cell outside the map (boxes at the image's border) take the value of the
    border, as in the definition; `tf.image.crop_and_resize` would give 0 there, hence the padding.

    Args:
      features: [B, H, W, C].
      boxes_yxyx: float32 [N, 4] in network-input pixels.
      image_indices: int32 [N] into B.
      output_size: side S of the output.
      stride: network-input pixels per cell.
      samples: samples per bin and axis.
      half_pixel: the centre of cell i is at i + 0.5, as everywhere here. Without, as in Detectron:
        it is at i, a RoI reaches from its first pixel to its last, and over at least one cell.

    Returns:
      [N, S, S, C] in the dtype of `features`.
    """
    size = tf.cast(tf.shape(features)[1:3], tf.float32) + 2.0  # of the padded map
    # The op has no bfloat16, and its gradient adds up many small terms: float32 in any case.
    padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    grid = output_size * samples
    if half_pixel:
        top_left, bottom_right = boxes_yxyx[:, :2] / stride - 0.5, boxes_yxyx[:, 2:] / stride - 0.5
    else:
        top_left, bottom_right = boxes_yxyx[:, :2] / stride, (boxes_yxyx[:, 2:] - 1.0) / stride
        bottom_right = tf.maximum(bottom_right, top_left + 1.0)
    half_step = 0.5 * (bottom_right - top_left) / grid
    # In cells of the padded map, whose centres lie at 1, 2, …
    first, last = top_left + half_step + 1.0, bottom_right - half_step + 1.0
    sampled = tf.image.crop_and_resize(
        padded,
        tf.concat([first / (size - 1.0), last / (size - 1.0)], axis=-1),
        image_indices,
        [grid, grid],
    )
    if samples > 1:
        sampled = tf.nn.avg_pool2d(sampled, samples, samples, "VALID")
    return tf.cast(sampled, features.dtype)


def multilevel_roi_align(
    pyramid: dict[int, tf.Tensor],
    boxes_yxyx: tf.Tensor,
    image_indices: tf.Tensor,
    output_size: int,
    canonical_size: float = 224.0,
    half_pixel: bool = True,
    to_corner: bool = True,
    operator: Callable[..., tf.Tensor] = roi_align,
) -> tf.Tensor:
    """RoIAlign of each RoI on its own level of the pyramid, once.

    Args:
      pyramid: {level: [B, H, W, C]}, the levels that RoIs may fall on.
      boxes_yxyx: float32 [N, 4] in network-input pixels.
      image_indices: int32 [N] into B.
      output_size: side S of the output.
      canonical_size: see `assign_levels`.
      half_pixel: see `roi_align`.
      to_corner: without half_pixel, a RoI reaches to its corner, not to the pixel before.
      operator: what is done in place of RoIAlign, with its arguments.

    Returns:
      [N, S, S, C], in the order of the boxes.
    """
    levels = assign_levels(boxes_yxyx, min(pyramid), max(pyramid), canonical_size)
    if to_corner and not half_pixel:
        boxes_yxyx += tf.constant([0.0, 0.0, 1.0, 1.0])
    crops, order = [], []
    for level, features in pyramid.items():
        members = tf.where(levels == level)[:, 0]
        crops.append(
            operator(
                features,
                tf.gather(boxes_yxyx, members),
                tf.gather(image_indices, members),
                output_size,
                2**level,
                half_pixel=half_pixel,
            )
        )
        order.append(tf.cast(members, tf.int32))
    place = tf.math.invert_permutation(tf.concat(order, axis=0))
    return tf.gather(tf.concat(crops, axis=0), place)
