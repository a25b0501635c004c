"""The losses (facts of the published training, paper §3.3), and `TERMS`, the table of them.

Each is a pure function that returns (value, count): the loss, already normalised, and how many
elements it saw. With no element the value is exactly 0 and its gradients are finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from maskx_tf.ops import boxes, mask_targets, sampling

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
      logits: float32 [R, m, m], or of points [R, P, 1].
      targets: in [0, 1], likewise.
      valid: bool [R].
      weights: float32 [R], above 0 where valid; None: all 1.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    entropy = tf.reduce_mean(entropy, axis=[1, 2])  # [R]
    total, count = _masked_sum(entropy if weights is None else entropy * weights, valid)
    return total / tf.maximum(count, 1.0), count


def hard_rois(
    logits: tf.Tensor,
    targets: tf.Tensor,
    valid: tf.Tensor,
    class_logits: tf.Tensor,
    classes: tf.Tensor,
    scored: tf.Tensor,
    share: float,
) -> tf.Tensor:
    """FCIS's choice of RoIs by their losses: that of the class, and 10 times that of the mask.

    Args:
      logits, targets, valid: as of `mask_loss`, [R, m, m] and [R].
      class_logits, classes, scored: as of `class_loss`, [R, K + 1] and [R].
      share: see `sampling.hardest`.

    Returns:
      bool [R].
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    of_masks = tf.where(valid, tf.reduce_mean(entropy, axis=[1, 2]), 0.0)
    of_classes = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, class_logits)
    return sampling.hardest(of_classes + 10.0 * of_masks, scored, share)


def semantic_loss(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor
) -> Loss:
    """Sigmoid cross-entropy of maps of classes, mean over known pixels and then over maps.

    Args:
      logits, targets: float32 [B, P, H, W].
      weights: float32 [B, H, W] of the pixels, 0 of those that are not known.
      valid: bool [B, P], False of maps in the padding.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    known = tf.math.count_nonzero(weights, axis=[1, 2], dtype=tf.float32)[:, None]
    entropy = tf.einsum("bphw,bhw->bp", entropy, weights) / tf.maximum(known, 1.0)
    total, count = _masked_sum(entropy, valid)
    return total / tf.maximum(count, 1.0), count


def mask_iou_loss(
    ious: tf.Tensor, targets: tf.Tensor, valid: tf.Tensor, weights: tf.Tensor | None = None
) -> Loss:
    """Half the squared error of predicted IoUs, mean over valid masks that overlap their objects.

    Mask Scoring R-CNN's. All are [R]; weights as of `mask_loss`.
    """
    errors = 0.5 * (ious - targets) ** 2
    total, count = _masked_sum(
        errors if weights is None else errors * weights, valid & (targets > 0)
    )
    return total / tf.maximum(count, 1.0), count


def projection_loss(logits: tf.Tensor, boxes_yxyx: tf.Tensor, valid: tf.Tensor) -> Loss:
    """How far masks are from filling the rows and columns of their boxes, and no others.

    BoxInst's (Tian et al., CVPR 2021): the largest probability of each row, and of each column,
    against 1 in the box and 0 beyond, by Dice. A window no wider than its box teaches nothing.

    Args:
      logits: [R, m, m].
      boxes_yxyx: float32 [R, 4], in cells of the masks.
      valid: bool [R], the masks that it is the mean over.
    """
    probabilities = tf.sigmoid(logits)
    inside = tf.cast(boxes.cells_in(boxes_yxyx, logits.shape[1]), tf.float32)
    distances = [
        _dice(tf.reduce_max(probabilities, axis=axis), tf.reduce_max(inside, axis=axis))
        for axis in (1, 2)
    ]
    total, count = _masked_sum(tf.add_n(distances), valid)
    return total / tf.maximum(count, 1.0), count


def _dice(values: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """1 - 2 Σvw / (Σv² + Σw²) of the rows of two [R, n]."""
    common = tf.reduce_sum(values * wanted, axis=1)
    squares = tf.reduce_sum(values * values, axis=1) + tf.reduce_sum(wanted * wanted, axis=1)
    return 1.0 - 2.0 * common / (squares + 1e-5)


def pairwise_loss(
    logits: tf.Tensor,
    colors: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    images_yxyx: tf.Tensor,
    valid: tf.Tensor,
    threshold: float,
    dilation: int,
) -> Loss:
    """Neighbours of one colour belong together: mean of -log P(both or none), over such pairs.

    BoxInst's. A pair is a cell of the box and one of its 8 neighbours inside the image; of one
    colour it is from a similarity exp(-|LAB - LAB'| / 2) of `threshold` on.

    Args:
      logits: [R, m, m].
      colors: float32 [R, m, m, 3], LAB.
      boxes_yxyx: float32 [R, 4], in cells of the masks.
      images_yxyx: float32 [R, 4], the image, likewise.
      valid: bool [R], the masks that count.
      threshold: in [0, 1].
      dilation: cells between neighbours.
    """
    size = logits.shape[1]
    in_box = boxes.cells_in(boxes_yxyx, size) & valid[:, None, None]
    in_image = boxes.cells_in(images_yxyx, size)
    total, count = tf.zeros([]), tf.zeros([])
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):  # each pair once, counted as two
        first, second = _neighbours(size, down * dilation, right * dilation)
        a, b = logits[first], logits[second]
        distance = tf.norm(colors[first] - colors[second], axis=-1)
        weight = tf.cast(in_box[first] & in_image[second], tf.float32)
        weight += tf.cast(in_box[second] & in_image[first], tf.float32)
        weight = tf.where(tf.exp(-0.5 * distance) >= threshold, weight, 0.0)
        # P = (1 + exp(a + b)) / ((1 + exp(a)) (1 + exp(b)))
        surprise = tf.nn.softplus(a) + tf.nn.softplus(b) - tf.nn.softplus(a + b)
        total, count = total + tf.reduce_sum(weight * surprise), count + tf.reduce_sum(weight)
    return total / tf.maximum(count, 1.0), count


def _neighbours(size: int, down: int, right: int) -> tuple[tuple, tuple]:
    """Slices of [R, m, m, …]: all cells with a neighbour that far away, and these neighbours."""
    rows, left = slice(0, size - down), slice(max(-right, 0), size - max(right, 0))
    there = slice(left.start + right, left.stop + right)
    every = slice(None)
    return (every, rows, left), (every, slice(down, size), there)


def _learned_from_boxes(examples: Any, config: Any) -> tf.Tensor:
    """Of `objective.MaskExamples`, bool [R], those that the losses from boxes see (--weak_on)."""
    objects = boxes.area(examples.boxes_yxyx) > 0
    return objects if config.weak_on == "all" else objects & ~examples.valid


IMAGES = "images"


class Term(NamedTuple):
    """A loss as a term of the training objective.

    Attributes:
      name: what logs and messages call it.
      part: `rpn`, `box_head` or `mask_head`, whose loss it is; each stage of a cascade of box heads
        has its own, from the second on with its number after the name, as in `class_2`.
      mean_over: what its value is a mean over: `IMAGES`, of which all replicas have as many; or
        RoIs or maps, by the name of the loss that counts them.
      weight: its factor, or the name of the option or property of `Config` that is it; at 0 it is
        left out.
      of_masks: of the mask head's losses the function itself, of mask logits [R, m, m],
        `objective.MaskExamples` and the options; those of the box detector and of whole images
        are computed in `objective`.
      needs_masks: False of a loss that learns from boxes alone: RoIs of objects without a mask then
        reach the mask head too, and `MaskExamples` has boxes and colours.
      warmup_steps: over how many steps the weight grows to its full size, or the name of the option
        that says it; 0: it is there from the first step.
    """

    name: str
    part: str
    mean_over: str
    weight: float | str = 1.0
    of_masks: Callable[[tf.Tensor, Any, Any], Loss] | None = None
    needs_masks: bool = True
    warmup_steps: float | str = 0


TERMS = (
    Term("rpn_score", "rpn", IMAGES),
    Term("rpn_box", "rpn", IMAGES),
    Term("class", "box_head", mean_over="class"),
    Term("class_of_box", "box_head", mean_over="class_of_box", weight="has_mnc"),
    Term("box", "box_head", mean_over="class"),
    Term(
        "mask",
        "mask_head",
        mean_over="mask",
        weight="mask_loss_weight",
        of_masks=lambda logits, examples, _: mask_loss(
            logits, examples.targets, examples.valid, examples.weights
        ),
    ),
    Term("roi_mask", "mask_head", mean_over="roi_mask", weight="roi_mask_loss_weight"),
    Term("semantic", "mask_head", mean_over="semantic", weight="loss_semantic"),
    Term(
        "joint",
        "mask_head",
        mean_over="joint",
        weight="loss_joint",
        of_masks=lambda _, examples, __: class_loss(
            examples.class_logits, examples.classes, examples.scored
        ),
    ),
    Term(
        "points",
        "mask_head",
        mean_over="points",
        weight="has_point_head",
        of_masks=lambda _, examples, __: mask_loss(
            examples.point_logits[..., None],
            examples.point_targets[..., None],
            examples.valid,
            examples.weights,
        ),
    ),
    Term(
        "mask_iou",
        "mask_head",
        mean_over="mask_iou",
        weight="has_mask_scoring",
        of_masks=lambda logits, examples, _: mask_iou_loss(
            examples.ious,
            mask_targets.mask_ious(logits, examples.targets, examples.areas),
            examples.valid,
            examples.weights,
        ),
    ),
    Term(
        "projection",
        "mask_head",
        mean_over="projection",
        weight="loss_projection",
        of_masks=lambda logits, examples, config: projection_loss(
            logits, examples.boxes_yxyx, _learned_from_boxes(examples, config)
        ),
        needs_masks=False,
    ),
    Term(
        "pairwise",
        "mask_head",
        mean_over="pairwise",
        weight="loss_pairwise",
        of_masks=lambda logits, examples, config: pairwise_loss(
            logits,
            examples.colors,
            examples.boxes_yxyx,
            examples.images_yxyx,
            _learned_from_boxes(examples, config),
            config.pairwise_threshold,
            config.pairwise_dilation,
        ),
        needs_masks=False,
        warmup_steps="weak_warmup_steps",
    ),
)
