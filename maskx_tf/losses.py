"""The losses (facts of the published training, paper §3.3), and `TERMS`, the table of them.

Each is a pure function that returns (value, count): the loss, already normalised, and how many
elements it saw. With no element the value is exactly 0 and its gradients are finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

# Where the smooth L1 loss turns from quadratic to linear, as published.
RPN_BETA = 1.0 / 9.0
BOX_BETA = 1.0

Loss = tuple[tf.Tensor, tf.Tensor]


def smooth_l1(errors: tf.Tensor, beta: float) -> tf.Tensor:
    """0.5 e² / beta below beta, |e| - 0.5 beta above. Elementwise."""
    size = tf.abs(errors)
    return tf.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def _masked_sum(values: tf.Tensor, mask: tf.Tensor) -> Loss:
    return tf.reduce_sum(tf.where(mask, values, 0.0)), tf.math.count_nonzero(mask, dtype=tf.float32)


def rpn_score_loss(
    logits: tf.Tensor, positive: tf.Tensor, valid: tf.Tensor, anchors_per_image: int
) -> Loss:
    """Sigmoid cross-entropy of the sampled anchors, [B, S] each, over B * anchors_per_image."""
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(positive, tf.float32), logits)
    total, count = _masked_sum(entropy, valid)
    return total / tf.cast(tf.shape(logits)[0] * anchors_per_image, tf.float32), count


def rpn_box_loss(
    deltas: tf.Tensor, targets: tf.Tensor, positive: tf.Tensor, anchors_per_image: int
) -> Loss:
    """Smooth L1 of the positive anchors, [B, S, 4] and [B, S], over B * anchors_per_image."""
    errors = tf.reduce_sum(smooth_l1(deltas - targets, RPN_BETA), axis=-1)
    total, count = _masked_sum(errors, positive)
    return total / tf.cast(tf.shape(positive)[0] * anchors_per_image, tf.float32), count


def class_loss(logits: tf.Tensor, classes: tf.Tensor, valid: tf.Tensor) -> Loss:
    """Softmax cross-entropy of the sampled RoIs, mean. [N, K + 1], int32 [N], bool [N]."""
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
    total, count = _masked_sum(entropy, valid)
    return total / tf.maximum(count, 1.0), count


def box_loss(deltas: tf.Tensor, targets: tf.Tensor, num_rois: tf.Tensor) -> Loss:
    """Smooth L1 of the foreground RoIs' own-class deltas, [F, 4], over all num_rois RoIs."""
    total = tf.reduce_sum(smooth_l1(deltas - targets, BOX_BETA))
    return total / tf.maximum(num_rois, 1.0), tf.cast(tf.shape(deltas)[0], tf.float32)


def mask_loss(
    logits: tf.Tensor, targets: tf.Tensor, valid: tf.Tensor, weights: tf.Tensor | None = None
) -> Loss:
    """Sigmoid cross-entropy of each RoI's own class map, mean over pixels and valid RoIs.

    Weighted, it is a mean still over the number of RoIs and not over the sum of weights: small
    weights of some masks leave the others' share of the gradient as it is.

    Args:
      logits: float32 [R, m, m].
      targets: {0, 1} [R, m, m].
      valid: bool [R].
      weights: float32 [R], above 0 where valid; None: all 1.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    entropy = tf.reduce_mean(entropy, axis=[1, 2])  # [R]
    total, count = _masked_sum(entropy if weights is None else entropy * weights, valid)
    return total / tf.maximum(count, 1.0), count


IMAGES = "images"


class Term(NamedTuple):
    """A loss as a term of the training objective.

    Attributes:
      name: what logs and messages call it.
      part: `rpn`, `box_head` or `mask_head`, whose loss it is; each stage of a cascade of box heads
        has its own, from the second on with its number after the name, as in `class_2`.
      mean_over: what its value is a mean over: `IMAGES`, of which all replicas have as many; or
        RoIs, by the name of the loss that counts them.
      weight: its factor, or the name of the option that is it; at 0 it is left out.
      of_masks: of the mask head's losses the function itself, of mask logits [R, m, m] and
        `objective.MaskExamples`; those of the box detector are computed in `objective`.
      needs_masks: False of a loss that learns from boxes alone: RoIs of objects without a mask then
        reach the mask head too, and `MaskExamples.boxes_yxyx` is there.
    """

    name: str
    part: str
    mean_over: str
    weight: float | str = 1.0
    of_masks: Callable[[tf.Tensor, Any], Loss] | None = None
    needs_masks: bool = True


TERMS = (
    Term("rpn_score", "rpn", IMAGES),
    Term("rpn_box", "rpn", IMAGES),
    Term("class", "box_head", mean_over="class"),
    Term("box", "box_head", mean_over="class"),
    Term(
        "mask",
        "mask_head",
        mean_over="mask",
        of_masks=lambda logits, examples: mask_loss(
            logits, examples.targets, examples.valid, examples.weights
        ),
    ),
)
