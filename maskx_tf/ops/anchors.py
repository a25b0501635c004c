"""Anchor boxes of one pyramid level (paper: as in FPN, one scale and three ratios a level)."""

import numpy as np
import tensorflow as tf


def cell_anchors(size: float, ratios: tuple[float, ...]) -> np.ndarray:
    """Anchors of area size**2 around the origin. float32 [A, 4] yxyx; ratio = height / width."""
    roots = np.sqrt(np.asarray(ratios, np.float64))
    heights, widths = size * roots, size / roots
    return (np.stack([-heights, -widths, heights, widths], axis=-1) / 2).astype(np.float32)


def level_anchors(
    height: tf.Tensor | int,
    width: tf.Tensor | int,
    stride: int,
    size: float,
    ratios: tuple[float, ...],
    offset: float = 0.5,
) -> tf.Tensor:
    """Anchors of a feature map in network-input pixels.

    Args:
      height, width: of the feature map; may be tensors.
      stride: pixels per cell.
      size: side in pixels of the square anchor.
      ratios: height / width of each anchor.
      offset: place of the centre inside its cell, as a fraction of the stride: 0.5 is the cell's
        centre, 0 its corner as in detectron2.

    Returns:
      float32 [height * width * A, 4] boxes_yxyx in row, column, ratio order.
    """
    y = (tf.range(height, dtype=tf.float32) + offset) * stride  # [H]
    x = (tf.range(width, dtype=tf.float32) + offset) * stride  # [W]
    y, x = tf.meshgrid(y, x, indexing="ij")
    centres = tf.stack([y, x, y, x], axis=-1)  # [H, W, 4]
    anchors = centres[:, :, None, :] + cell_anchors(size, ratios)  # [H, W, A, 4]
    return tf.reshape(anchors, [-1, 4])
