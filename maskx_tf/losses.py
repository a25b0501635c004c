"""The five losses (facts of the published training, paper §3.3), each a pure function.

Every function returns (value, count): the loss, already normalised, and how many elements it saw.
With no element the value is exactly 0 and its gradients are finite.
"""

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


def mask_loss(logits: tf.Tensor, targets: tf.Tensor, valid: tf.Tensor) -> Loss:
    """Sigmoid cross-entropy of each RoI's own class map, mean over pixels and valid RoIs.

    Logits and {0, 1} targets [R, m, m], bool [R].
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    total, count = _masked_sum(tf.reduce_mean(entropy, axis=[1, 2]), valid)
    return total / tf.maximum(count, 1.0), count
