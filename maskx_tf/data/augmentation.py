"""One decoded record to the features and labels of one image: resize, jitter, flip, mask crops."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maskx_tf.config import Config
from maskx_tf.data import preprocessing

MIN_SIDE = 1.0  # network-input pixels; objects that cropping leaves less of are dropped


class Randomness(NamedTuple):
    """Draws for one image: scale factor [], crop position [2] in [0, 1], flip bool []."""

    scale_jitter: tf.Tensor | float
    crop_position: tf.Tensor
    flip: tf.Tensor | bool


def draw(config: Config, training: bool, seed: tf.Tensor) -> Randomness:
    """What is random for one image; nothing outside training. seed: int64 [2]."""
    if not training:
        return Randomness(1.0, tf.zeros([2]), False)
    uniform = tf.random.stateless_uniform([4], seed)
    low, high = config.scale_jitter_min, config.scale_jitter_max
    flip = uniform[3] < 0.5 if config.horizontal_flip else False
    return Randomness(low + (high - low) * uniform[0], uniform[1:3], flip)


def to_features_and_labels(
    image: tf.Tensor,
    example: dict[str, tf.Tensor],
    random: Randomness,
    config: Config,
    is_landscape: tf.Tensor | None = None,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """(features, labels) of one image, as `pipeline.make_dataset` documents them, not padded.

    Args:
      image: uint8 [h, w, 3].
      example: what `schema.parse_example` returns, with `classes` int32 [N] of the model's
        vocabulary and `has_mask` restricted to set A.
      random: from `draw`.
      config: options of the data section.
      is_landscape: whether the canvas is; None: as the image.
    """
    padded, image_size, image_scale, offset = preprocessing.resize_crop_and_pad(
        image,
        config.image_min_side,
        config.image_max_side,
        random.scale_jitter,
        random.crop_position,
        is_landscape,
    )
    boxes = example["boxes_yxyx"] * tf.tile(image_scale, [2]) - tf.tile(offset, [2])  # [N, 4]
    clipped = tf.clip_by_value(boxes, 0.0, tf.tile(image_size, [2]))
    keep = _kept(boxes, clipped, config.max_objects)  # [n]
    has_mask = tf.gather(example["has_mask"], keep)
    masks = decode_masks(tf.gather(example["mask_pngs"], keep), has_mask, config.mask_crop_size)
    boxes, clipped = tf.gather(boxes, keep), tf.gather(clipped, keep)
    if config.scale_jitter_max > 1:
        masks = crop_masks(masks, boxes, clipped)
    if random.flip is not False:
        padded, clipped, masks = _flip(padded, clipped, masks, image_size, random.flip)
    features = {
        "image": padded,
        "image_size": image_size,
        "image_scale": image_scale,
        "original_size": tf.shape(image)[:2],
        "image_id": example["image_id"],
    }
    labels = {
        "boxes_yxyx": clipped,
        "classes": tf.gather(example["classes"], keep),
        "is_crowd": tf.gather(example["is_crowd"], keep),
        "has_mask": has_mask,
        "masks": masks,
        "mask_weight": tf.gather(example["mask_weights"], keep),
    }
    return features, labels


def pad(labels: dict[str, tf.Tensor], count: int) -> dict[str, tf.Tensor]:
    """Labels of up to `count` objects, zeros as padding."""
    return {key: _pad(value, count) for key, value in labels.items()}


def _kept(boxes: tf.Tensor, clipped: tf.Tensor, max_objects: int) -> tf.Tensor:
    """int32 [n]: indices, ascending, of the largest `max_objects` objects still in the image."""
    sides = clipped[:, 2:] - clipped[:, :2]  # [N, 2]
    cut = tf.reduce_any(tf.abs(boxes - clipped) > 0.5, axis=-1)
    visible = ~cut | tf.reduce_all(sides >= MIN_SIDE, axis=-1)
    indices = tf.cast(tf.where(visible)[:, 0], tf.int32)
    return tf.gather(indices, largest(tf.gather(clipped, indices), max_objects))


def largest(boxes: tf.Tensor, count: int) -> tf.Tensor:
    """int32 [up to count]: indices, ascending, of the largest boxes [N, 4]."""
    areas = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    return tf.sort(tf.math.top_k(areas, tf.minimum(tf.size(areas), count)).indices)


def decode_masks(pngs: tf.Tensor, has_mask: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 {0, 1} [n, size, size]: each mask stretched; zeros where `has_mask` is false.

    Args:
      pngs: string [n], PNG masks of any size.
      has_mask: bool [n].
      size: side of the result.
    """

    def decode(png: tf.Tensor) -> tf.Tensor:
        mask = tf.cast(tf.io.decode_png(png, channels=1) > 0, tf.uint8)  # [h, w, 1]
        # Area averaging where the mask shrinks. Elsewhere antialiasing does nothing, in 1 ms.
        shrinks = tf.reduce_max(tf.shape(mask)) > size
        mask = tf.cond(shrinks, lambda: _resize(mask, size, True), lambda: _resize(mask, size))
        return tf.cast(mask[..., 0] >= 0.5, tf.uint8)

    where = tf.where(has_mask)  # [k, 1]
    spec = tf.TensorSpec([size, size], tf.uint8)
    chosen = tf.gather_nd(pngs, where)  # [k]
    # One after the other: a mask at full resolution takes megabytes while it is decoded.
    decoded = tf.map_fn(decode, chosen, fn_output_signature=spec, parallel_iterations=1)
    shape = tf.stack([tf.size(has_mask), size, size])
    masks = tf.scatter_nd(tf.cast(where, tf.int32), decoded, shape)
    return tf.ensure_shape(masks, [None, size, size])


def _resize(mask: tf.Tensor, size: int, antialias: bool = False) -> tf.Tensor:
    return tf.image.resize(mask, [size, size], method="bilinear", antialias=antialias)


def crop_masks(masks: tf.Tensor, boxes: tf.Tensor, clipped: tf.Tensor) -> tf.Tensor:
    """The part of each mask in `boxes` that lies in `clipped`, stretched again.

    Args:
      masks: uint8 {0, 1} [n, S, S], each over its box.
      boxes: float32 [n, 4] yxyx.
      clipped: float32 [n, 4] yxyx, each inside its box.
    """
    where = tf.where(tf.reduce_any(boxes != clipped, axis=-1))  # [k, 1], most masks are not cut
    cut = [tf.gather_nd(values, where) for values in (masks, boxes, clipped)]
    spec = tf.TensorSpec(masks.shape[1:], tf.uint8)
    # One after the other: the weights of a mask take more memory than itself.
    cropped = tf.map_fn(_crop_mask, cut, fn_output_signature=spec, parallel_iterations=1)
    return tf.tensor_scatter_nd_update(masks, where, cropped)


def _crop_mask(mask_and_boxes: list[tf.Tensor]) -> tf.Tensor:
    """As `crop_masks`, of one mask [S, S] and its two boxes [4]."""
    mask, box, clipped = mask_and_boxes
    size = mask.shape[0]
    sides = tf.maximum(box[2:] - box[:2], 1e-6)  # [2]
    start = (clipped[:2] - box[:2]) / sides  # [2], in units of the box
    step = (clipped[2:] - clipped[:2]) / sides / size
    centres = tf.range(size, dtype=tf.float32) + 0.5  # [S]
    points = start[:, tf.newaxis] + step[:, tf.newaxis] * centres  # [2, S]
    points = tf.clip_by_value(points * size - 0.5, 0.0, size - 1.0)  # in pixels of the old mask
    distance = tf.abs(points[..., tf.newaxis] - tf.range(size, dtype=tf.float32))  # [2, S, S]
    rows, columns = tf.unstack(tf.maximum(1.0 - distance, 0.0))  # bilinear weights [S, S]
    return tf.cast(rows @ tf.cast(mask, tf.float32) @ tf.transpose(columns) >= 0.5, tf.uint8)


def _flip(
    image: tf.Tensor, boxes: tf.Tensor, masks: tf.Tensor, image_size: tf.Tensor, flip: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mirrors the valid part of the image, the boxes and the masks left to right if `flip`."""

    def mirrored() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        width = tf.cast(image_size[1], tf.int32)
        padding = tf.shape(image)[1] - width
        # A slice with step -1 does the same, in 16 ms instead of 1.
        turned = tf.pad(tf.reverse(image[:, :width], [1]), [[0, 0], [0, padding], [0, 0]])
        y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
        turned_boxes = tf.stack([y1, image_size[1] - x2, y2, image_size[1] - x1], axis=-1)
        return tf.ensure_shape(turned, image.shape), turned_boxes, tf.reverse(masks, [2])

    return tf.cond(flip, mirrored, lambda: (image, boxes, masks))


def _pad(values: tf.Tensor, count: int) -> tf.Tensor:
    """[n, ...] to [count, ...] with zeros."""
    padding = [[0, count - tf.shape(values)[0]]] + [[0, 0]] * (values.shape.rank - 1)
    return tf.ensure_shape(tf.pad(values, padding), [count, *values.shape[1:]])
