"""Anchor boxes of one pyramid level (paper: as in FPN, one scale and three ratios a level)."""

import numpy as np
import tensorflow as tf


def cell_anchors(
    stride: int, scale: float, ratios: tuple[float, ...], rounding: str = "none"
) -> np.ndarray:
    """Anchors around the origin, each of the area (stride * scale)**2.

    Args:
      stride: pixels per cell.
      scale: side in strides of the square anchor.
      ratios: height / width of each anchor.
      rounding: what is rounded to whole pixels, so that areas are not exact. `sides`: those for a
        scale of 1, as Detectron does, the width first, then the height that belongs to the rounded
        width. `corners`: the corners, as torchvision does.

    Returns:
      float32 [A, 4] boxes_yxyx.
    """
    roots = np.sqrt(np.asarray(ratios, np.float64))
    heights, widths = stride * roots, stride / roots
    if rounding == "sides":
        widths = np.round(widths)
        heights = np.round(widths * np.asarray(ratios, np.float64))
    half = scale * np.stack([heights, widths], axis=-1) / 2  # [A, 2]
    if rounding == "corners":
        half = np.round(half)
    return np.concatenate([-half, half], axis=-1).astype(np.float32)


def level_anchors(
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    stride: int,
    scale: float,
    ratios: tuple[float, ...],
    offset: float = 0.5,
    rounding: str = "none",
) -> tf.Tensor:
    """Anchors of a feature map in network-input pixels.

    Args:
      height, width: of the feature map; may be tensors.
      stride: see `cell_anchors`.
      scale: see `cell_anchors`.
      ratios: see `cell_anchors`.
      offset: place of the centre inside its cell, as a fraction of the stride: 0.5 is the cell's
        centre, 0 its corner as in detectron2.
      rounding: see `cell_anchors`.

    Returns:
      float32 [height * width * A, 4] boxes_yxyx in row, column, ratio order.
    """
    y = (tf.range(height, dtype=tf.float32) + offset) * stride  # [H]
    x = (tf.range(width, dtype=tf.float32) + offset) * stride  # [W]
    y, x = tf.meshgrid(y, x, indexing="ij")
    centres = tf.stack([y, x, y, x], axis=-1)  # [H, W, 4]
    anchors = centres[:, :, None, :] + cell_anchors(stride, scale, ratios, rounding)
    return tf.reshape(anchors, [-1, 4])  # from [H, W, A, 4]
