"""What is known of the pixels of an image whose objects have masks, or boxes only."""

from typing import NamedTuple

import tensorflow as tf

from maskx_tf.ops import boxes
from maskx_tf.ops.mask_targets import mask_targets


class SemanticTargets(NamedTuple):
    """Maps of the P classes that an image has masks of; 0 of P in the padding."""

    classes: tf.Tensor  # int32 [B, P]
    maps: tf.Tensor  # float32 {0, 1} [B, P, H, W]
    weights: tf.Tensor  # float32 [B, H, W]; 0 where nothing is known


def semantic_targets(
    masks: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    classes: tf.Tensor,
    usable: tf.Tensor,
    image_sizes: tf.Tensor,
    shape: tf.Tensor,
    stride: int,
    mask_weights: tf.Tensor | None = None,
) -> SemanticTargets:
    """Maps of the classes with usable masks.

    A pixel of such a mask is of its class and of no other. In the box of an object without one
    nothing else is known, nor beyond the image. The rest is of no class.

    Args:
      masks: {0, 1} [B, M, S, S], each stretched over its box.
      boxes_yxyx: float32 [B, M, 4], pixels; empty in the padding.
      classes: int32 [B, M].
      usable: bool [B, M], the objects whose masks are used.
      image_sizes: float32 [B, 2] (height, width), pixels.
      shape: int32 [2], (H, W) of the maps.
      stride: pixels of a cell.
      mask_weights: float32 [B, M], what the pixels of a mask count, others count 1; None: 1.
    """
    batch = tf.shape(classes)[0]
    slots, classes_of_maps = _slots(classes, usable)
    count = tf.shape(classes_of_maps)[1]
    places = tf.cast(tf.where(usable), tf.int32)  # [R, 2]
    image_indices = places[:, 0]
    canvas = tf.concat([tf.zeros([2]), tf.cast(shape * stride, tf.float32)], axis=0)
    drawn = mask_targets(
        tf.gather_nd(masks, places),
        tf.gather_nd(boxes_yxyx, places),
        tf.tile(canvas[None], [tf.shape(places)[0], 1]),
        tf.range(tf.shape(places)[0]),
        shape,
    )  # [R, H, W]
    maps = _union(drawn, image_indices * count + tf.gather_nd(slots, places), batch * count)
    if mask_weights is not None:
        drawn *= tf.gather_nd(mask_weights, places)[:, None, None]
    of_masks = _union(drawn, image_indices, batch)
    others = tf.where(usable[..., None], 0.0, boxes_yxyx) / stride
    sizes = tf.concat([tf.zeros_like(image_sizes), image_sizes], axis=1)[:, None] / stride
    unknown = tf.reduce_any(boxes.cells_in(others, shape), axis=1)
    background = tf.cast(boxes.cells_in(sizes, shape)[:, 0] & ~unknown, tf.float32)
    return SemanticTargets(
        classes_of_maps,
        tf.reshape(maps, tf.concat([[batch, count], shape], axis=0)),
        tf.where(of_masks > 0, of_masks, background),
    )


def _slots(classes: tf.Tensor, usable: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which map of its image each usable object is drawn on, [B, M], and the maps' classes."""
    most = tf.shape(classes)[1]
    same = (classes[:, :, None] == classes[:, None]) & usable[:, None]
    first = tf.reduce_min(tf.where(same, tf.range(most), most - 1), axis=2)  # of class and image
    opens = usable & (first == tf.range(most))
    numbers = tf.cumsum(tf.cast(opens, tf.int32), axis=1) - 1
    slots = tf.gather(numbers, first, batch_dims=1)
    count = tf.maximum(tf.reduce_max(numbers) + 1, 1)
    at = opens[..., None] & (slots[..., None] == tf.range(count))  # [B, M, P]
    return slots, tf.reduce_max(tf.where(at, classes[..., None], 0), axis=1)


def _union(drawn: tf.Tensor, indices: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Largest of the maps [R, H, W] of each index: [count, H, W], 0 without any."""
    return tf.maximum(tf.math.unsorted_segment_max(drawn, indices, count), 0.0)
