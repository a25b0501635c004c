"""Mask voting: a detection's mask as the mean of the masks of the RoIs around it (MNC)."""

import tensorflow as tf

from maskx_tf.ops import boxes
from maskx_tf.ops.mask_targets import mask_targets

IOU = 0.5  # with the detection's box, from which a RoI votes (published)
THRESHOLD = 0.4  # of pixels in the masks that vote, and of their mean (published)
MOST_VOTES = 64  # of a detection, those of the largest scores


def vote(
    masks: tf.Tensor,
    rois_yxyx: tf.Tensor,
    scores: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Weighted means of masks, on the cells of the boxes of detections.

    A mask votes where it is at least `THRESHOLD`, by bilinear interpolation, with the score that
    its RoI has for the detection's class. Means are scaled so that what is at least `THRESHOLD`
    becomes at least 0.5, from where all that pastes masks takes pixels.

    Args:
      masks: float32 [P, m, m], probabilities over the RoIs.
      rois_yxyx: float32 [P, 4].
      scores: float32 [D, P], of each RoI for the class of each detection; 0: it does not vote.
      boxes_yxyx: float32 [D, 4] of the detections.
      size: side of the results.

    Returns:
      float32 [D, size, size] in [0, 1]; zeros of a detection for which nothing votes.
    """
    votes = tf.where(boxes.iou(boxes_yxyx, rois_yxyx) >= IOU, scores, 0.0)
    most = tf.minimum(MOST_VOTES, tf.shape(rois_yxyx)[0])
    best = tf.math.top_k(votes, most)
    weights = tf.math.divide_no_nan(
        best.values, tf.reduce_sum(best.values, axis=1, keepdims=True)
    )  # [D, V]
    seen = mask_targets(
        masks,
        rois_yxyx,
        tf.repeat(boxes_yxyx, most, axis=0),
        tf.reshape(best.indices, [-1]),
        size,
        THRESHOLD,
    )
    seen = tf.reshape(seen, [-1, most, size, size])
    means = tf.einsum("dv,dvyx->dyx", weights, seen)
    above = 0.5 + 0.5 * (means - THRESHOLD) / (1.0 - THRESHOLD)
    # Weights that add up to 1 but for rounding must reach the threshold where they mean to.
    return tf.where(means >= THRESHOLD - 1e-6, tf.maximum(above, 0.5), 0.5 * means / THRESHOLD)


def vote_in_batch(
    masks: tf.Tensor,
    rois_yxyx: tf.Tensor,
    class_logits: tf.Tensor,
    valid: tf.Tensor,
    detected: dict[str, tf.Tensor],
    mask_classes: tf.Tensor,
) -> tf.Tensor:
    """`vote` for each image.

    Args:
      masks: [B, P, m, m] for any class, or [B, P, U, m, m] of U classes.
      rois_yxyx: [B, P, 4].
      class_logits: [B, P, K + 1].
      valid: bool [B, P], False in the padding.
      detected: detection_boxes [B, D, 4] and detection_classes [B, D].
      mask_classes: int32 [B, P, U], of the masks; U = 0: they are for any class.

    Returns:
      float32 [B, D, m, m].
    """
    size, of_classes = masks.shape[-1], masks.shape.rank == 5

    def of_image(inputs):
        masks, rois, logits, valid, mask_classes, boxes_yxyx, classes = inputs
        scores = tf.where(valid[:, None], tf.nn.softmax(logits), 0.0)
        if of_classes:  # each pair of RoI and class votes, for detections of the class
            rois = tf.repeat(rois, tf.shape(mask_classes)[1], axis=0)
            scores = tf.reshape(tf.gather(scores, mask_classes, batch_dims=1), [-1])
            is_of = classes[:, None] == tf.reshape(mask_classes, [-1])
            scores = tf.where(is_of & (classes[:, None] > 0), scores, 0.0)
        else:
            scores = tf.where(classes[:, None] > 0, tf.gather(tf.transpose(scores), classes), 0.0)
        return vote(tf.reshape(masks, [-1, size, size]), rois, scores, boxes_yxyx, size)

    inputs = (masks, rois_yxyx, class_logits, valid, mask_classes)
    found = (detected["detection_boxes"], detected["detection_classes"])
    return tf.map_fn(of_image, (*inputs, *found), fn_output_signature=tf.float32)


def voted_or_own(voted: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Voted masks [B, D, m, m], and detections' own [B, D, m, m] where nothing voted."""
    is_voted = tf.reduce_any(voted > 0, axis=[2, 3], keepdims=True)
    return tf.ensure_shape(tf.where(is_voted, voted, own), own.shape)
