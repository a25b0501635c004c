"""Target assignment: which anchors and RoIs are trained on, and what for."""

from typing import NamedTuple

import tensorflow as tf

from maskx_tf.ops import boxes


class Sample(NamedTuple):
    """Fixed-size sample of each image's candidates: positives, then negatives, then padding."""

    indices: tf.Tensor  # int32 [B, S] into the candidates
    positive: tf.Tensor  # bool [B, S]
    valid: tf.Tensor  # bool [B, S], False in the padding


class Matches(NamedTuple):
    """Best ground-truth object of each candidate."""

    iou: tf.Tensor  # float32 [..., N], 0 where there is no object
    index: tf.Tensor  # int32 [..., N]


def match(ious: tf.Tensor) -> Matches:
    """Best column of each row of ious [..., N, M], M > 0; the first of equals."""
    return Matches(tf.reduce_max(ious, axis=-1), tf.argmax(ious, axis=-1, output_type=tf.int32))


def balanced_sample(
    positive: tf.Tensor, negative: tf.Tensor, size: int, max_positive: int, random: tf.Tensor
) -> Sample:
    """Draws at most `max_positive` positives and fills up to `size` with negatives.

    Args:
      positive, negative: bool [B, N], disjoint.
      size: S, length of the sample.
      max_positive: largest number of positives.
      random: float32 [B, N] in [0, 1), what decides the draw.

    Returns:
      A `Sample` of length S, without replacement; shorter pools leave padding at the end.
    """
    count = tf.shape(random)[-1]
    first = tf.math.top_k(tf.where(positive, random, -1.0), tf.minimum(max_positive, count))
    second = tf.math.top_k(tf.where(negative, random, -1.0), tf.minimum(size, count))
    # One ranking puts positives before negatives before what may not be drawn.
    ranked = tf.where(first.values >= 0, 2.0 + first.values, -1.0)
    ranked = tf.concat([ranked, second.values], axis=1)
    best = tf.math.top_k(ranked, tf.minimum(size, tf.shape(ranked)[1]))
    indices = tf.concat([first.indices, second.indices], axis=1)
    indices = tf.gather(indices, best.indices, batch_dims=1)
    missing = [[0, 0], [0, size - tf.shape(best.values)[1]]]
    priority = tf.ensure_shape(tf.pad(best.values, missing, constant_values=-1.0), [None, size])
    indices = tf.ensure_shape(tf.pad(indices, missing), [None, size])
    return Sample(indices, priority >= 2.0, priority >= 0.0)


def sample_anchors(
    anchors_yxyx: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    image_sizes: tf.Tensor,
    random: tf.Tensor,
    *,
    size: int,
    positive_fraction: float,
    positive_iou: float,
    negative_iou: float,
    straddle_threshold: float,
) -> tuple[Sample, tf.Tensor]:
    """Chooses the anchors that the RPN losses see.

    An anchor is positive from `positive_iou` with an object on, or if no anchor is better for some
    object (ties included); negative below `negative_iou`.

    Args:
      anchors_yxyx: [N, 4].
      boxes_yxyx: [B, M, 4] objects that are not crowds; zeros as padding.
      image_sizes: [B, 2] (height, width).
      random: float32 [B, N] in [0, 1).
      size, positive_fraction: sample size and largest share of positives.
      positive_iou, negative_iou: thresholds.
      straddle_threshold: pixels by which an anchor may leave the image; negative: any number.

    Returns:
      The sample, and for each of its anchors the index of its object, int32 [B, S].
    """

    def label(inputs):
        # One image at a time: at full size, IoUs of a whole batch would take gigabytes.
        objects, image_size = inputs
        ious = boxes.iou(anchors_yxyx, objects)  # [N, M]
        allowed = _inside(anchors_yxyx, image_size, straddle_threshold)  # [N]
        ious = tf.where(allowed[:, None], ious, 0.0)
        matches = match(ious)
        best_of_object = tf.reduce_max(ious, axis=0, keepdims=True)  # [1, M]
        forced = tf.reduce_any((ious == best_of_object) & (ious > 0), axis=1)
        positive = allowed & (forced | (matches.iou >= positive_iou) & (matches.iou > 0))
        return positive, allowed & ~positive & (matches.iou < negative_iou), matches.index

    positive, negative, index = tf.map_fn(
        label, (boxes_yxyx, image_sizes), fn_output_signature=(tf.bool, tf.bool, tf.int32)
    )
    sample = balanced_sample(positive, negative, size, int(size * positive_fraction), random)
    return sample, tf.gather(index, sample.indices, batch_dims=1)


def _inside(anchors_yxyx: tf.Tensor, image_size: tf.Tensor, threshold: float) -> tf.Tensor:
    """Which anchors [N, 4] leave the image by at most `threshold` pixels: bool [N]."""
    if threshold < 0:
        return tf.ones(tf.shape(anchors_yxyx)[:1], tf.bool)
    low = tf.reduce_all(anchors_yxyx[:, :2] >= -threshold, axis=1)
    return low & tf.reduce_all(anchors_yxyx[:, 2:] <= image_size + threshold, axis=1)


def sample_rois(
    proposals_yxyx: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    eligible: tf.Tensor,
    crowd_boxes_yxyx: tf.Tensor,
    random: tf.Tensor,
    *,
    size: int,
    positive_fraction: float,
    positive_iou: float,
    crowd_overlap: float = 0.7,
) -> tuple[Sample, tf.Tensor, tf.Tensor]:
    """Chooses the RoIs that the heads see, the ground-truth boxes among them.

    Args:
      proposals_yxyx: [B, P, 4]; zeros as padding.
      boxes_yxyx: [B, M, 4] objects that are not crowds; zeros as padding.
      eligible: bool [B, M], objects whose RoIs may be positive; RoIs of the others are left out.
      crowd_boxes_yxyx: [B, C, 4], zeros as padding; a RoI that lies in one by more than
        `crowd_overlap` is no negative.
      random: float32 [B, M + P] in [0, 1).
      size, positive_fraction: sample size and largest share of positives.
      positive_iou: IoU from which a RoI is positive; the others are negative.

    Returns:
      The sample; its RoIs, float32 [B, S, 4]; the index of each RoI's object, int32 [B, S].
    """
    candidates = tf.concat([boxes_yxyx, proposals_yxyx], axis=1)  # [B, M + P, 4]
    matches = match(boxes.iou(candidates, boxes_yxyx))
    foreground = matches.iou >= positive_iou
    positive = foreground & tf.gather(eligible, matches.index, batch_dims=1)
    in_crowd = match(boxes.overlap_fraction(candidates, crowd_boxes_yxyx)).iou > crowd_overlap
    negative = ~foreground & ~in_crowd & (boxes.area(candidates) > 0)
    sample = balanced_sample(positive, negative, size, round(size * positive_fraction), random)
    rois = tf.gather(candidates, sample.indices, batch_dims=1)
    return sample, rois, tf.gather(matches.index, sample.indices, batch_dims=1)


def hardest(losses: tf.Tensor, eligible: tf.Tensor, share: float) -> tf.Tensor:
    """The RoIs of the largest losses (online hard example mining).

    Args:
      losses: float32 [R].
      eligible: bool [R], those that count.
      share: of the eligible ones, rounded up.

    Returns:
      bool [R]; of equal losses the first ones.
    """
    order = tf.argsort(tf.where(eligible, losses, -1.0), direction="DESCENDING", stable=True)
    count = tf.math.count_nonzero(eligible, dtype=tf.int32)
    most = tf.cast(tf.math.ceil(share * tf.cast(count, tf.float32)), tf.int32)
    return eligible & (tf.math.invert_permutation(order) < most)


def where_or_first(mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Places of the true entries of mask [B, N], int32 [R, 2], and bool [R] which of them are real.

    R is never 0: without a true entry the first place stands in, not real. TensorFlow's
    convolutions return wrong shapes for an empty batch of RoIs, and have no gradient for it.
    """
    places = tf.cast(tf.where(mask), tf.int32)
    count = tf.shape(places)[0]
    places = tf.pad(places, [[0, tf.cast(count == 0, tf.int32)], [0, 0]])
    return places, tf.range(tf.shape(places)[0]) < count
