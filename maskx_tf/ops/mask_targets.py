"""Ground-truth masks seen from a RoI."""

import tensorflow as tf

from maskx_tf.ops import boxes, points


def mask_targets(
    masks: tf.Tensor,
    mask_boxes_yxyx: tf.Tensor,
    rois_yxyx: tf.Tensor,
    mask_indices: tf.Tensor,
    size: int | tf.Tensor,
    threshold: float = 0.5,
) -> tf.Tensor:
    """Samples the mask of each RoI's object at the centres of the RoI's size x size pixels.

    Args:
      masks: {0, 1}, or probabilities, [M, S, S], each mask stretched over its own box.
      mask_boxes_yxyx: float32 [M, 4], those boxes.
      rois_yxyx: float32 [R, 4].
      mask_indices: int32 [R] into M, the object of each RoI.
      size: side of the targets, or int32 [2], their height and width.
      threshold: from which a sample is 1.

    Returns:
      float32 {0, 1} [R, size, size]; 0 outside the object's box.
    """
    side = masks.shape[1]
    of_masks = tf.gather(mask_boxes_yxyx, mask_indices)
    mask_cell = tf.tile((of_masks[:, 2:] - of_masks[:, :2]) / side, [1, 2])  # pixels of a mask cell
    mask_cell = tf.where(mask_cell > 0, mask_cell, 1.0)
    # Corners in cells of the mask, whose centres lie at half-integers; a ring of zeros around it
    # makes what crosses the border fall off to 0 instead of being cut.
    corners = (rois_yxyx - tf.tile(of_masks[:, :2], [1, 2])) / mask_cell + 0.5
    half_step = 0.5 * (corners[:, 2:] - corners[:, :2]) / tf.cast(size, tf.float32)
    first, last = corners[:, :2] + half_step, corners[:, 2:] - half_step
    ringed = tf.pad(tf.cast(masks, tf.float32), [[0, 0], [1, 1], [1, 1]])[..., None]
    sampled = tf.image.crop_and_resize(
        ringed,
        tf.concat([first, last], axis=-1) / (side + 1.0),
        mask_indices,
        [size, size] if isinstance(size, int) else size,
    )
    return tf.cast(sampled[..., 0] >= threshold, tf.float32)


def point_targets(
    masks: tf.Tensor,
    mask_boxes_yxyx: tf.Tensor,
    rois_yxyx: tf.Tensor,
    mask_indices: tf.Tensor,
    shares_yx: tf.Tensor,
) -> tf.Tensor:
    """The mask of each RoI's object at points of the RoI, interpolated bilinearly.

    Args:
      masks, mask_boxes_yxyx, rois_yxyx, mask_indices: as of `mask_targets`.
      shares_yx: float32 [R, P, 2], points as shares of the RoIs' sides.

    Returns:
      float32 [R, P] in [0, 1]; 0 outside the object's box.
    """
    side = masks.shape[1]
    of_masks = tf.gather(mask_boxes_yxyx, mask_indices)[:, None]  # [R, 1, 4]
    cell = (of_masks[..., 2:] - of_masks[..., :2]) / side
    rois = rois_yxyx[:, None]
    places = rois[..., :2] + shares_yx * (rois[..., 2:] - rois[..., :2])
    cells = (places - of_masks[..., :2]) / tf.where(cell > 0, cell, 1.0)
    ringed = tf.pad(tf.cast(masks, tf.float32), [[0, 0], [1, 1], [1, 1]])[..., None]
    return points.sample(ringed, cells + 1.0, mask_indices)[..., 0]


def object_areas(
    masks: tf.Tensor,
    mask_boxes_yxyx: tf.Tensor,
    rois_yxyx: tf.Tensor,
    mask_indices: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Areas of the whole objects of RoIs, also beyond the RoI, in cells of size x size in the RoI.

    Arguments as of `mask_targets`.

    Returns:
      float32 [R].
    """
    shares = tf.reduce_mean(tf.cast(masks, tf.float32), axis=[1, 2])  # [M]
    areas = tf.gather(shares * boxes.area(mask_boxes_yxyx), mask_indices)
    return areas * size**2 / tf.maximum(boxes.area(rois_yxyx), 1e-6)


def mask_ious(logits: tf.Tensor, targets: tf.Tensor, areas: tf.Tensor) -> tf.Tensor:
    """IoUs of masks with whole objects, which their windows may cut.

    Args:
      logits: [R, m, m]; the mask is where they are at least 0.
      targets: {0, 1} [R, m, m], the objects in the windows.
      areas: float32 [R] of the whole objects, in cells.

    Returns:
      float32 [R].
    """
    masks = tf.cast(logits >= 0, tf.float32)
    common = tf.reduce_sum(masks * targets, axis=[1, 2])
    areas = tf.maximum(areas, tf.reduce_sum(targets, axis=[1, 2]))
    union = tf.reduce_sum(masks, axis=[1, 2]) + areas - common
    return common / tf.maximum(union, 1.0)
