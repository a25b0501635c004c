"""Copy-paste augmentation: objects with masks of one training image over another.

Ghiasi et al.: Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation,
CVPR 2021. Objects without masks stay where they are and may be covered.
"""

from __future__ import annotations

import tensorflow as tf

from maskx_tf.data.augmentation import MIN_SIDE, crop_masks, largest
from maskx_tf.ops import graph_rle

_CHOSEN = 0.5  # share of the other image's masked objects that is pasted
MIN_VISIBLE = 0.1  # of an object's mask, or box without one; objects of which less is left go


def paste(
    features: dict[str, tf.Tensor],
    labels: dict[str, tf.Tensor],
    other_image: tf.Tensor,
    other_labels: dict[str, tf.Tensor],
    seed: tf.Tensor,
    max_objects: int,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Features and labels of an image with some objects of another pasted over it.

    What they cover is cut from masks; boxes shrink to what is left in sight of the mask, and
    without one to what is left of the box.

    Args:
      features: of `augmentation.to_features_and_labels`.
      labels: of the same, not padded.
      other_image: uint8 [H', W', 3], the other image on its canvas.
      other_labels: its labels.
      seed: int64 [2], of the choice of objects.
      max_objects: the largest are kept.
    """
    size = features["image_size"]
    chosen = tf.random.stateless_uniform(tf.shape(other_labels["classes"]), seed) < _CHOSEN
    pasted = _take(other_labels, chosen & other_labels["has_mask"])
    pasted = _clip(pasted, size)
    cover = _union(pasted, tf.shape(features["image"])[:2])  # [H, W]
    other_image = _fit(other_image, tf.shape(features["image"]))
    image = tf.where(cover[..., None], other_image, features["image"])
    image = tf.ensure_shape(image, features["image"].shape)
    under = _uncovered(labels, cover)
    both = {key: tf.concat([under[key], pasted[key]], axis=0) for key in labels}
    return features | {"image": image}, _take(both, largest(both["boxes_yxyx"], max_objects))


def _take(labels: dict[str, tf.Tensor], where: tf.Tensor) -> dict[str, tf.Tensor]:
    """Some of the objects: bool [n] or indices."""
    if where.dtype == tf.bool:
        where = tf.where(where)[:, 0]
    return {key: tf.gather(value, where) for key, value in labels.items()}


def _clip(labels: dict[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
    """The objects as far as they are in an image of this size."""
    boxes = labels["boxes_yxyx"]
    clipped = tf.clip_by_value(boxes, 0.0, tf.tile(image_size, [2]))
    inside = tf.reduce_all(clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE, axis=-1)
    masks = crop_masks(labels["masks"], boxes, clipped)
    inside &= tf.reduce_any(masks > 0, axis=[1, 2])
    return _take(labels | {"boxes_yxyx": clipped, "masks": masks}, inside)


def _union(labels: dict[str, tf.Tensor], canvas: tf.Tensor) -> tf.Tensor:
    """The pixels of all masks, bool [H, W]."""

    def add(cover: tf.Tensor, mask_and_box: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        region, top, left = graph_rle.paste_region(255 * mask_and_box[0], mask_and_box[1], canvas)
        region = tf.transpose(region)  # [h, w]
        low = tf.cast(tf.stack([top, left]), tf.int32)
        padding = tf.stack([low, canvas - low - tf.shape(region)], axis=-1)
        return cover | tf.pad(region, padding)

    nothing = tf.zeros(canvas, tf.bool)
    return tf.foldl(add, (labels["masks"], labels["boxes_yxyx"]), initializer=nothing)


def _fit(image: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """An image [H', W', 3], cut or zero padded right and below to a shape."""
    image = image[: shape[0], : shape[1]]
    missing = shape - tf.shape(image)
    return tf.pad(image, tf.stack([tf.zeros_like(missing), missing], axis=-1))


def _uncovered(labels: dict[str, tf.Tensor], cover: tf.Tensor) -> dict[str, tf.Tensor]:
    """The objects as far as they are not covered by pixels bool [H, W]."""
    boxes, has_mask = labels["boxes_yxyx"], labels["has_mask"][:, None, None]
    cells = labels["masks"].shape[1]
    covered = _sample(cover, boxes, cells)  # [n, S, S]
    whole = tf.where(has_mask, labels["masks"] > 0, True)
    visible = whole & ~covered
    counts = [tf.reduce_sum(tf.cast(part, tf.float32), axis=[1, 2]) for part in (visible, whole)]
    shrunk = _extent(visible, boxes)
    boxes = tf.where(tf.reduce_any(whole & covered, axis=[1, 2])[:, None], shrunk, boxes)
    masks = tf.where(has_mask, tf.cast(visible, tf.uint8), 0)
    masks = crop_masks(masks, labels["boxes_yxyx"], boxes)
    remains = counts[0] >= MIN_VISIBLE * tf.maximum(counts[1], 1.0)
    remains &= tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=-1)
    return _take(labels | {"boxes_yxyx": boxes, "masks": masks}, remains)


def _sample(cover: tf.Tensor, boxes: tf.Tensor, cells: int) -> tf.Tensor:
    """Bool [n, cells, cells]: whether the centres of the cells of boxes are covered."""
    steps = (tf.range(cells, dtype=tf.float32) + 0.5) / cells
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    points = low[..., None] + sides[..., None] * steps  # [n, 2, cells]
    places = tf.cast(tf.floor(points), tf.int32)
    limits = tf.shape(cover) - 1
    places = tf.clip_by_value(places, 0, limits[None, :, None])
    rows, columns = tf.unstack(places, axis=1)  # [n, cells]
    numbers = rows[:, :, None] * tf.shape(cover)[1] + columns[:, None, :]
    return tf.gather(tf.reshape(cover, [-1]), numbers)


def _extent(visible: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Boxes around the set cells, bool [n, S, S], of boxes; of no size where none is set."""
    cells = visible.shape[1]
    edges = []
    for axis in (2, 1):  # rows, columns
        is_set = tf.reduce_any(visible, axis=axis)  # [n, S]
        places = tf.range(cells)
        first = tf.reduce_min(tf.where(is_set, places, cells), axis=-1)
        last = tf.reduce_max(tf.where(is_set, places + 1, 0), axis=-1)
        edges.append((first, tf.maximum(first, last)))
    (top, bottom), (left, right) = edges
    shares = tf.cast(tf.stack([top, left, bottom, right], axis=-1), tf.float32) / cells
    sides = tf.tile(boxes[:, 2:] - boxes[:, :2], [1, 2])
    return tf.tile(boxes[:, :2], [1, 2]) + shares * sides
